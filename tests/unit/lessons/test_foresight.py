"""What cannot be compared is found out before anything runs; what may be is never refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from labkit.core import host, question
from labkit.core.records import Run, Trial
from labkit.errors import IncomparableRecords
from labkit.lessons import foresight
from labkit.lessons.planned import Planned, planned
from labkit.stack.compose import Stack
from labkit.stack.spec import Experiment

MEASURE = 'run = experiment(["naive"], preset=preset, blocks=blocks, link=link)'


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    monkeypatch.setenv("LABKIT_DEVICE", "cpu")


@pytest.fixture(scope="module")
def here() -> str:
    return str(host.card()["id"])


def notebook(path, *cells: str, parameters: str = 'preset = "small"\nblocks = 5\nlink = "1gbit"'):
    doc = {
        "cells": [
            {"cell_type": "code", "metadata": {"tags": ["parameters"]}, "source": parameters},
            *({"cell_type": "code", "metadata": {}, "source": source} for source in cells),
        ],
        "metadata": {},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    for i, cell in enumerate(doc["cells"]):
        cell |= {"id": f"c{i}", "outputs": [], "execution_count": None}
    target = path / "n.ipynb"
    target.write_text(json.dumps(doc))
    return target


def run_of(where: str, trials: int = 5, arm: str = "naive", **chosen) -> Run:
    spec = Experiment([Stack.parse(arm)], **{"link": "1gbit", "device": "cpu", **chosen})
    return Run(
        "id",
        "2026-01-01T00:00:00+00:00",
        {"id": where},
        spec.described(),
        {},
        tuple(
            Trial(arm, block, 0, total_s=1.0, phases={"load": 1.0}, cache={"state": "cold"})
            for block in range(trials)
        ),
    )


@pytest.mark.parametrize(
    ("cells", "found"),
    [
        (
            [MEASURE],
            Planned(
                ("naive",),
                {"preset": "tiny", "blocks": 5, "link": "1gbit"},
                {"preset": "preset", "blocks": "blocks", "link": "link"},
            ),
        ),
        (
            ["stacks = f()", 'experiment(stacks, scenario="hot-node", device=g(), progress=p())'],
            Planned(None, {"scenario": "hot-node"}, {}, ("device",)),
        ),
        (
            ['for preset in sizes:\n    labkit.experiment(["naive"], preset=preset)'],
            Planned(("naive",), {}, {}, ("preset",)),
        ),
    ],
)
def test_a_call_is_read_with_what_is_literal_or_a_parameter(tmp_path, cells, found):
    assert planned(notebook(tmp_path, *cells), {"preset": "tiny"}) == (found,)


@pytest.mark.parametrize(
    "cell",
    [
        "!labkit run naive",
        "from labkit import experiment as measure\nmeasure(['naive'])",
        "best = map(experiment, stacks)",
        "from labkit.decide.measure import measure",
        "from labkit.viz import stack_bench",
    ],
)
def test_a_notebook_that_may_measure_otherwise_is_not_foreseen(tmp_path, here, cell):
    path = notebook(tmp_path, MEASURE, cell)
    assert planned(path, {}) is None
    foresight.refuse_incomparable([run_of(here, link="loopback")], [(path, {})])


@pytest.mark.parametrize(
    ("before", "values", "why", "fix"),
    [
        ({}, {"blocks": 2}, "2 blocks, and a comparison takes 3", "-p blocks=8"),
        ({"trials": 2}, {}, "2 trials in the baseline", "--save-baseline"),
        ({}, {"preset": "tiny"}, "preset: small against tiny", "-p preset=small"),
        ({"link": "200mbit"}, {}, "link: 200mbit against 1gbit", "-p link=200mbit"),
        ({"scenario": "hot-node"}, {}, "scenario: hot-node against fresh-node", "--save-baseline"),
        ({"arm": "no-image"}, {}, "the baseline holds no-image", "--save-baseline"),
        ({"device": "cuda"}, {}, "device: cuda against cpu", "--save-baseline"),
        ({"timeout_s": 5.0}, {}, "timeout_s: 5.0 against 300.0", "--save-baseline"),
    ],
)
def test_what_differs_is_named_with_its_fix(tmp_path, here, before, values, why, fix):
    with pytest.raises(IncomparableRecords) as caught:
        foresight.refuse_incomparable(
            [run_of(here, **before)], [(notebook(tmp_path, MEASURE), values)]
        )
    assert why in caught.value.why and fix in caught.value.fix, caught.value


def test_another_host_is_refused_whatever_the_notebook_does(tmp_path):
    with pytest.raises(IncomparableRecords, match="another host"):
        foresight.refuse_incomparable(
            [run_of("elsewhere")], [(notebook(tmp_path, "!labkit run naive"), {})]
        )


def test_a_variable_of_the_environment_is_named_unless_the_notebook_may_set_it(
    tmp_path, here, monkeypatch
):
    before = run_of(here)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with pytest.raises(IncomparableRecords, match="OMP_NUM_THREADS not set against 1"):
        foresight.refuse_incomparable([before], [(notebook(tmp_path, MEASURE), {})])
    sets = notebook(tmp_path, MEASURE, "os.environ['OMP_NUM_THREADS'] = '1'")
    foresight.refuse_incomparable([before], [(sets, {})])


@pytest.mark.parametrize("more", ["", "run = experiment(['naive'], blocks=1, scenario='hot-node')"])
def test_one_experiment_that_may_be_compared_is_enough(tmp_path, here, more):
    path = notebook(tmp_path, MEASURE, *([more] if more else []))
    foresight.refuse_incomparable([run_of(here), run_of(here, preset="tiny")], [(path, {})])


def test_an_older_record_that_does_not_tell_is_not_refused(tmp_path, here):
    before = run_of(here)
    kept = {k: v for k, v in before.experiment.items() if k != "conditions"}
    older = replace(before, experiment=kept)
    assert "timeout_s" not in question.conditions_of(older, "naive")
    foresight.refuse_incomparable([older], [(notebook(tmp_path, MEASURE), {})])


def test_a_baseline_of_too_few_trials_is_refused_before_it_is_measured(tmp_path):
    path = notebook(tmp_path, MEASURE)
    foresight.refuse_too_few([(path, {})])
    with pytest.raises(IncomparableRecords) as caught:
        foresight.refuse_too_few([(path, {"blocks": 2})])
    assert caught.value.fix == "-p blocks=8"

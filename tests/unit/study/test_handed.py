"""What a notebook gets in place of a measurement: the study's run, and words for what it lacks."""

from __future__ import annotations

import json

import pytest

from labkit import study as studies
from labkit.core import records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.stack.replay import live_or_recorded

NAIVE = {"image": "full-pull", "process": "runc", "weights": "pickle"}
LAZY = {**NAIVE, "image": "estargz-lazy"}
STACKS = {
    "naive": NAIVE,
    "lazy pull": LAZY,
    "safetensors": {**NAIVE, "weights": "safetensors"},
    "lazy pull + safetensors": {**LAZY, "weights": "safetensors"},
    "container checkpoint": {**LAZY, "snapshot": "criu-container"},
}
UNAVAILABLE = "container checkpoint"
STEPS = [
    ("naive", "", "naive"),
    ("lazy pull", "estargz-lazy", "rung"),
    ("safetensors", "safetensors", "alone"),
    ("lazy pull + safetensors", "safetensors", "rung"),
    ("container checkpoint", "criu-container", "rung"),
]
LEFT_OUT = {"overlap": "nine minutes were not enough"}


def _trial(arm: str, block: int) -> Trial:
    if arm == UNAVAILABLE:
        error = {"what": "no CRIU", "why": "", "fix": "scripts/host-tools"}
        return Trial(arm, block, 0, outcome="unavailable", error=error)
    return Trial(arm, block, 0, total_s=9.0, phases={"load": 9.0})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    steps = [
        {"label": arm, "technique": technique, "arm": arm, "kind": kind}
        for arm, technique, kind in STEPS
    ]
    run = Run(
        "fixture",
        "2026-01-02T03:04:05+00:00",
        {"id": "fixture", "title": "no host"},
        {
            "arms": [
                {"name": name, "stack": stack, "scenario": "fresh-node", "link": "1gbit"}
                for name, stack in STACKS.items()
            ],
            "blocks": 5,
            "preset": "small",
            "simulated": "fixture, not measured",
            "conditions": {"preset": "small", "device": "cpu"},
            "notes": {"study": {"steps": steps, "left_out": LEFT_OUT}},
        },
        {"disk_read_bytes_per_s": 1e9},
        tuple(_trial(arm, block) for block in range(5) for arm in STACKS),
    )
    path = tmp_path_factory.mktemp("study")
    records.write(run, path / "ladder.json")
    return str(path)


def never() -> Run:
    raise AssertionError("it was measured again")


def test_without_a_study_it_is_measured():
    live = Run("live", "now")
    assert studies.measured("", ["naive"], lambda: live) is live


def test_the_studys_run_keeps_everything_but_the_other_arms(folder):
    said: list[str] = []
    whole = studies.read(folder).run
    run = studies.measured(folder, ["naive"], never, said.append)
    assert run.arm_names == ["naive"] and len(run.trials) == 5
    assert (run.host, run.floors) == (whole.host, whole.floors)
    assert run.experiment["conditions"] == whole.experiment["conditions"]
    assert run.experiment["simulated"] == "fixture, not measured"
    assert (
        folder in said[0]
        and "2026-01-02" in said[0]
        and "small over 1gbit" in said[0]
        and "5 cold starts" in said[0]
    )


def test_no_arm_named_is_all_of_them_and_what_is_lacking_is_said(folder):
    said: list[str] = []
    run = studies.measured(folder, [], never, said.append)
    assert run.arm_names == list(STACKS)
    assert "overlap: left out of the study: nine minutes were not enough" in said
    assert "container checkpoint: unavailable: no CRIU (scripts/host-tools)" in said


def test_an_arm_that_the_study_lacks_is_named_and_the_others_are_given(folder):
    said: list[str] = []
    run = studies.measured(folder, ["safetensors", "tensorizer"], never, said.append)
    assert run.arm_names == ["safetensors"]
    assert "tensorizer: the study did not measure it" in said


def test_where_the_study_has_none_of_the_arms_they_are_measured(folder):
    live, said = Run("live", "now"), []
    assert studies.measured(folder, ["overlap"], lambda: live, said.append) is live
    assert any("measured here and now" in line for line in said)


def test_a_capability_that_the_study_missed_is_replaced_by_a_recorded_run(folder):
    run = live_or_recorded(
        lambda: studies.measured(folder, [UNAVAILABLE], never, lambda _: None),
        "checkpoints-small",
        lambda _: None,
    )
    assert run.experiment["replayed_from"]


def test_a_directory_without_a_study_is_refused(tmp_path):
    with pytest.raises(BadInput, match="ladder.json"):
        studies.measured(str(tmp_path), ["naive"], never)


def test_parts_of_a_study_are_its_steps_without_what_could_not_run(folder):
    alone, rungs = studies.parts(studies.read(folder).run)
    assert alone == {"estargz-lazy": "lazy pull", "safetensors": "safetensors"}
    assert rungs == ["lazy pull", "lazy pull + safetensors"]


def test_parts_of_an_ablation_go_by_its_arms(folder):
    run = studies.read(folder).run
    text = json.dumps(run.experiment).replace("lazy pull + ", "ladder: estargz-lazy + ")
    experiment = {**json.loads(text), "notes": {}}
    name = "ladder: estargz-lazy + safetensors"
    ladder = Run("x", "now", run.host, experiment, {}, (_trial("naive", 0), _trial(name, 0)))
    assert studies.parts(ladder) == ({}, [name])

from __future__ import annotations

import sys
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace

import pytest

from labkit.core import turn
from labkit.core.records import Run, Trial
from labkit.errors import LabError
from labkit.stack import preparation as stack_preparation
from labkit.stack.compose import Stack
from labkit.stack.experiment import ExperimentRunner
from labkit.stack.preparation import Preparation
from labkit.stack.spec import Experiment
from labkit.technique import Subject

ARMS = ["no-image", "no-image,weights=safetensors"]
BUSY = "others used 46 % of the CPUs"


@pytest.fixture
def preparation(workspace):
    spec = Experiment([Stack.parse(a) for a in ARMS], preset="tiny", blocks=2, seed=3)
    notes: list[str] = []
    with ExitStack() as ends:
        yield Preparation(
            spec, workspace, None, ends, SimpleNamespace(note=notes.append, notes=notes)
        )


def blocks(monkeypatch, preparation, disturbed, schedule=None) -> Run:
    """The trials of an experiment whose starts are not made; `disturbed(n)`: of the n-th."""
    starts = []

    def start(plan, *, arm, block, order, **_):
        starts.append(arm)
        return Trial(arm, block, order, total_s=1.0, disturbed=disturbed(len(starts)))

    monkeypatch.setattr(sys.modules["labkit.stack.experiment"], "run_trial", start)
    runner = ExperimentRunner(preparation, schedule=schedule)
    runner.subject = Subject(model_dir=preparation.space.root)
    plan = SimpleNamespace(link="loopback", floors_bytes={}, scenario="warm-node")
    monkeypatch.setattr(stack_preparation, "compose", lambda *_: plan)
    return runner._blocks(runner._resumed())


@pytest.fixture
def nothing_is_made(monkeypatch):
    """The arms whose artifacts were asked for, in order."""
    asked: list[str] = []

    def made(call, stack, *_, **__):
        asked.append(stack.name)
        return {}

    monkeypatch.setattr(stack_preparation, "run_in_subprocess", made)
    return asked


@pytest.mark.parametrize(("beside", "trials"), [("", 6), ("1", 4)])
def test_one_disturbed_trial_of_a_block_is_measured_again_at_once(
    monkeypatch, preparation, nothing_is_made, beside, trials
):
    monkeypatch.setenv(turn.BESIDE, beside)
    run = blocks(monkeypatch, preparation, lambda _n: BUSY)
    assert len(run.trials) == trials
    if not beside:
        for block in (0, 1):
            arms = [t.arm for t in run.trials if t.block == block]
            assert arms[0] == arms[1] != arms[2]
    assert all([t.block for t in run.of_arm(arm)] == [0, 1] for arm in ARMS)


def test_the_trial_that_was_not_disturbed_is_the_one_that_counts(
    monkeypatch, preparation, nothing_is_made
):
    monkeypatch.delenv(turn.BESIDE, raising=False)
    run = blocks(monkeypatch, preparation, lambda n: BUSY if n == 1 else "")
    assert len(run.trials) == 5 and len(run.disturbed) == 1
    assert not any(t.disturbed for arm in ARMS for t in run.of_arm(arm))


@pytest.mark.parametrize("failing", [1, 2])
def test_arms_that_cannot_be_prepared_are_unavailable_and_the_others_are_measured(
    monkeypatch, preparation, failing
):
    def prepared(call, stack, *_, **__):
        if ARMS.index(stack.name) < failing:
            raise LabError("dump refused", why="a log's last words", fix="criu check")
        return {}

    monkeypatch.setattr(stack_preparation, "run_in_subprocess", prepared)
    run = blocks(monkeypatch, preparation, lambda _n: "")
    lost = [t for t in run.trials if t.outcome == "unavailable"]
    assert {t.arm for t in lost} == set(ARMS[:failing]) and len(run.trials) == 4
    assert lost[0].error["what"] == "dump refused" and "last words" in lost[0].error["why"]
    assert any("dump refused" in n for n in preparation.progress.notes)


def test_without_an_image_only_the_arms_that_start_from_one_are_unavailable(
    monkeypatch, preparation
):
    def made(call, *_, **__):
        if call is stack_preparation._image:
            raise LabError("the image cannot be built")
        return preparation.space.root, {"tokens": [1]}

    monkeypatch.setattr(stack_preparation, "run_in_subprocess", made)
    preparation.spec = replace(
        preparation.spec, stacks=[Stack.parse(a) for a in ("naive", "no-image")]
    )
    subject = preparation.subject()
    assert list(preparation.missing) == ["naive"] and preparation.tokens == (1,)
    assert subject.image_layout is None


def test_an_arm_without_a_plan_is_unavailable(monkeypatch, preparation, nothing_is_made):
    def composed(*_):
        raise LabError("its parts do not fit together")

    monkeypatch.setattr(stack_preparation, "compose", composed)
    subject = Subject(model_dir=preparation.space.root)
    assert preparation.plan(preparation.spec.stacks[0], subject) is None
    assert list(preparation.missing) == ARMS[:1]


def test_an_arm_is_prepared_once_and_not_before_a_block_has_it(
    monkeypatch, preparation, nothing_is_made
):
    seen = []

    def schedule(block, run):
        seen.append(list(nothing_is_made))
        return [ARMS[:1], ARMS, ARMS[1:], []][block]

    run = blocks(monkeypatch, preparation, lambda _n: "", schedule)
    assert seen == [[], ARMS[:1], ARMS, ARMS]
    assert [(t.arm, t.block) for t in run.trials if t.arm == ARMS[1]] == [
        (ARMS[1], 1),
        (ARMS[1], 2),
    ]


def test_an_arm_that_no_block_has_is_not_prepared(monkeypatch, preparation, nothing_is_made):
    blocks(monkeypatch, preparation, lambda _n: "", lambda b, _run: ARMS[:1] if b < 2 else [])
    assert nothing_is_made == ARMS[:1]

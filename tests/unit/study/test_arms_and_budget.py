"""A study's arms follow the article; its minutes go to the ladder first, and what they do not hold
is named."""

from __future__ import annotations

import pytest

from labkit.core.records import Run, Trial
from labkit.stack.ablate import named
from labkit.stack.compose import Stack
from labkit.study import arms as study_arms
from labkit.study.arms import Arms, planned
from labkit.study.budget import BLOCKS, MOST_BLOCKS, Schedule
from labkit.study.record import ALONE, CHALLENGER, NAIVE, RUNG


@pytest.fixture
def lacking(monkeypatch):
    """What this host lacks, by technique: filled by a test."""
    missing: dict[str, str] = {}

    def look(stack, card, device, store=""):
        return next((f"no {t}" for t in stack.layers.values() if t in missing), "")

    monkeypatch.setattr(study_arms, "lacking", look)
    return missing


def test_the_ladder_goes_in_the_articles_order_each_rung_on_the_one_before(lacking):
    arms = planned({})
    assert arms.of_kind(NAIVE, RUNG) == [
        "naive",
        "object-pull",
        "estargz-lazy",
        "estargz-lazy + safetensors",
        "estargz-lazy + labkit-streamer",
        "estargz-lazy + overlap",
        "estargz-lazy + criu-container",
    ]
    assert [s.label for s in arms.steps if s.kind == RUNG] == [
        "object storage",
        "lazy pull",
        "safetensors",
        "streaming",
        "overlap",
        "container checkpoint",
    ]


def test_each_technique_of_the_article_stands_alone_on_naive(lacking):
    arms = planned({})
    alone = [arms.stacks[a] for a in (*arms.of_kind(RUNG)[:2], *arms.of_kind(ALONE))]
    naive = Stack.parse("naive").layers
    for stack in alone:
        changed = [k for k, v in stack.layers.items() if v != naive.get(k, "") and k != "process"]
        assert len(changed) == 1, stack
    assert {s.name for s in alone} >= {
        "object-pull",
        "estargz-lazy",
        "safetensors",
        "criu-container",
    }


def test_a_rung_that_cannot_run_keeps_its_step_and_the_next_stands_on_the_one_below(lacking):
    lacking["estargz-lazy"] = "no FUSE"
    arms = planned({})
    assert "object-pull + safetensors" in arms.stacks
    assert arms.left_out["estargz-lazy"]
    assert "estargz-lazy" in [s.arm for s in arms.steps]
    assert not arms.of_kind(CHALLENGER)  # the ladder's own image technique is the other one


def test_a_snapshot_makes_the_loader_moot_so_no_name_claims_it():
    stack = named(
        Stack(
            "x", {**Stack.parse("naive").layers, "weights": "overlap", "snapshot": "criu-container"}
        )
    )
    assert (stack.name, stack.layers["weights"]) == ("criu-container", "pickle")


def test_on_a_gpu_no_arm_is_dumped_and_the_reason_is_said():
    arms = planned({}, device="cuda")
    assert "CPU" in arms.left_out[next(a for a in arms.left_out if "criu-container" in a)]


def test_beside_a_real_bucket_nothing_is_asked_of_the_labs_own_stores():
    arms = planned({}, store="s3://mine/models")
    assert not [a for a in arms.stacks if "object-pull" in a or "criu" in a]
    assert "s3://mine/models" in arms.left_out["object-pull"]


# -- the budget


class Machine:
    """A host whose trials take what `takes` says: carries a schedule out against its own clock."""

    def __init__(self, arms: Arms, takes: dict[str, float], minutes: float, failing=(), **more):
        self.now_s, self.takes, self.failing = 0.0, takes, failing
        self.schedule = Schedule(arms, minutes, clock=lambda: self.now_s, **more)
        self.run = Run(
            "x",
            "2026-01-01",
            {"id": "h"},
            {"arms": [{"name": a, "stack": dict(s.layers)} for a, s in arms.stacks.items()]},
        )

    def carry_out(self) -> Run:
        number = 0
        while names := self.schedule.block(number, self.run):
            assert len(names) == len(set(names))
            for arm in names:
                self.now_s += self.takes[arm] + 1.0
                noisy = self.takes[arm] * (1 + 0.01 * (-1) ** number)
                outcome = "crashed" if arm in self.failing else "ok"
                trial = Trial(arm, number, 0, outcome, total_s=noisy if outcome == "ok" else None)
                self.run = Run(
                    self.run.id,
                    self.run.created,
                    self.run.host,
                    self.run.experiment,
                    trials=(*self.run.trials, trial),
                )
            number += 1
        return self.run

    def blocks_of(self, arm: str) -> int:
        return len(self.run.of_arm(arm, only_ok=False))


@pytest.fixture
def arms(lacking) -> Arms:
    return planned({})


def seconds(arms: Arms) -> dict[str, float]:
    """As measured once on two cores."""
    return {
        a: {"full-pull": 16.0, "object-pull": 9.0}.get(s.layers["image"], 6.0)
        for a, s in arms.stacks.items()
    }


def test_the_ladder_gets_five_blocks_however_short_the_time(arms):
    machine = Machine(arms, seconds(arms), minutes=0.1)
    machine.carry_out()
    assert {machine.blocks_of(a) for a in arms.of_kind(NAIVE, RUNG)} == {BLOCKS}
    assert not machine.schedule.left_out.keys() & set(arms.of_kind(NAIVE, RUNG))


def test_what_the_minutes_do_not_hold_is_named_with_the_minutes_it_would_take(arms):
    machine = Machine(arms, seconds(arms), minutes=6.5)
    machine.carry_out()
    left = [a for a in arms.of_kind(ALONE) if not machine.blocks_of(a)]
    assert left
    assert all("--minutes" in machine.schedule.left_out[a] for a in left)


def test_what_joins_is_paired_with_naive_in_each_of_five_blocks(arms):
    machine = Machine(arms, seconds(arms), minutes=30)
    run = machine.carry_out()
    naive = {t.block for t in run.of_arm("naive")}
    for arm in arms.of_kind(ALONE):
        assert len({t.block for t in run.of_arm(arm)} & naive) >= BLOCKS


def test_it_ends_within_its_minutes_once_the_ladder_fits(arms):
    for minutes in (8, 12, 20, 40):
        machine = Machine(arms, seconds(arms), minutes, later_s=lambda naive_s: 60.0)
        machine.carry_out()
        assert machine.now_s <= 60 * minutes - 60


def test_time_that_is_left_goes_to_what_is_undecided_and_ends(arms):
    machine = Machine(arms, seconds(arms), minutes=600)
    machine.carry_out()
    assert BLOCKS < machine.blocks_of("estargz-lazy + safetensors") <= MOST_BLOCKS
    assert machine.blocks_of("object-pull") < MOST_BLOCKS


def test_an_arm_that_always_fails_is_given_up_and_the_others_go_on(arms):
    failing = "estargz-lazy + criu-container"
    machine = Machine(arms, seconds(arms), minutes=30, failing=[failing])
    machine.carry_out()
    assert machine.blocks_of(failing) == 2
    assert "crashed" in machine.schedule.left_out[failing]
    assert machine.blocks_of("naive") >= BLOCKS


def test_a_challenger_without_a_chance_is_not_tried_and_that_is_said(arms):
    takes = seconds(arms) | {"object-pull": 60.0}
    machine = Machine(arms, takes, minutes=600)
    machine.carry_out()
    for arm in arms.of_kind(CHALLENGER):
        assert not machine.blocks_of(arm)
        assert "add up to" in machine.schedule.left_out[arm]


def test_a_study_that_is_gone_on_with_keeps_the_arms_it_had(arms):
    machine = Machine(arms, seconds(arms), minutes=30)
    whole = machine.carry_out()
    again = Machine(arms, seconds(arms), minutes=0.1)
    again.run = Run(
        whole.id,
        whole.created,
        whole.host,
        whole.experiment,
        trials=tuple(t for t in whole.trials if t.block < 2),
    )
    names = {a for n in range(2, BLOCKS) for a in again.schedule.block(n, again.run)}
    assert names == {t.arm for t in whole.trials if t.block in (2, 3, 4)}

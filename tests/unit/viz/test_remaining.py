"""What is left is estimated arm by arm, and only said where something is known."""

from __future__ import annotations

import math

import pytest

from labkit.viz.remaining import Remaining, clock, span


def _seen(**seconds: float) -> Remaining:
    left = Remaining()
    left.plan(["naive", "fast"], blocks=5)
    for arm, value in seconds.items():
        left.done(arm, value)
    return left


def test_each_arm_counts_by_its_own_median():
    left = _seen(naive=50.0, fast=10.0)
    left.done("naive", 1000.0)  # one outlier
    left.done("naive", 50.0)
    assert left.seconds() == (2 * 50.0 + 4 * 10.0,) * 2
    assert left.words() == "about 2 min left"


def test_an_arm_that_was_not_seen_gives_a_lower_bound_or_a_range():
    assert _seen(naive=60.0).seconds() == (240.0, math.inf)
    assert _seen(naive=60.0).words() == "at least 4 min left"
    left = Remaining()
    left.plan(["naive", "fast", "other"], blocks=2)
    left.done("naive", 60.0)
    left.done("fast", 12.0)
    assert left.words() == "about 2 to 3 min left"


def test_what_an_arm_is_expected_to_take_stands_in_until_it_was_seen():
    left = Remaining()
    left.plan(["naive", "fast"], 2, {"naive": 60.0, "fast": 30.0})
    assert left.words() == "about 3 min left"
    left.plan(["naive", "fast"])  # as the experiment itself plans it: what is expected stays
    left.done("naive", 90.0)
    assert left.seconds() == (30.0, 30.0)


def test_a_trial_that_takes_longer_than_ever_leaves_nothing_negative():
    left = _seen(naive=60.0, fast=10.0)
    assert left.seconds("naive", 20.0) == (4 * 60.0 - 20.0 + 4 * 10.0,) * 2
    assert left.seconds("naive", 9999.0) == (3 * 60.0 + 4 * 10.0,) * 2


def test_nothing_is_said_where_nothing_is_known_or_nothing_is_left():
    left = Remaining()
    assert left.words() == ""
    left.plan(["naive"])
    assert left.words() == ""
    left.done("naive", 3.0)
    left.done("naive", 3.0)  # measured again: more than was planned
    assert left.words() == ""


def test_another_experiment_may_be_of_another_size():
    left = _seen(naive=60.0, fast=10.0)
    left.plan(["naive"], blocks=3)
    assert left.words() == ""


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "5 s"), (42, "40 s"), (59, "1 min"), (250, "4 min"), (3600, "1 h"), (4800, "1 h 20 min")],
)
def test_an_estimate_is_as_coarse_as_it_is(seconds, shown):
    assert span(seconds) == shown


def test_a_clock_reads_as_one():
    assert [clock(s) for s in (-1, 43, 725, 3725)] == ["0:00", "0:43", "12:05", "1:02:05"]

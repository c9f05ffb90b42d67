"""The two tests of a shift against what books say of them, and what they promise about few
trials."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.lessons import shift


@pytest.mark.parametrize(
    ("t", "freedom", "tail"),
    [
        (2.132, 4, 0.05),
        (2.776, 4, 0.025),
        (3.747, 4, 0.01),
        (2.015, 5, 0.05),
        (1.860, 8, 0.05),
        (3.355, 8, 0.005),
        (6.314, 1, 0.05),
        (2.920, 2, 0.05),
        (1.671, 60, 0.05),
        (0.0, 7, 0.5),
    ],
)
def test_students_tail_is_the_tables(t, freedom, tail):
    assert shift.student_tail(t, freedom) == pytest.approx(tail, rel=2e-3)
    assert shift.student_tail(-t, freedom) == pytest.approx(1 - tail, rel=1e-3)
    if tail < 0.5:
        assert shift.student_limit(tail, freedom) == pytest.approx(t, rel=1e-3)


@pytest.mark.parametrize(("n", "m"), [(2, 3), (4, 4), (5, 3)])
def test_the_rank_test_counts_every_order(n, m):
    orders = list(itertools.combinations(range(n + m), n))
    below = {
        chosen: sum(y < x for x in chosen for y in set(range(n + m)) - set(chosen))
        for chosen in orders
    }
    for chosen in orders:
        others = sorted(set(range(n + m)) - set(chosen))
        as_few = sum(count <= below[chosen] for count in below.values())
        assert shift.rank_tail(chosen, others) == pytest.approx(as_few / len(orders))
    assert shift.rank_tail(list(range(n)), list(range(n, n + m))) == pytest.approx(
        1 / math.comb(n + m, n)
    )


def test_a_tie_is_half_a_pair_rounded_up():
    assert shift.rank_tail([1, 2], [2, 3]) == pytest.approx(2 / 6)


@given(
    st.lists(st.floats(0.001, 100), min_size=2, max_size=12),
    st.lists(st.floats(0.001, 100), min_size=2, max_size=12),
)
def test_what_is_not_longer_in_the_middle_is_never_slower(a, b):
    found = shift.compare(a, b, alarm=0.01)
    assert (
        not (found.slower and found.now_s <= found.before_s)
        and 0 <= found.p <= 1
        and found.visible_s >= shift.LEAST_S
    )


def _drawn(rng: random.Random, n: int, spread: float, more: float = 0.0) -> list[float]:
    return [1.6 * rng.lognormvariate(0, spread) + more for _ in range(n)]


@pytest.mark.parametrize("spread", [0.02, 0.05, 0.15])
def test_the_trials_it_asks_for_do_show_the_loss(spread):
    rng, alarm = random.Random(3), 0.004 / 11
    pilot = shift.compare(_drawn(rng, 200, spread), _drawn(rng, 200, spread), alarm)
    n = pilot.blocks_for(0.2, alarm)
    caught = [
        shift.compare(_drawn(rng, n, spread), _drawn(rng, n, spread, 0.2), alarm).slower
        for _ in range(60)
    ]
    assert sum(caught) >= 48, (n, sum(caught))


def test_a_load_as_noisy_as_15_per_cent_needs_dozens_of_trials_and_five_say_so():
    rng, alarm = random.Random(4), 0.004 / 11
    few = shift.compare(_drawn(rng, 5, 0.15), _drawn(rng, 5, 0.15, 0.2), alarm)
    assert (
        not few.slower
        and few.visible_s > 0.5
        and 40 < shift.Shift(1.6, 1.6, False, 1.0, 0.0, 0.15, (5, 5)).blocks_for(0.2, alarm) < 100
    )


def test_ranks_see_what_one_outlier_hides_from_the_mean():
    before, now = [1.6 + 0.01 * i for i in range(10)], [1.8 + 0.01 * i for i in range(9)] + [9.0]
    t_only = shift.student_tail(0.0, 18)
    found = shift.compare(before, now, alarm=0.001)
    assert found.slower and found.p < 0.001 < t_only


def test_common_lengthening_needs_three_phases_and_is_bounded():
    three = [([1.0] * 5, [1.08] * 5), ([2.0] * 5, [2.16] * 5), ([0.5] * 5, [0.54] * 5)]
    assert shift.common_drift(three, 0.1) == pytest.approx(math.log(1.08))
    assert shift.common_drift(three[:2], 0.1) == 0.0
    assert shift.common_drift([(a, [10 * x for x in b]) for a, b in three], 0.1) == pytest.approx(
        math.log(1.1)
    )
    assert shift.common_drift([(b, a) for a, b in three], 0.1) == 0.0

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import stats
from labkit.core.records import Run, Trial
from labkit.core.speedup import speedup
from labkit.errors import BadInput, IncomparableRecords

VALUES = st.lists(st.floats(0.001, 1e4), min_size=1, max_size=30)


@given(VALUES)
def test_the_interval_holds_the_median_and_stays_within_the_data(xs):
    low, high = stats.interval(xs)
    assert (
        min(xs) <= low <= stats.median(xs) * (1 + 1e-12)
        and stats.median(xs) <= high * (1 + 1e-12)
        and high <= max(xs)
    )


@given(VALUES)
def test_the_law_of_the_resampled_median_sums_to_one(xs):
    law = stats._median_law(sorted(xs))
    assert math.isclose(sum(p for _, p in law), 1, abs_tol=1e-9) and all(p >= 0 for _, p in law)


@pytest.mark.parametrize("n", [6, 7, 12, 25])
def test_the_exact_interval_agrees_with_resampling(n):
    draw = random.Random(n)
    xs = [draw.lognormvariate(0, 1) for _ in range(n)]
    resampled = sorted(stats.median(draw.choices(xs, k=n)) for _ in range(20_000))
    inner, outer = stats.interval(xs, 0.94), stats.interval(xs, 0.96)
    assert outer[0] <= resampled[500] <= inner[0] and inner[1] <= resampled[-501] <= outer[1]


def test_five_values_give_their_range_and_a_wider_level_never_narrows_it():
    assert stats.interval([5, 1, 4, 2, 3]) == (1, 5)
    assert stats.interval([5, 1, 4, 2, 3], 0.5) == (2, 4)


def test_many_values_take_the_ranks_of_the_normal_law():
    low, high = stats.interval(range(1001))
    assert low == pytest.approx(500 - 31, abs=2) and high == pytest.approx(500 + 31, abs=2)


@given(
    st.lists(st.tuples(st.floats(0.01, 100), st.floats(0.01, 100)), min_size=1, max_size=15).filter(
        lambda p: len(p) % 2
    )
)
def test_a_ratio_read_the_other_way_round_is_its_inverse(pairs):
    one, other = stats.paired_ratio(pairs), stats.paired_ratio([(b, a) for a, b in pairs])
    assert one["median"] == pytest.approx(1 / other["median"]) and one["low"] == pytest.approx(
        1 / other["high"]
    )
    assert one["significant"] == other["significant"]


def test_pairing_sees_through_drift_that_hides_a_difference_from_unpaired_runs():
    drift = [1.0, 1.5, 2.3, 3.4, 5.1, 7.6]
    pairs = [(0.9 * d, d) for d in drift]
    assert stats.paired_ratio(pairs)["significant"]
    assert not stats.unpaired_ratio([a for a, _ in pairs], [b for _, b in pairs])["significant"]


def test_four_pairs_are_never_significant_however_far_apart():
    assert (
        not stats.paired_ratio([(1, 10)] * 4)["significant"]
        and stats.paired_ratio([(1, 10)] * 5)["significant"]
    )


def test_an_interval_that_holds_one_is_not_significant():
    assert not stats.paired_ratio([(1.0, 1.1), (1.1, 1.0), (1, 1), (1.2, 1), (1, 1.2)])[
        "significant"
    ]


def test_clearly_different_runs_without_common_blocks_are_significant():
    found = stats.unpaired_ratio([1.0, 1.1, 1.05, 0.95, 1.02], [2.0, 2.2, 2.1, 1.9, 2.05])
    assert found["significant"] and found["low"] <= found["median"] <= found["high"] < 1


@pytest.mark.parametrize("bad", [[], [float("nan")]])
def test_nothing_or_not_a_number_is_refused_with_a_fix(bad):
    with pytest.raises(BadInput) as caught:
        stats.median(bad)
    assert caught.value.fix


def test_a_zero_duration_has_no_ratio():
    with pytest.raises(BadInput):
        stats.paired_ratio([(1.0, 0.0)])


def test_noise_is_not_moved_by_one_outlier():
    assert stats.noise([1.0, 1.01, 0.99, 1.02, 50]) < 0.05


@given(VALUES, st.floats(0, 1))
def test_a_quantile_lies_between_the_extremes(xs, q):
    assert min(xs) <= stats.quantile(xs, q) <= max(xs)


def _run(**arms: tuple[str, list[float]]) -> Run:
    trials = [
        Trial(name, block, 0, total_s=s, phases={"load": s / 2}, cache={"state": state})
        for name, (state, times) in arms.items()
        for block, s in enumerate(times)
    ]
    return Run(
        "r",
        "now",
        experiment={
            "arms": [{"name": n, "scenario": "warm-node", "link": "loopback"} for n in arms]
        },
        trials=tuple(trials),
    )


def test_a_speedup_is_how_many_times_faster_paired_by_block():
    found = speedup(
        _run(fast=("cold", [1, 2, 3, 4, 5]), naive=("cold", [2, 4, 6, 8, 10])), "fast", "naive"
    )
    assert (found["median"], found["low"], found["high"], found["n"], found["significant"]) == (
        2,
        2,
        2,
        5,
        True,
    )


def test_blocks_in_which_one_arm_failed_are_left_out():
    run = _run(fast=("cold", [1, 2, 3]), naive=("cold", [2, 4, 6]))
    broken = Run(
        "r",
        "now",
        experiment=run.experiment,
        trials=tuple(t if t.block else Trial(t.arm, 0, 0, outcome="oom") for t in run.trials),
    )
    assert speedup(broken, "fast", "naive")["blocks"] == [1, 2]


def test_a_speedup_of_one_phase():
    assert (
        speedup(_run(a=("cold", [1, 1]), b=("cold", [3, 3])), "a", "b", phase="load")["median"] == 3
    )


def test_a_warm_arm_is_not_compared_with_a_cold_one():
    with pytest.raises(IncomparableRecords, match="cache state"):
        speedup(_run(a=("warm", [1]), b=("cold", [3])), "a", "b")


def test_arms_of_two_scenarios_are_not_compared():
    run = _run(a=("cold", [1]), b=("cold", [3]))
    run.experiment["arms"][0]["scenario"] = "fresh-node"
    with pytest.raises(IncomparableRecords, match="scenario"):
        speedup(run, "a", "b")


def test_an_unknown_arm_is_answered_with_the_names_there_are():
    with pytest.raises(BadInput) as caught:
        speedup(_run(a=("cold", [1])), "a", "nave")
    assert "a" in caught.value.fix


def test_sureness_is_the_share_of_resamples_in_which_the_first_is_faster():
    assert stats.sureness([(1, 2)] * 5) == pytest.approx(1.0)
    assert stats.sureness([(2, 1)] * 5) == pytest.approx(0.0)
    assert stats.sureness([(1, 1)] * 5) == pytest.approx(0.5)
    mixed = stats.sureness([(1, 2), (1, 2), (2, 1), (1, 1.5), (3, 2)])
    assert 0.5 < mixed < 1


def test_more_blocks_are_asked_for_the_smaller_a_difference_is_beside_its_spread():
    spread = (0.8, 0.9, 1.0, 1.1, 1.25)
    needed = [stats.blocks_to_decide([(f * x, 1) for x in spread]) for f in (0.5, 0.8, 0.999)]
    assert needed[0] is not None and needed[1] is not None and needed[0] < needed[1]
    assert needed[2] is None and stats.blocks_to_decide([(1, 2)]) is None

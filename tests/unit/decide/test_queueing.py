from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.decide import breakeven, traces
from labkit.decide.queueing import Policy, replay
from labkit.errors import BadInput

TRACE = st.lists(st.floats(0, 1000), max_size=40).map(sorted)
POLICY = st.builds(
    lambda keep, low, more, ways: Policy(keep, low, max(1, low + more), ways),
    st.floats(0, 100) | st.just(math.inf),
    st.integers(0, 3),
    st.integers(0, 4),
    st.integers(1, 3),
)


@settings(deadline=None)
@given(TRACE, st.lists(st.floats(0, 60), min_size=1, max_size=5), st.floats(0, 30), POLICY)
def test_every_request_is_served_once_and_the_books_balance(trace, cold, service, policy):
    out = replay(trace, cold, service, policy)
    assert len(out.waits) == len(trace) and all(w >= 0 for w in out.waits)
    assert out.peak_replicas <= policy.max_replicas and out.waited_for_start <= len(trace)
    # work cannot be done by a GPU nobody paid for
    assert out.gpu_s >= len(trace) * service / policy.concurrency - 1e-6
    assert (
        all(end >= start for start, end in out.intervals)
        and len(out.intervals) == out.cold_starts + policy.min_replicas
    )


@given(TRACE.filter(lambda t: len(t) > 1), st.floats(0, 30))
def test_replicas_that_never_end_and_suffice_make_nobody_wait(trace, service):
    out = replay(trace, [99.0], service, Policy(math.inf, len(trace), len(trace)))
    assert set(out.waits) == {0.0} and out.cold_starts == 0


def test_the_first_request_waits_for_a_cold_start_and_the_next_within_keep_alive_does_not():
    out = replay([0, 100, 1000], [20.0], 1.0, Policy(keep_alive_s=300, max_replicas=1))
    assert out.waits == (20.0, 0.0, 20.0) and out.cold_starts == 2 and out.waited_for_start == 2


def test_a_replica_is_paid_for_from_its_start_to_the_end_of_its_keep_alive():
    out = replay([0, 1000], [20.0], 1.0, Policy(keep_alive_s=300, max_replicas=1))
    assert out.intervals[0] == (0, 20 + 1 + 300)


def test_requests_are_served_in_the_order_in_which_they_came():
    trace = [0, 1, 2, 3]
    out = replay(trace, [10.0], 5.0, Policy(max_replicas=1))
    starts = [a + w for a, w in zip(trace, out.waits, strict=True)]
    assert starts == [10, 15, 20, 25]


def test_a_request_does_not_start_a_replica_while_one_that_can_take_it_is_starting():
    assert replay([0, 1, 2], [10.0], 1.0, Policy(concurrency=4)).cold_starts == 1
    assert replay([0, 1, 2], [10.0], 1.0, Policy(concurrency=1)).cold_starts == 3


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_the_simulation_agrees_with_the_theory_of_one_server(load):
    draw = random.Random(5)
    trace = traces.poisson(load, 60_000, seed=7)
    out = replay(trace, [0.0], [draw.expovariate(1) for _ in trace], Policy(math.inf, 1, 1))
    assert sum(out.waits) / len(out.waits) == pytest.approx(load / (1 - load), rel=0.12)


def test_the_simulation_agrees_with_the_closed_form_of_scaling_to_zero():
    trace = traces.poisson(0.002, 86_400 * 300, seed=11)
    out = replay(trace, [60.0], 0.0, Policy(300, 0, 1, 10**6))
    wanted = breakeven.scaling(0.002, 60, 300)
    assert out.gpu_s / out.duration_s == pytest.approx(wanted.on_share, rel=0.03)
    assert sum(out.waits) / len(out.waits) == pytest.approx(wanted.mean_wait_s, rel=0.03)
    assert out.cold_share == pytest.approx(wanted.cold_share, rel=0.03)


@pytest.mark.parametrize("shape", traces.TRACES)
def test_a_generated_trace_has_its_rate_ascends_and_repeats_with_its_seed(shape):
    make = traces.TRACES[shape]
    trace = make(0.1, 86_400 * 5, seed=3)
    assert len(trace) == pytest.approx(0.1 * 86_400 * 5, rel=0.1)
    assert (
        trace == sorted(trace) == make(0.1, 86_400 * 5, seed=3) != make(0.1, 86_400 * 5, seed=4)
        and trace[-1] < 86_400 * 5
    )


def test_a_day_has_its_quiet_hours():
    trace = traces.diurnal(0.1, 86_400, seed=1)
    night, noon = (sum(1 for t in trace if a <= t < a + 7200) for a in (0, 86_400 / 2 - 3600))
    assert noon > 5 * night


@pytest.mark.parametrize(
    "bad",
    [
        {"keep_alive_s": -1},
        {"min_replicas": 3, "max_replicas": 2},
        {"concurrency": 0},
        {"max_replicas": 0},
    ],
)
def test_a_policy_that_makes_no_sense_is_refused(bad):
    with pytest.raises(BadInput):
        Policy(**bad)


def test_without_measured_starts_there_is_nothing_to_draw():
    with pytest.raises(BadInput, match="cold-start"):
        replay([0.0], [], 1.0)

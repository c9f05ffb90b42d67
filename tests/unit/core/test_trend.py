from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import records, shipped
from labkit.core import trend as trends
from labkit.core.records import Run, Trial
from labkit.core.trend import trend


def run_of(*arms: list[float], disturbed: bool = False) -> Run:
    trials = [
        Trial(f"arm {a}", block, a, total_s=s, disturbed="busy" if disturbed else "")
        for a, times in enumerate(arms)
        for block, s in enumerate(times)
    ]
    return Run("id", "2026-01-01T00:00:00+00:00", trials=tuple(trials))


@pytest.mark.parametrize(
    ("arms", "trending"),
    [
        ([[13.0, 21.6, 27.7, 28.9, 28.4]], True),  # the inode drift
        ([[5.0, 4.0, 3.0, 2.0, 1.0]], True),
        ([[10.0, 10.1, 10.2, 10.3, 10.4]], False),  # sure, and too small to matter
        ([[1.0, 2.0, 3.0]], False),  # one order in six
        ([[1.0, 2.0, 3.0], [10, 20, 30.0]], True),  # two arms: one in 36
        ([[1.0, 2.0, 3.0], [30, 20, 10.0]], False),
        ([[3.0, 1.0, 2.0, 3.5, 1.5]], False),
        ([[2.0] * 8], False),
        ([[1.0]], False),
        ([], False),
    ],
)
def test_a_record_trends_where_order_explains_its_times(arms, trending):
    found = trend(run_of(*arms))
    assert bool(found) is trending
    if found:
        assert "trend with their order" in found.words


def test_a_disturbed_trial_has_no_vote():
    assert trend(run_of([1.0, 2, 3, 4, 5, 6], disturbed=True)) is None


@pytest.mark.parametrize("sizes", [[2], [4], [3, 3], [4, 2, 3]])
def test_the_chance_is_the_share_of_all_orders(sizes):
    each = [[trends._votes(order) for order in itertools.permutations(range(n))] for n in sizes]
    sums = [sum(votes) for votes in itertools.product(*each)]
    for votes in range(sum(n * (n - 1) // 2 for n in sizes) + 1):
        share = sum(s >= votes for s in sums) / len(sums)
        assert trends._chance(sizes, votes) == pytest.approx(share)


def test_the_normal_law_goes_on_where_the_exact_one_ends(monkeypatch):
    exact = trends._chance([40], 150)
    monkeypatch.setattr(trends, "_EXACT_UP_TO_PAIRS", 0)
    assert trends._chance([40], 150) == pytest.approx(exact, rel=0.1)


@given(st.lists(st.floats(0.1, 1e3), min_size=2, max_size=9))
def test_time_reversed_the_drift_is_reversed(times):
    forward, backward = trend(run_of(times)), trend(run_of(times[::-1]))
    assert (forward is None) is (backward is None)
    if forward and backward:
        assert forward.drift == pytest.approx(-backward.drift)
        assert forward.chance == backward.chance


def _is_run(doc: dict) -> bool:
    return "kind" not in doc and "trials" in doc


RECORDED = sorted(
    p for p in Path(shipped.recorded()).rglob("*.json") if _is_run(json.loads(p.read_text()))
)


@pytest.mark.parametrize("path", RECORDED, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_no_recorded_run_trends_with_its_order(path):
    found = trend(records.read(path))
    assert not found, found.words

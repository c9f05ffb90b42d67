"""Restore against start: the two lines cross where the rule says."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from labkit.snapshot.breakeven import Case, break_even_rate


@given(
    weights=st.integers(0, 10**11),
    heap=st.integers(10**6, 10**9),
    computed=st.floats(0.1, 60),
    fixed=st.floats(0.0, 5),
)
def test_above_the_break_even_rate_a_restore_wins_and_below_it_a_start(
    weights, heap, computed, fixed
):
    case = Case(weights, heap, computed, fixed, copy_bytes_per_s=float("inf"))
    rate = case.break_even_bytes_per_s()
    if rate == float("inf"):
        assert computed <= fixed
        return
    assert case.restore_s(rate * 1.01) <= case.start_s(rate * 1.01) + 1e-6
    assert case.restore_s(rate * 0.99) >= case.start_s(rate * 0.99) - 1e-6


def test_a_start_that_computes_nothing_is_never_beaten():
    assert break_even_rate(1_000_000, 0.2, 0.2) == float("inf")


def test_the_figure_has_a_text_twin_that_names_the_verdict():
    from labkit.viz.snapshots import break_even, inside

    picture = break_even(Case(250_000_000, 170_000_000, 3.5, 0.3), 1e9)
    assert "break-even at" in picture.text and picture.svg().startswith("<svg")
    assert "anonymous memory" in inside({"anonymous": 10**8, "/usr/lib/x.so": 10**6}).text

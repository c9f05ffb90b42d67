"""Cells of the tables of recorded GPU trials: medians with their range, shares, and the table that
carries the host's stamp.

    middle([2.0, 2.1, 2.2])          # '2.10 s (2.00–2.20 s)'
    share(16e9, 50e9)                # '32%'

Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from labkit.core import stats
from labkit.core.units import show_s
from labkit.lessons.gpu_record import Record, gaps, numbers, stamp, words
from labkit.viz.table import Table

NONE = "–"
Records = Sequence[Record]


def median(values: Sequence[float]) -> float | None:
    return stats.median(values) if values else None


def middle(values: Sequence[float], show: Callable[[float], str] = show_s) -> str:
    """The median, and the range of several."""
    if not values:
        return NONE
    shown, low, high = (show(v) for v in (stats.median(values), min(values), max(values)))
    if low == high:
        return shown
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return f"{shown} ({low.partition(' ')[0] if same else low}–{high})"


def share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.0%}" if part is not None and whole else NONE


def optional(value: float | None, show: Callable[[float], str] = show_s) -> str:
    """A dash for what is not known."""
    return NONE if value is None else show(value)


def yes(values: Sequence[object]) -> str:
    """Whether all of what was looked at is true."""
    known = [v for v in values if isinstance(v, bool)]
    if not known:
        return NONE
    return "all" if all(known) else f"{sum(known)} of {len(known)}"


def sums(rows: Sequence[Mapping[str, object]], *paths: tuple[str, ...]) -> list[float]:
    """The sum of the numbers at several paths, for each row."""
    return [sum(parts) for parts in zip(*(numbers(rows, *p) for p in paths), strict=False)]


def named_gaps(records: Records, *names: str) -> list[tuple[str, str]]:
    """(model, "trial: reason") of trials that left nothing; those that were not in a plan are left
    out."""
    found = []
    for name in names:
        missing = [(p, why) for p, why in gaps(records, name) if not why.startswith("not tried")]
        found += [(preset, f"{name}: {why}") for preset, why in missing]
    return found


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Records,
    caption: str,
    notes: Sequence[str] = (),
) -> Table:
    """Stamped and dated. A row that is too short has nothing in its other cells."""
    stamped = "no GPU trials are recorded: make gpu on a GPU host makes a record"
    if records:
        stamped = " · ".join(filter(None, (stamp(records), caption, records[-1].created[:10])))
    return Table(
        tuple(head),
        tuple((*map(words, row), *[""] * (len(head) - len(row))) for row in rows),
        stamped,
        tuple(notes),
    )

"""How many times faster one arm of a run is than another: only where they may be compared, paired
within blocks.

    speedup(run, "estargz-lazy", "naive")["median"]

Lesson: notebooks/08_stacking."""

from __future__ import annotations

from labkit.core import printable, question, stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.errors import BadInput


def speedup(run: Run, arm: str, against: str, phase: str = "") -> JsonObject:
    """How many times faster `arm` is than `against` in a `records.Run`: time of `against` ÷ time of
    `arm`, paired by block.

    `phase`: of one phase instead of the total. Adds "arm", "against", "blocks". Raises BadInput
    without a common block, IncomparableRecords when the two arms differ in anything but their
    stack: scenario, link, proven cache state."""
    for name in (arm, against):
        if name not in run.arm_names:
            raise BadInput(
                printable.line(f"no arm {name!r} in run {run.id}"),
                fix=printable.line("one of: " + ", ".join(run.arm_names)),
            )
    question.same_start(run, arm, against)
    pairs, blocks = [], []
    for block in sorted({t.block for t in run.trials}):
        times = [_time_of(run, name, block, phase) for name in (against, arm)]
        known = [t for t in times if t is not None and t > 0]
        if len(known) == 2:
            pairs.append(known)
            blocks.append(block)
    if not pairs:
        raise BadInput(
            printable.line(f"{arm} and {against}") + " share no block in which both succeeded",
            fix="labkit run A B --blocks 5 runs both in one experiment",
        )
    return {
        "arm": arm,
        "against": against,
        "phase": phase or "total",
        "blocks": blocks,
        **stats.paired_ratio(pairs),
    }


def _time_of(run: Run, arm: str, block: int, phase: str) -> float | None:
    found = [
        t.phases.get(phase) if phase else t.total_s for t in run.of_arm(arm) if t.block == block
    ]
    known = [t for t in found if t is not None]
    return stats.median(known) if known else None

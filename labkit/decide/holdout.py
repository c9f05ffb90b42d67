"""Left out, then predicted: the error of the planner on sizes it has not seen, the only error worth
quoting.

    for row in hold_out([tiny, small, big, larger_image], "naive"):
        row["preset"], row["predicted_s"], row["measured_s"], row["beyond"]     # what had to be
            extrapolated

A line through two sizes has no error on them. Between measured sizes a prediction interpolates;
beyond them it extrapolates, and caches, memory and disks may bend the line there. Lesson:
notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Sequence

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.decide.points import points, sizes_of
from labkit.decide.predict import model_of
from labkit.decide.reach import SAME_SIZE
from labkit.errors import BadInput


def hold_out(runs: Sequence[Run], arm: str) -> list[JsonObject]:
    """Fit without one run (a size of model and image), predict it, set it beside what was measured;
    once for each run. Raises BadInput for fewer than two sizes.

    Rows: {"run", "preset", "sizes", "predicted_s", "measured_s", "error_share" (signed), "inside"
    (measured within the forecast), "unseen" (sizes that no other run had), "beyond" (those of them
    outside what the others span: an extrapolation), "factor" (times the others' largest size,
    1.0 within it), "from_one_size" (the others had one size where this one differs: the error is
    that of a guess), "phases"}."""
    good = [r for r in runs if r.of_arm(arm)]
    if len(good) < 2:
        raise BadInput(
            "a hold-out check needs records of two sizes at least",
            why="an error on the data of the fit says nothing about other sizes",
            fix=(
                f"labkit run {arm} --preset tiny --blocks 3; labkit run {arm} --preset small"
                " --blocks 3"
            ),
        )
    return [_row(left, [r for r in good if r is not left], arm) for left in good]


def against(runs: Sequence[Run], apart: Sequence[Run], arm: str) -> list[JsonObject]:
    """Rows as of `hold_out`, of runs that are in no fit: each predicted from all of `runs`. Raises
    BadInput for one without a good trial, IncomparableRecords for one of another question."""
    good = [r for r in runs if r.of_arm(arm)]
    for run in apart:
        if run.id in {r.id for r in good}:
            raise BadInput(
                f"run {run.id} is in the fit",
                why="a line comes close to the points it was drawn through",
                fix="give a record of another size, or leave each out in turn: --hold-out alone",
            )
        points([*good, run] if run.of_arm(arm) else [run], arm)  # of one question, and of this arm
    return [_row(run, good, arm) for run in apart]


def _row(left: Run, others: Sequence[Run], arm: str) -> JsonObject:
    model = model_of(others, arm)
    mine, theirs = _median_sizes(left, arm), [_median_sizes(r, arm) for r in others]
    forecast = model.predict(mine, far=True)
    predicted, low, high = forecast.total()
    measured = stats.median([t.total_s for t in left.of_arm(arm) if t.total_s is not None])
    phases = {
        p: {
            "predicted_s": f.seconds,
            "measured_s": stats.median([t.phases[p] for t in left.of_arm(arm) if p in t.phases]),
        }
        for p, f in forecast.phases.items()
        if any(p in t.phases for t in left.of_arm(arm))
    }
    drivers = sorted({f.driver for f in model.fits.values() if f.s_per_byte > 0} & set(mine))
    spans = {d: [o[d] for o in theirs if d in o] for d in drivers}
    unseen = [d for d in drivers if not any(_same(mine[d], x) for x in spans[d])]
    return {
        "run": left.id,
        "preset": size_name(left),
        "sizes": mine,
        "predicted_s": predicted,
        "measured_s": measured,
        "error_share": predicted / measured - 1,
        "inside": low <= measured <= high,
        "phases": phases,
        "unseen": unseen,
        "beyond": [d for d in unseen if not min(spans[d]) < mine[d] < max(spans[d])],
        "factor": forecast.factor,
        "from_one_size": any(f.guessed and f.driver in unseen for f in model.fits.values()),
    }


def size_name(run: Run) -> str:
    """How a size is written: `small`, `80MB`, `tiny+400 MB` for a larger image."""
    from labkit.core.units import show_bytes

    extra_bytes = run.experiment.get("image_extra_bytes", 0)
    return str(run.experiment.get("preset", "")) + (
        f"+{show_bytes(extra_bytes)}" if extra_bytes else ""
    )


def _median_sizes(run: Run, arm: str) -> dict[str, float]:
    found = [sizes_of(t) for t in run.of_arm(arm)]
    return {
        k: stats.median([s[k] for s in found if k in s])
        for k in sorted({k for s in found for k in s})
    }


def _same(one: float, other: float) -> bool:
    return one < SAME_SIZE * other and other < SAME_SIZE * one

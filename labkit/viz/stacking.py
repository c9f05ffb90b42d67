"""Stacks taken apart: what each technique saves alone, what they save together, and the article's
claims beside it all.

    effects_table(run)        every arm against naive: ratio with interval, seconds saved, phases
        moved
    predictions(run)          combined arms: sum of separate gains and critical path against what
        was measured
    claims_table([run])       the article's rows, generated from records; published figures beside,
        with their setup

Tables are HTML in a page and text elsewhere; nothing in them is typed. Lesson:
notebooks/08_stacking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.errors import BadInput
from labkit.stack import ablate
from labkit.stack.claims import ROWS, Row, claims
from labkit.study.record import of_run
from labkit.viz import arm_rows
from labkit.viz import theme as look
from labkit.viz.table import Table
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def _ratio(r: JsonMapping | None) -> str:
    if not r:
        return "–"
    if r.get("n", stats.MIN_PAIRS) < stats.MIN_PAIRS:  # no interval, and nothing to be significant
        return f"{r['median']:.2f}, n = {r['n']}"
    return f"{r['median']:.2f} ({r['low']:.2f}–{r['high']:.2f})" + (
        "" if r.get("significant", True) else ", not significant"
    )


def effects_table(run: Run, against: str = "naive") -> Table:
    """Every arm of the run against one; an arm that could not run here keeps its row and its
    reason."""
    if against not in run.arm_names:
        raise BadInput(
            f"no arm {against!r} in run {run.id}", fix="one of: " + ", ".join(run.arm_names)
        )
    found = {e.arm: e for e in ablate.effects(run, against)}
    base = found[against].phases
    rows = []
    for e in found.values():
        if e.missing:
            rows.append((e.arm, "–", "–", "–", f"missing: {e.missing[:120]}"))
        elif e.arm == against:
            rows.append((e.arm, "1", "–", str(e.n), "the base"))
        else:
            moved = sorted(
                ((p, e.phases.get(p, 0.0) - base.get(p, 0.0)) for p in set(base) | set(e.phases)),
                key=lambda m: -abs(m[1]),
            )[:3]
            rows.append(
                (
                    e.arm,
                    _ratio(e.ratio),
                    show_s(e.saved_s),
                    str(e.n),
                    ", ".join(
                        f"{p} {'+' if d > 0 else ''}{show_s(d)}" for p, d in moved if abs(d) > 0.005
                    ),
                )
            )
    caption = arm_rows.caption(run, [n for n in run.arm_names if run.of_arm(n)])
    return Table(
        ("arm", f"time ÷ {against}", "saved", "n", "phases that moved most"),
        tuple(rows),
        " · ".join(filter(None, (arm_rows.stamp(run), caption))),
    )


def predictions(run: Run) -> Picture:
    """Combined arms: what two simple models expected, and what happened. Raises BadInput where no
    combination was measured."""
    found = foretold(run)
    if not found:
        raise BadInput(
            f"run {run.id} has no combined arm whose parts were also measured alone",
            fix="labkit ablate --kinds add-one,ladder",
        )
    text = "\n".join(
        f"{p.arm}: sum of gains {show_s(p.sum_s)} ({p.sum_error:+.0%}), critical path"
        f" {show_s(p.path_s)} ({p.path_error:+.0%}), measured {show_s(p.measured_s)}"
        for p in found
    )
    caption = arm_rows.caption(run, [p.arm for p in found])
    return Picture(
        lambda theme: _draw(run, found, theme),
        alt="Predicted against measured time to first token. " + text.replace("\n", "; "),
        text=f"{text}\n{caption}",
        name="predictions",
    )


def foretold(run: Run) -> list[ablate.Prediction]:
    """Of each combined arm whose parts were also measured alone; none in a run without both."""
    every = (ablate.predict(run, name) for name in run.arm_names if name != "naive")
    return [p for p in every if p and _combined(run, p.arm)]


def _combined(run: Run, arm: str) -> bool:
    arms = {a["name"]: a["stack"] for a in run.arms}
    return (
        sum(arms[arm].get(layer) != name for layer, name in arms["naive"].items())
        + sum(layer not in arms["naive"] for layer in arms[arm])
        > 1
    )


def _draw(run: Run, found: Sequence[ablate.Prediction], theme: Theme) -> Figure:
    figure, axes = arm_rows.frame(
        run, [p.arm for p in found], "Combined stacks: predicted and measured", 2.3, theme, 0.3
    )
    kinds = (
        ("sum of separate gains", "D", lambda p: p.sum_s, look.ARM_COLOURS[1]),
        ("critical path", "s", lambda p: p.path_s, look.ARM_COLOURS[3]),
    )
    for y, p in enumerate(found):
        low, high = stats.interval([t.first_token_s for t in run.of_arm(p.arm)])
        axes.plot([low, high], [y + 0.2] * 2, "|-", color=theme.ink, lw=1.6, ms=9, mew=1.6)
        axes.plot(
            p.measured_s,
            y + 0.2,
            "o",
            ms=9,
            color=look.ARM_COLOURS[0],
            label="measured" if not y else None,
        )
        for i, (label, marker, value, colour) in enumerate(kinds):
            axes.plot(
                value(p),
                y - 0.22 + 0.2 * i,
                marker,
                ms=8,
                color="none",
                mec=colour,
                mew=2,
                label=label if not y else None,
            )
        errors = f"sum {p.sum_error:+.0%}, path {p.path_error:+.0%}"
        arm_rows.beside(axes, 1.03, y, errors, fontsize=look.BASE_PT - 1)
    axes.set_xlim(0, max(max(p.sum_s, p.path_s, p.measured_s) for p in found) * 1.08)
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        ncols=3,
        frameon=False,
        fontsize=look.BASE_PT - 1.5,
        borderaxespad=0.2,
    )
    return figure


def claims_table(
    runs: Iterable[Run], more: Iterable[Row] = (), *, unmeasured: bool = True
) -> Table:
    """The article's table: claim, what was measured where, verdict. Replayed runs say so in their
    setup. `more`: of GPU trials (labkit.lessons.gpu_summary). `unmeasured`: also the rows that
    nothing measured, each with the reason."""
    pool = list(runs)
    rows = []
    notes: dict[str, None] = {}
    for r in claims(pool, more):
        if not r.technique and not unmeasured:
            continue
        replayed = f", replayed from {r.recorded_on}" if r.recorded_on else ""
        setup = r.setup if replayed.removeprefix(", ") in r.setup else r.setup + replayed
        notes.update(
            (f"{r.label} – {p['what']}: {p['figure']} ({p['setup']}; {p['source']})", None)
            for p in r.published
        )
        rows.append(
            (
                r.label,
                r.claim.text,
                r.technique or "–",
                _ratio(r.ratio),
                _ratio(r.total),
                _verdict(r) if r.technique else _unmeasured(r.label, pool),
                setup or "–",
            )
        )
    disturbed = sum(bool(t.disturbed) for r in pool for name in r.arm_names for t in r.of_arm(name))
    return Table(
        (
            "article's row",
            "claim",
            "measured as",
            "its phases ÷ naive",
            "whole start ÷ naive",
            "verdict",
            "setup",
        ),
        tuple(rows),
        "Verdicts compare the interval of the measured ratio with the claimed range; a claim about"
        " a GPU is not judged on a CPU (other hardware)."
        + (f" {disturbed} of the trials were disturbed by other work." if disturbed else ""),
        tuple(notes),
        "Published by others, with their setup: beside ours, never combined with them",
    )


def _verdict(row: Row) -> str:
    return f"{row.verdict}: {row.wanting}" if row.wanting else row.verdict


def _unmeasured(label: str, pool: Sequence[Run]) -> str:
    """A row that nothing measured: because its techniques could not run, or because nobody asked
    for them; of a study, its own reason."""
    names = next(r.techniques for r in ROWS if r.label == label)
    reasons = [
        why
        for run in pool
        for arm, why in _left_out(run).items()
        if any(name in arm.split(" + ") for name in names)
    ]
    if reasons:
        return f"not on this host: {reasons[0]}"
    trials = [t for run in pool for t in run.trials]
    arms = [t.arm for t in trials if t.outcome == "unavailable"]
    unavailable = any(name in arm for arm in arms for name in names)
    return "not on this host" if unavailable else "not in this run"


def _left_out(run: Run) -> dict[str, str]:
    """The arms that a study has no five blocks of, each with the reason; {} of any other run."""
    try:
        return of_run(run).left_out
    except BadInput:
        return {}

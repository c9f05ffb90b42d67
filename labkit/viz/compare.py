"""Arms against each other: every raw point (strip), medians with intervals and ratios (compare),
phases stacked (phases).

    strip(run)      one dot a trial, the median and its bootstrap interval; failed trials are
        crosses at the edge, never left out; disturbed ones are hollow, and grey where another trial
        of their block stands for them
    compare(run)    medians, and the paired ratio to a baseline; "not significant" where its
        interval holds 1 or n < 5
    phases(run)     the median trial of each arm, its phases end to end

Arms of different scenarios, links or cache states are refused, as by `labkit compare`. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run, Trial
from labkit.core.speedup import speedup
from labkit.core.units import show_s
from labkit.errors import BadInput, IncomparableRecords
from labkit.viz import arm_rows, captions, phase_bars
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def strip(run: Run, arms: Sequence[str] | None = None) -> Picture:
    """Raw trials of each arm. Raises BadInput for a run without trials."""
    names = arm_rows.chosen(run, arms)
    head = arm_rows.headed("Time to first token, every trial", run)
    points = captions.strip_text(run, names)
    alt = arm_rows.headed("Strip plot of raw trials.", run) + " " + points.replace("\n", ". ")
    return Picture(
        lambda theme: _draw_strip(run, names, theme),
        alt=alt,
        text=f"{head}\n{points}\n{arm_rows.caption(run, names)}",
        name="strip",
    )


@dataclass(frozen=True)
class _Compared:
    """One arm: its median, seconds, with the interval (None without a good trial), and what stands
    beside it."""

    arm: str
    note: str
    median_s: float | None = None
    low_s: float = 0.0
    high_s: float = 0.0
    n: int = 0

    @property
    def words(self) -> str:
        if self.median_s is None:
            return f"{self.arm}: {self.note}"
        interval = f"({show_s(self.low_s)} – {show_s(self.high_s)})"
        return f"{self.arm}: {show_s(self.median_s)} {interval}, n = {self.n}, {self.note}"


def compare(
    run: Run, against: str = "", arms: Sequence[str] | None = None, phase: str = ""
) -> Picture:
    """Median of each arm with its interval, and its paired ratio to `against` (default: the first
    arm). `phase`: of one phase only."""
    names = arm_rows.chosen(run, arms)
    base = against or names[0]
    if base not in names:
        raise BadInput(f"no arm {base!r} in run {run.id}", fix="one of: " + ", ".join(names))
    compared = [_compared(run, name, base, phase) for name in names]
    lines = [c.words for c in compared]
    title = f"{phase or 'Time to first token'}, medians with 95 % intervals, against {base}"
    return Picture(
        lambda theme: _draw_compare(run, compared, base, phase, theme),
        alt=f"{arm_rows.headed('Comparison plot.', run)} {'; '.join(lines)}.",
        text="\n".join([arm_rows.headed(title, run), *lines, arm_rows.caption(run, names)]),
        name="compare",
    )


def phases(run: Run, arms: Sequence[str] | None = None) -> Picture:
    """Stacked phases of each arm's median trial. Time that two phases share is drawn once, for the
    one that began first."""
    shown = [captions.choose(run, name) for name in arm_rows.chosen(run, arms) if run.of_arm(name)]
    titles = "; ".join(captions.title(s) for s in shown)
    return Picture(
        lambda theme: _draw_phases(run, shown, theme),
        alt=f"Stacked phases of the median trial of each arm. {titles}.",
        text="\n\n".join(captions.waterfall_text(s) for s in shown),
        name="phases",
    )


def _compared(run: Run, name: str, base: str, phase: str) -> _Compared:
    trials = run.of_arm(name)
    times = [t for t in (_time(trial, phase) for trial in trials) if t is not None]
    if not times:
        return _Compared(name, f"has no phase {phase}" if trials else "no good trial")
    note = "baseline"
    if name != base:
        try:
            note = _ratio_words(speedup(run, name, base, phase))
        except IncomparableRecords:
            raise
        except BadInput as error:
            note = error.what
    if disturbed := sum(bool(t.disturbed) for t in trials):
        note += f"; {disturbed} disturbed"
    low_s, high_s = stats.interval(times)
    return _Compared(name, note, stats.median(times), low_s, high_s, len(times))


def _time(trial: Trial, phase: str) -> float | None:
    return trial.phases.get(phase) if phase else trial.total_s


def _ratio_words(r: JsonObject) -> str:
    if not r["significant"]:
        return "not significant" + (
            f" (n = {r['n']} < {stats.MIN_PAIRS})" if r["n"] < stats.MIN_PAIRS else ""
        )
    ratio, low, high = r["median"], r["low"], r["high"]
    if ratio >= 1:
        return f"{ratio:.2f}× faster ({low:.2f}–{high:.2f})"
    return f"{1 / ratio:.2f}× slower ({1 / high:.2f}–{1 / low:.2f})"


def _draw_strip(run: Run, names: list[str], theme: Theme) -> Figure:
    failed = {n: [t.outcome for t in run.of_arm(n, only_ok=False) if not t.ok] for n in names}
    right_in = 1.75 if any(failed.values()) else 0.35
    figure, axes = arm_rows.frame(run, names, "Time to first token, every trial", right_in, theme)
    for y, name in enumerate(names):
        counted = [t for t in run.of_arm(name) if t.total_s is not None]
        times = [t.first_token_s for t in counted]
        for t in run.repeated(name):
            axes.plot(t.first_token_s, y - 0.12, "o", ms=6, color="none", mec=theme.faint, mew=0.8)
        for i, trial in enumerate(counted):
            # Spread by block, not at random: the order in time stays visible, and the figure is the
            # same every time.
            lift = 0.44 * ((i + 0.5) / len(times) - 0.5) - 0.12
            colour = arm_rows.colour(run, name)
            fill, edge, width = (
                ("none", colour, 1.4) if trial.disturbed else (colour, theme.ink, 0.4)
            )
            axes.plot(times[i], y + lift, "o", ms=6, color=fill, mec=edge, mew=width)
        if times:
            ink = theme.ink
            axes.plot(stats.interval(times), [y + 0.28] * 2, "-", color=ink, lw=1.3, zorder=4)
            median = [stats.median(times)] * 2
            axes.plot(median, [y + 0.18, y + 0.38], "-", color=ink, lw=2.2, zorder=4)
        # Beside the axis, not on it: a failed trial has no time.
        counts = [(kind, failed[name].count(kind)) for kind in sorted(set(failed[name]))[:3]]
        crosses = [f"✕ {kind}" + (f" ×{n}" if n > 1 else "") for kind, n in counts]
        if crosses:
            arm_rows.beside(axes, 1.02, y, "\n".join(crosses), fontsize=look.BASE_PT - 1)
    drawn = [t for n in names for t in (*run.of_arm(n), *run.repeated(n))]
    longest_s = max([t.total_s or 0 for t in drawn], default=1.0)
    axes.set_xlim(0, longest_s * 1.04 or 1.0)
    return figure


def _draw_compare(
    run: Run, compared: list[_Compared], base: str, phase: str, theme: Theme
) -> Figure:
    quantity = f"Phase {phase}" if phase else "Time to first token"
    title = f"{quantity}: medians with 95 % intervals, against {base}"
    figure, axes = arm_rows.frame(run, [c.arm for c in compared], title, 3.05, theme)
    small, faint = look.BASE_PT - 1, theme.faint
    if phase:
        axes.set_xlabel("seconds", fontsize=small)
    for y, one in enumerate(compared):
        if one.median_s is None:
            arm_rows.beside(axes, 1.03, y, one.note, fontsize=small, color=faint)
            continue
        colour = arm_rows.colour(run, one.arm)
        # Hollow: the difference to the baseline is not significant.
        fill = "none" if one.note.startswith("not significant") else colour
        axes.plot(one.median_s, y, "o", ms=10, color=fill, mec=colour, mew=2, zorder=3)
        bounds = [one.low_s, one.high_s]
        axes.plot(bounds, [y, y], "|-", color=theme.ink, lw=1.6, ms=9, mew=1.6, zorder=4)
        arm_rows.beside(axes, 1.03, y - 0.17, show_s(one.median_s), fontweight="bold")
        arm_rows.beside(axes, 1.03, y + 0.19, one.note, fontsize=small, color=faint)
    axes.set_xlim(0, max([one.high_s for one in compared] + [1e-9]) * 1.06)
    return figure


def _draw_phases(run: Run, shown: list[captions.Shown], theme: Theme) -> Figure:
    used = phase_bars.used(s.trial for s in shown)
    figure, axes = arm_rows.frame(
        run,
        [s.arm["name"] for s in shown],
        "Where the time goes: the median trial of each arm",
        1.05,
        theme,
        0.3 * (1 + len(used) // 7),
    )
    for y, s in enumerate(shown):
        phase_bars.stacked(axes, y, s.trial, theme)
        arm_rows.beside(axes, 1.02, y, show_s(s.trial.total_s or 0), fontweight="bold")
    axes.set_xlim(0, max(s.trial.total_s or 0 for s in shown) * 1.01)
    axes.legend(
        handles=phase_bars.key(used, theme),
        ncols=min(len(used) + 1, 7),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        frameon=False,
        fontsize=look.BASE_PT - 1.5,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    return figure

"""The article's ladder on one host: a bar a rung from naive up, its phases stacked, seconds and
ratio to naive beside it.

    ladder(answered(study))                      # for a page; narrow=True: for a phone
    ladder(answered(study)).save("ladder.png")

A bar is the arm's median trial, its whisker the interval of the median; the thin line below it is
its floor, its bytes ÷ the link's rate. A rung that this host cannot run says why, and beneath it,
hatched and without colour, stands a recorded run's bar, on its own host's seconds. Lesson:
notebooks/08_stacking."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonMapping
from labkit.core.stats import MIN_PAIRS
from labkit.core.units import show_s
from labkit.study.answers import Answer, Rung, Timed
from labkit.study.record import NAIVE
from labkit.viz import arm_rows, phase_bars
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TITLE = "The ladder: from the request to the first token, rung by rung"


@dataclass(frozen=True)
class _Size:
    """Of a figure, in inches and points: on a page, on a phone."""

    width_in: float
    left_in: float
    right_in: float
    row_in: float
    columns: int  # of the key
    chars: int  # of a line of the caption
    reason_chars: int
    text_pt: float


_WIDE = _Size(9.0, 1.72, 2.45, 0.31, 9, 150, 78, look.BASE_PT)
_NARROW = _Size(4.6, 0.12, 0.12, 0.62, 4, 76, 64, look.BASE_PT)


def ladder(answer: Answer, *, narrow: bool = False) -> Picture:
    """The figure of a study's answer. `narrow`: labels stand above their bars."""
    lines = [rung_words(rung) for rung in answer.rungs]
    head = arm_rows.headed(TITLE, answer.naive.run)
    return Picture(
        lambda theme: _draw(answer, _NARROW if narrow else _WIDE, narrow, theme),
        alt=f"{head}. {'; '.join(lines)}. {_floor_words(answer)}",
        text="\n".join([head, *lines, _floor_words(answer), caption(answer)]),
        name="ladder",
    )


def label(rung: Rung) -> str:
    return rung.step.label if rung.step.kind == NAIVE else f"+ {rung.step.label}"


def times_faster(ratio: JsonMapping) -> str:
    """A ratio of times, new ÷ old, as how many times faster with its interval, whether it is
    significant or not; "" where nothing is known."""
    if not ratio or ratio["median"] is None:
        return ""
    median, low, high = (ratio[key] for key in ("median", "low", "high"))
    if median > 1:
        return f"{median:.2f}× slower ({low:.2f}–{high:.2f})"
    return f"{_times(median)}× faster ({_times(high)}–{_times(low)})"


def _times(ratio: float) -> str:
    times = 1 / max(ratio, 1e-4)
    return f"{times:.2f}" if times < 2 else f"{times:.1f}" if times < 20 else f"{times:.0f}"


def ratio_words(ratio: JsonMapping) -> str:
    """How a rung stands to naive; "not significant" where that is the answer."""
    if not ratio:
        return ""
    if ratio["n"] < MIN_PAIRS:
        return f"n = {ratio['n']}: no verdict"
    return times_faster(ratio) if ratio["significant"] else "not significant"


def rung_words(rung: Rung) -> str:
    """The rung in a line."""
    if rung.here:
        return f"{label(rung)}: {_measured_words(rung.here, rung.step.kind == NAIVE)}"
    beside = f"; recorded on {_recorded_words(rung.beside)}" if rung.beside else ""
    return f"{label(rung)}: not here: {rung.why_not}{beside}"


def _measured_words(timed: Timed, base: bool) -> str:
    words = f"{show_s(timed.median_s)} ({show_s(timed.low_s)} – {show_s(timed.high_s)})"
    words += f", n = {timed.n}" + (f", {timed.failed} failed" if timed.failed else "")
    words += f", {timed.disturbed} disturbed by other work" if timed.disturbed else ""
    ratio = "" if base else ratio_words(timed.ratio)
    floor = f", floor {show_s(timed.floor_s)}" if timed.floor_s else ""
    return words + floor + (f", {ratio}" if ratio else "")


def _recorded_words(timed: Timed) -> str:
    return f"{timed.recorded_on}: {_measured_words(timed, base=False)}"


def _floor_words(answer: Answer) -> str:
    if not answer.floor_s:
        return ""
    return f"Floor, the fewest bytes ÷ the link's rate: {show_s(answer.floor_s)}."


def caption(answer: Answer) -> str:
    """What the figures stand on."""
    names = [rung.here.arm for rung in answer.rungs if rung.here]
    return arm_rows.caption(answer.naive.run, names)


def _draw(answer: Answer, size: _Size, narrow: bool, theme: Theme) -> Figure:
    rungs = answer.rungs
    shown = [timed for rung in rungs if (timed := rung.here or rung.beside)]
    used = _visible([rung.here for rung in rungs if rung.here])
    mark = arm_rows.stamp(answer.naive.run)
    lines = textwrap.wrap(caption(answer), size.chars)
    rows = -(-(len(used) + 1) // size.columns)
    head_in = 0.08 + 0.2 * rows + (0.36 if mark else 0)
    foot_in = 0.6 + 0.17 * (len(lines) - 1)
    height_in = head_in + foot_in + size.row_in * len(rungs)
    figure = look.blank(size.width_in, height_in)
    axes = look.axes(figure, size.left_in, size.right_in, head_in, foot_in)
    axes.set_ylim(len(rungs) - 0.5, -0.5)
    axes.set_xlim(0, max([t.high_s for t in shown] + [answer.naive.high_s]) * 1.03)
    for y, rung in enumerate(rungs):
        _row(axes, y, rung, size, narrow, theme)
    if answer.floor_s:
        # on a phone it leaves out the lines of text between the bars
        ends = [(y - 0.05, y + 0.5) for y in range(len(rungs))] if narrow else [(-0.5, len(rungs))]
        for end in ends:
            axes.plot([answer.floor_s] * 2, end, color=theme.ink, lw=1.1, ls=(0, (4, 3)), zorder=1)
    axes.set_yticks(range(len(rungs)), [] if narrow else [label(r) for r in rungs])
    if narrow:
        axes.set_yticks([])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    floor = "  ·  dashed: fewest bytes ÷ the link's rate" if answer.floor_s else ""
    axes.set_xlabel(f"seconds since the request{floor}", fontsize=look.BASE_PT - 1, labelpad=2)
    figure.legend(
        handles=phase_bars.key(used, theme),
        ncols=size.columns,
        loc="upper left",
        bbox_to_anchor=(0.004, 1 - 0.02 / height_in),
        frameon=False,
        fontsize=look.BASE_PT - 1.5,
        handlelength=1.5,
        columnspacing=1.1,
        labelspacing=0.3,
        borderaxespad=0.1,
    )
    look.stamp(figure, theme, mark, 1 - (head_in - 0.2) / height_in)
    look.caption(figure, theme, lines, 0.05 / height_in)
    return figure


def _visible(measured: Sequence[Timed]) -> list[str]:
    """Phases that can be seen in a bar: the key of the others would name what nobody finds."""
    least_s = 0.005 * max((t.median_s for t in measured), default=0.0)
    longest = {
        phase: max(t.trial.phases.get(phase, 0.0) for t in measured)
        for phase in phase_bars.used(t.trial for t in measured)
    }
    return [phase for phase, took_s in longest.items() if took_s >= least_s]


def _row(axes: Axes, y: int, rung: Rung, size: _Size, narrow: bool, theme: Theme) -> None:
    bar_y = y + (0.18 if narrow else -0.04)
    height = 0.36 if narrow else 0.56
    timed, small = rung.here, size.text_pt - 1
    if timed:
        phase_bars.stacked(axes, bar_y, timed.trial, theme, height=height)
        axes.plot([timed.low_s, timed.high_s], [bar_y] * 2, "|-", color=theme.ink, lw=1.3, ms=7)
        if timed.floor_s:
            at = bar_y + height / 2 + (0.06 if narrow else 0.09)
            axes.barh(at, timed.floor_s, height=0.07 if narrow else 0.1, color=theme.ink, lw=0)
        ratio = "" if rung.step.kind == NAIVE else ratio_words(timed.ratio)
        _beside(axes, y, rung, show_s(timed.median_s), ratio, size, narrow, theme)
        return
    if rung.beside:
        axes.barh(
            bar_y,
            rung.beside.median_s,
            height=height,
            facecolor="none",
            edgecolor=theme.faint,
            hatch="xxx",
            lw=0.9,
            ls="--",
        )
    recorded = show_s(rung.beside.median_s) if rung.beside else "–"
    ratio = ratio_words(rung.beside.ratio) if rung.beside else ""
    _beside(axes, y, rung, recorded, ratio, size, narrow, theme)
    words = f"not here: {rung.why_not}"
    if rung.beside:
        words += f"\nrecorded on {rung.beside.recorded_on}"
    left_s = rung.beside.median_s if rung.beside else 0.0
    span_s = axes.get_xlim()[1]
    if left_s > (0.4 if narrow else 0.7) * span_s:  # too little room behind the bar: over it
        left_s = 0.0
    chars = int(size.reason_chars * (1 - left_s / span_s))
    reasons = [textwrap.shorten(part, chars, placeholder="…") for part in words.split("\n")]
    axes.text(
        left_s + 0.012 * span_s,
        bar_y,
        "\n".join(reasons),
        va="center",
        fontsize=small - 0.5,
        color=theme.faint,
        linespacing=1.15,
    )


def _beside(
    axes: Axes,
    y: int,
    rung: Rung,
    seconds: str,
    ratio: str,
    size: _Size,
    narrow: bool,
    theme: Theme,
) -> None:
    """Seconds and ratio in columns beside the bar; on a phone, above it with the rung's label."""
    if narrow:
        to_axes = axes.get_yaxis_transform()
        for x, text, side, weight in (
            (0.0, label(rung), "left", "normal"),
            (1.0, f"{seconds}   {ratio}".strip(), "right", "bold" if rung.here else "normal"),
        ):
            axes.text(
                x,
                y - 0.2,
                text,
                transform=to_axes,
                ha=side,
                va="center",
                fontsize=size.text_pt,
                fontweight=weight,
            )
        return
    arm_rows.beside(axes, 1.015, y, seconds, fontweight="bold" if rung.here else "normal")
    column = 1 + 0.72 / (size.width_in - size.left_in - size.right_in)
    arm_rows.beside(axes, column, y, ratio, fontsize=size.text_pt - 0.5, color=theme.faint)

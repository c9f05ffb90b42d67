"""The waterfall: where the time of one cold start went, phase by phase, with the floor of each
beside it.

A bar is a phase from its start to its end on the time axis that begins at t0 (the request that
found nothing). The thin black bar below it is its floor: the least time this host could have needed
for the same bytes, measured in the same run. Hatched stretches are unaccounted: nobody said what
happened there. Colours are fixed (labkit.viz.theme).

    waterfall(run)                  # the median trial of the first arm
    waterfall(run, arm="estargz-lazy").save("lazy.png", theme="dark")
    waterfall(run.trials[0])        # this very trial

In a notebook the figure's ink follows the page; `.text` is the same in captions. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from labkit.core.records import Run, Trial
from labkit.viz import captions
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROW_IN = 0.36
_WIDTH_IN = 9.0


def waterfall(
    run_or_trial: Run | Trial | captions.Shown, arm: str = "", *, until_s: float | None = None
) -> Picture:
    """The waterfall of an arm's median trial, or of a given trial.

    `until_s` fixes the end of the time axis, so that two waterfalls can be set under each other."""
    shown = (
        run_or_trial
        if isinstance(run_or_trial, captions.Shown)
        else captions.choose(run_or_trial, arm)
    )
    return Picture(
        lambda theme: _draw(shown, theme, until_s),
        alt=captions.waterfall_alt(shown),
        text=captions.waterfall_text(shown),
        name=f"waterfall-{shown.arm.get('name', shown.trial.arm)}",
    )


def _draw(shown: captions.Shown, theme: Theme, until_s: float | None) -> Figure:
    rows = captions.rows(shown.trial)
    end_s = (
        until_s or max([shown.trial.total_s or 0.0] + [e for r in rows for _, e in r.pieces]) or 1.0
    )
    caption = textwrap.wrap(captions.caption(shown), 150)
    mark = captions.stamp(shown)
    head_in, foot_in = 0.82 + (0.36 if mark else 0), 0.72 + 0.17 * (len(caption) - 1)
    height_in = head_in + foot_in + _ROW_IN * len(rows) + 0.1
    figure = look.blank(_WIDTH_IN, height_in)
    left, right = 1.12 / _WIDTH_IN, 1 - 2.16 / _WIDTH_IN
    axes = figure.add_axes(
        (left, foot_in / height_in, right - left, 1 - (head_in + foot_in) / height_in)
    )
    for y, row in enumerate(rows):
        _bar(axes, y, row, theme)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, end_s)
    axes.set_yticks(range(len(rows)), [r.phase.replace("_", " ") for r in rows])
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds since the request", fontsize=look.BASE_PT - 1)
    _columns(axes, rows, shown.trial.total_s, theme)
    top = 1 - 0.27 / height_in
    look.title(figure, captions.title(shown), top)
    look.stamp(figure, theme, mark, 1 - 0.65 / height_in)
    look.caption(figure, theme, caption, 0.085 / height_in)
    return figure


def _bar(axes: Axes, y: float, row: captions.Row, theme: Theme) -> None:
    for start_s, end_s in row.pieces:
        width = max(end_s - start_s, 0.0)
        if row.phase == captions.UNACCOUNTED:
            axes.barh(
                y,
                width,
                left=start_s,
                height=0.56,
                facecolor="none",
                edgecolor=theme.faint,
                hatch="////",
                linewidth=0.7,
            )
        else:
            # An edge of the same colour keeps a phase of a millisecond visible.
            axes.barh(
                y - 0.07,
                width,
                left=start_s,
                height=0.54,
                color=look.PHASE_COLOURS[row.phase],
                edgecolor=look.PHASE_COLOURS[row.phase],
                linewidth=0.9,
            )
    if row.floor_s and row.pieces:
        axes.barh(
            y + 0.33, row.floor_s, left=row.start_s, height=0.13, color=theme.ink, linewidth=0
        )


def _columns(axes: Axes, rows: list[captions.Row], total_s: float | None, theme: Theme) -> None:
    """Figures stand in columns beside the drawing, where no bar can reach them."""
    to_axes = axes.get_yaxis_transform()
    places = (1.135, 1.225, 1.335)
    for x, name in zip(places, ("took", "share", "floor"), strict=True):
        axes.text(
            x,
            -0.72,
            name,
            transform=to_axes,
            ha="right",
            va="bottom",
            fontsize=look.BASE_PT - 2,
            color=theme.faint,
        )
    # The key of the thin bar stands under its column's name.
    axes.barh(
        -0.62,
        0.048,
        left=places[2] - 0.048,
        height=0.13,
        color=theme.ink,
        linewidth=0,
        transform=to_axes,
        clip_on=False,
    )
    for y, row in enumerate(rows):
        for x, text, colour in zip(
            places, captions.columns(row, total_s), (theme.ink, theme.ink, theme.faint), strict=True
        ):
            axes.text(
                x,
                y,
                text or "–",
                transform=to_axes,
                ha="right",
                va="center",
                fontsize=look.BASE_PT - 1,
                color=colour,
            )

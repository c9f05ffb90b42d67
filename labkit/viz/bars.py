"""Bars in groups: one value a series and group, what was measured beside each, its floor as a line.
Stamped where it is replayed.

    bars("Weights to the device", [Group("labkit-streamer", (Bar("warm", 0.204, "204 ms",
        floor=0.040),))], "seconds", mark="replayed from …")

A group without a value keeps its place and says why. Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.core.units import show_s
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 9.0
HATCHES = ("", "///", "...", "xx", "\\\\\\", "ooo")


@dataclass(frozen=True)
class Bar:
    """`shown`: the value in words. `floor`: the least that it could have been (or the most, of a
    rate), in the same unit."""

    series: str
    value: float
    shown: str
    floor: float | None = None


@dataclass(frozen=True)
class Group:
    label: str
    bars: tuple[Bar, ...] = ()
    missing: str = ""  # why there is no bar


def bars(
    title: str,
    groups: Sequence[Group],
    axis: str,
    *,
    mark: str = "",
    caption: str = "",
    name: str = "bars",
    limit: str = "floor",
    show: Callable[[float], str] = show_s,
) -> Picture:
    """`mark`: what must stand on the figure in large letters. `limit`: what the line is called.
    `show`: a value in words."""
    lines = [f"{title}" + (f"   [{mark}]" if mark else "")]
    for group in groups:
        labels = [
            f"{b.series + ' ' if b.series else ''}{b.shown}"
            + (f" ({limit} {show(b.floor)})" if b.floor else "")
            for b in group.bars
        ]
        lines.append(f"{group.label}: {'; '.join(labels) or group.missing or 'not measured'}")
    text = "\n".join([*lines, f"{axis}; {caption}".strip("; ")])
    return Picture(
        lambda theme: _draw(title, groups, axis, mark, caption, limit, theme),
        alt=". ".join(lines),
        text=text,
        name=name,
    )


def _draw(
    title: str,
    groups: Sequence[Group],
    axis: str,
    mark: str,
    caption: str,
    limit: str,
    theme: Theme,
) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = list(dict.fromkeys(b.series for g in groups for b in g.bars))
    lines = textwrap.wrap(caption, 150)
    rows = sum(max(1, len(g.bars)) for g in groups)
    head_in, foot_in = 0.95 + (0.36 if mark else 0), 0.72 + 0.17 * max(0, len(lines) - 1)
    height_in = head_in + foot_in + 0.26 * rows + 0.22 * len(groups)
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.23, foot_in / height_in, 0.55, 1 - (head_in + foot_in) / height_in))
    y, ticks = 0.0, []
    for group in groups:
        ticks.append(y + (max(1, len(group.bars)) - 1) * 0.5)
        for bar in group.bars:
            i = names.index(bar.series) % len(look.ARM_COLOURS)
            axes.barh(
                y,
                bar.value,
                height=0.86,
                color=look.ARM_COLOURS[i],
                hatch=HATCHES[i],
                edgecolor=theme.ink,
                linewidth=0.3,
            )
            if bar.floor:
                axes.plot([bar.floor] * 2, [y - 0.5, y + 0.5], color=theme.ink, lw=2.2)
            axes.text(
                1.015,
                y,
                bar.shown,
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=look.BASE_PT - 2,
            )
            y += 1
        if not group.bars:
            axes.text(
                0.01,
                y,
                textwrap.shorten(group.missing or "not measured", 90, placeholder="…"),
                transform=axes.get_yaxis_transform(),
                va="center",
                fontsize=look.BASE_PT - 2,
                color=theme.faint,
            )
            y += 1
        y += 0.8
    axes.set_yticks(ticks, [textwrap.shorten(g.label, 30, placeholder="…") for g in groups])
    axes.set_ylim(y - 1.1, -0.7)
    axes.set_xlim(
        0,
        max((v for g in groups for b in g.bars for v in (b.value, b.floor or 0)), default=1) * 1.04
        or 1,
    )
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel(axis, fontsize=look.BASE_PT - 1)
    handles: list[Any] = [
        Patch(
            facecolor=look.ARM_COLOURS[i % 6],
            hatch=HATCHES[i % 6],
            edgecolor=theme.ink,
            linewidth=0.3,
            label=n,
        )
        for i, n in enumerate(names)
        if n
    ]
    handles += (
        [Line2D([], [], color=theme.ink, lw=2.2, label=limit)]
        if any(b.floor for g in groups for b in g.bars)
        else []
    )
    if handles:
        figure.legend(
            handles=handles,
            loc="upper right",
            bbox_to_anchor=(0.99, 1 - (head_in - 0.42) / height_in),
            ncols=4,
            frameon=False,
            fontsize=look.BASE_PT - 2,
        )
    look.title(figure, title, 1 - 0.25 / height_in)
    look.stamp(figure, theme, mark, 1 - 0.62 / height_in)
    look.caption(figure, theme, lines, 0.085 / height_in)
    return figure

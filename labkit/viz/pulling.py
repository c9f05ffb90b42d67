"""Figures of an image's way to the node: what it is made of, and pulls against the three floors of
link, decompression and disk.

    layers(rows)            # rows: {"layer", "packed_bytes", "plain_bytes"}
    pulls(doc)              # of labkit bench pull: every trial, the medians, each arm's own floors

Every figure carries the link's label: loopback slowed down is not a network. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonMapping
from labkit.core.units import show_bytes, show_s
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 9.0
#: Floor -> how it is shown, colour, hatch.
FLOORS = {
    "link_s": ("link", "#0069A8", ""),
    "decompress_s": ("decompression", "#C2480F", "///"),
    "write_s": ("writing files", "#0A9B72", "..."),
}


def codec_of(arm: str) -> str:
    return (
        arm.removeprefix("object-pull-")
        if arm in ("object-pull-zstd", "object-pull-none")
        else "gzip"
    )


def layers(rows: Sequence[JsonMapping]) -> Picture:
    """Each layer packed and unpacked."""
    text = "\n".join(
        f"{r['layer']}: {show_bytes(r['packed_bytes'])} on the wire, {show_bytes(r['plain_bytes'])}"
        " on disk"
        for r in rows
    )
    return Picture(
        lambda theme: _draw_layers(rows, theme),
        alt="Layers of an image, packed and unpacked. " + text.replace("\n", "; "),
        text=text,
        name="layers",
    )


def _draw_layers(rows: Sequence[JsonMapping], theme: Theme) -> Figure:
    height_in = 1.25 + 0.62 * len(rows)
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.17, 0.3 / height_in, 0.68, 1 - 0.95 / height_in))
    most = max(r["plain_bytes"] for r in rows)
    for y, row in enumerate(rows):
        for shift, key, colour, hatch, words in (
            (-0.2, "packed_bytes", look.ARM_COLOURS[0], "", "on the wire"),
            (0.2, "plain_bytes", look.ARM_COLOURS[1], "///", "on disk"),
        ):
            axes.barh(
                y + shift,
                row[key],
                height=0.34,
                color=colour,
                hatch=hatch,
                edgecolor=theme.ink,
                linewidth=0.3,
            )
            axes.text(
                row[key] + most * 0.01,
                y + shift,
                f"{show_bytes(row[key])} {words}",
                va="center",
                fontsize=look.BASE_PT - 2,
            )
    axes.set_yticks(range(len(rows)), [r["layer"] for r in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, most)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    look.title(figure, "What an image is made of", 1 - 0.25 / height_in)
    return figure


def pulls(doc: JsonMapping, title: str = "From nothing to an unpacked image") -> Picture:
    """Medians as bars with the interval, below each the floors of its codec. Arms that did not run
    are named in the text."""
    good = [r for r in doc["results"] if "missing" not in r]
    lines = []
    for row in good:
        floors = doc["floors"][codec_of(row["arm"])]
        shown = ", ".join(
            f"{words} {show_s(floors[key])}" for key, (words, _, _) in FLOORS.items() if floors[key]
        )
        lines.append(
            f"{row['arm']}: {show_s(row['median_s'])} ({show_s(row['low_s'])} –"
            f" {show_s(row['high_s'])}); floors: {shown}; {row['evidence']}"
        )
    lines += [f"{r['arm']}: not here: {r['missing']}" for r in doc["results"] if "missing" in r]
    text = "\n".join([*lines, doc["link_label"]])
    return Picture(
        lambda theme: _draw_pulls(doc, good, title, theme),
        alt="Pull times by arm with floors. " + text.replace("\n", "; "),
        text=text,
        name="pulls",
    )


def _draw_pulls(doc: JsonMapping, good: Sequence[JsonMapping], title: str, theme: Theme) -> Figure:
    from matplotlib.patches import Patch

    height_in = 1.85 + 0.72 * max(1, len(good))
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.24, 0.9 / height_in, 0.63, 1 - 1.75 / height_in))
    for y, row in enumerate(good):
        axes.barh(
            y - 0.16,
            row["median_s"],
            height=0.36,
            color=theme.faint,
            edgecolor=theme.ink,
            linewidth=0.4,
        )
        axes.plot([row["low_s"], row["high_s"]], [y - 0.16] * 2, color=theme.ink, lw=1.6)
        floors = doc["floors"][codec_of(row["arm"])]
        for n, (key, (_, colour, hatch)) in enumerate(FLOORS.items()):
            axes.barh(
                y + 0.12 + 0.12 * n,
                floors[key],
                height=0.11,
                color=colour,
                hatch=hatch,
                edgecolor=theme.ink,
                linewidth=0.2,
            )
        axes.text(
            1.015,
            y - 0.16,
            show_s(row["median_s"]),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=look.BASE_PT - 1,
        )
    axes.set_yticks(range(len(good)), [r["arm"] for r in good])
    axes.set_ylim(len(good) - 0.45, -0.55)
    axes.set_xlim(0, None)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds from nothing to unpacked", fontsize=look.BASE_PT - 1)
    handles = [
        Patch(facecolor=theme.faint, edgecolor=theme.ink, linewidth=0.4, label="measured"),
        *(
            Patch(facecolor=c, hatch=h, edgecolor=theme.ink, linewidth=0.3, label=f"floor: {w}")
            for w, c, h in FLOORS.values()
        ),
    ]
    figure.legend(
        handles=handles,
        loc="upper right",
        bbox_to_anchor=(0.99, 1 - 0.36 / height_in),
        ncols=4,
        frameon=False,
        fontsize=look.BASE_PT - 1,
    )
    look.title(figure, title, 1 - 0.22 / height_in)
    figure.text(
        0.012,
        0.1 / height_in,
        f"medians, n = {doc['blocks']} · node empty · {doc['link_label']}",
        fontsize=look.BASE_PT - 2,
        color=theme.faint,
    )
    return figure

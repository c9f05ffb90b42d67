"""Figures of the weights' way in: what lies where in a file, what a load is made of, sweeps against
their floor, size against quality.

    file_map(read_layout(path), …)          # one bar a file, coloured by part of the model
    loads(doc)                              # of labkit bench load: load() returned, first touch,
        first token
    sweep(rows, "connections", floor_s)     # of labkit.bench.sweep
    trade(rows)                             # of labkit.bench.quality

Every figure carries cache state and link of its numbers. Lesson: notebooks/04_model_formats,
notebooks/05_streaming."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.json_types import JsonMapping
from labkit.core.units import show_bytes, show_s
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.formats.layout import Layout

WIDTH_IN = 9.0
#: Part of the model -> colour and hatch; letters as in `labkit model inspect`.
PARTS = {
    "H": ("header", "#7A4FC9", "xx"),
    "E": ("embedding and head", "#0069A8", ""),
    "A": ("attention", "#C2480F", "///"),
    "F": ("feed-forward", "#0A9B72", "..."),
    "n": ("norms and the rest", "#B57A0C", ""),
}
#: What a load is made of.
PIECES = (
    ("load_s", "load() returned", look.PHASE_COLOURS["load"], ""),
    ("touch_s", "first touch of every page", "#B57A0C", "///"),
    ("token_s", "first token", look.PHASE_COLOURS["first_token"], "..."),
)


def file_map(*layouts: Layout) -> Picture:
    """Files as bars of their bytes, each to its own scale; neighbours of one kind are drawn as
    one."""
    text = "\n".join(
        f"{Path(layout.path).name}: {layout.format}, {show_bytes(layout.size_bytes)},"
        f" {len(layout.tensors)} tensors, header {show_bytes(layout.header_bytes)}, tensors aligned"
        f" to {layout.alignment} B"
        for layout in layouts
    )
    return Picture(
        lambda theme: _draw_map(layouts, theme),
        alt="Layout of checkpoint files. " + text.replace("\n", "; "),
        text=text,
        name="file_map",
    )


def _runs(layout: Layout) -> list[tuple[str, int, int]]:
    from labkit.weights.commands import kind

    runs: list[tuple[str, int, int]] = (
        [] if layout.format == "pickle" else [("H", 0, layout.header_bytes)]
    )
    for t in sorted(layout.tensors, key=lambda t: t.offset):
        mark = kind(t.name)
        if runs and runs[-1][0] == mark and t.offset - runs[-1][2] < layout.size_bytes / 500:
            runs[-1] = (mark, runs[-1][1], t.end)
        elif t.size_bytes:
            runs.append((mark, t.offset, t.end))
    return runs


def _draw_map(layouts: Sequence[Layout], theme: Theme) -> Figure:
    from matplotlib.patches import Patch

    height_in = 1.05 + 0.75 * len(layouts)
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.21, 0.42 / height_in, 0.77, 1 - 1.0 / height_in))
    for y, layout in enumerate(layouts):
        for mark, start, end in _runs(layout):
            _, colour, hatch = PARTS[mark]
            axes.barh(
                y,
                (end - start) / layout.size_bytes,
                left=start / layout.size_bytes,
                height=0.55,
                color=colour,
                hatch=hatch,
                edgecolor=theme.ink,
                linewidth=0.15,
            )
    axes.set_yticks(
        range(len(layouts)),
        [
            "\n".join([*textwrap.wrap(Path(x.path).name, 22), show_bytes(x.size_bytes)])
            for x in layouts
        ],
        fontsize=look.BASE_PT - 1,
    )
    axes.set_ylim(len(layouts) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["start", "25 %", "50 %", "75 %", "end of file"])
    axes.get_xticklabels()[-1].set_horizontalalignment("right")
    axes.tick_params(axis="y", length=0)
    look.title(figure, "Where the tensors lie", 1 - 0.22 / height_in)
    figure.legend(
        handles=[
            Patch(facecolor=c, hatch=h, edgecolor=theme.ink, linewidth=0.3, label=name)
            for name, c, h in PARTS.values()
        ],
        loc="upper right",
        bbox_to_anchor=(0.99, 1 - 0.05 / height_in),
        ncols=5,
        frameon=False,
        fontsize=look.BASE_PT - 2,
        handlelength=1.2,
        columnspacing=1.0,
    )
    return figure


def loads(doc: JsonMapping) -> Picture:
    """Every arm that ran: medians of its pieces end to end, the floor as a line. Failed and missing
    arms are named."""
    good = [r for r in doc["results"] if "missing" not in r]
    lines = [
        f"{r['arm']}: load() {show_s(r['load_s'])}, first touch {show_s(r['touch_s'])}, then first"
        f" token {show_s(max(0, r['first_token_s'] - r['median_s']))}, all bytes in place after"
        f" {show_s(r['median_s'])}"
        + (f", floor {show_s(r['floor_s'])}" if r["floor_s"] else "")
        + f"; cache {r['cache']}, {r['link']}, n = {r['n']}"
        for r in good
    ]
    lines += [f"{r['arm']}: {r['missing']}" for r in doc["results"] if "missing" in r]
    text = "\n".join(lines)
    return Picture(
        lambda theme: _draw_loads(doc, good, theme),
        alt="Loading times by loader. " + "; ".join(lines),
        text=text,
        name="loads",
    )


def _draw_loads(doc: JsonMapping, good: Sequence[JsonMapping], theme: Theme) -> Figure:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    height_in = 1.75 + 0.42 * max(1, len(good))
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.27, 0.95 / height_in, 0.60, 1 - 1.72 / height_in))
    for y, row in enumerate(good):
        left = 0.0
        pieces = {**row, "token_s": max(0.0, row["first_token_s"] - row["median_s"])}
        for key, _, colour, hatch in PIECES:
            axes.barh(
                y,
                pieces[key],
                left=left,
                height=0.6,
                color=colour,
                hatch=hatch,
                edgecolor=theme.ink,
                linewidth=0.3,
            )
            left += pieces[key]
        if row["floor_s"]:
            axes.plot([row["floor_s"]] * 2, [y - 0.42, y + 0.42], color=theme.ink, lw=2.2)
        axes.text(
            1.015,
            y,
            f"{show_s(row['median_s'])} in place",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=look.BASE_PT - 1,
        )
    axes.set_yticks(range(len(good)), [r["arm"].replace(".", "  · ") for r in good])
    axes.set_ylim(len(good) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds, the loader's own import included", fontsize=look.BASE_PT - 1)
    handles: list[Any] = [
        Patch(facecolor=c, hatch=h, edgecolor=theme.ink, linewidth=0.3, label=name)
        for _, name, c, h in PIECES
    ]
    figure.legend(
        handles=[*handles, Line2D([], [], color=theme.ink, lw=2.2, label="floor")],
        loc="upper right",
        bbox_to_anchor=(0.99, 1 - 0.38 / height_in),
        ncols=4,
        frameon=False,
        fontsize=look.BASE_PT - 1,
    )
    look.title(
        figure, f"Weights in place and first token, {doc.get('preset', '')}", 1 - 0.25 / height_in
    )
    states = sorted({r["cache"] for r in good})
    figure.text(
        0.012,
        0.1 / height_in,
        f"medians, n = {doc['blocks']} · cache {', '.join(states)} ·"
        f" {', '.join(sorted({r['link'] for r in good}))}",
        fontsize=look.BASE_PT - 2,
        color=theme.faint,
    )
    return figure


def sweep(
    rows: Sequence[JsonMapping], setting: str, floor_s: float | None = None, note: str = ""
) -> Picture:
    """Seconds against a setting: every point, the medians joined. rows: {setting: value, "seconds":
    […]}."""
    from labkit.core.stats import median

    text = "\n".join(
        f"{r[setting]} {setting}: median {show_s(median(r['seconds']))} of {len(r['seconds'])}"
        for r in rows
    )
    text += (f"\nfloor: {show_s(floor_s)}" if floor_s else "") + (f"\n{note}" if note else "")
    return Picture(
        lambda theme: _draw_sweep(rows, setting, floor_s, note, theme),
        alt=f"Time against {setting}. " + text.replace("\n", "; "),
        text=text,
        name="sweep",
    )


def _draw_sweep(
    rows: Sequence[JsonMapping], setting: str, floor_s: float | None, note: str, theme: Theme
) -> Figure:
    from labkit.core.stats import median

    figure = look.blank(WIDTH_IN, 3.9)
    axes = figure.add_axes((0.09, 0.22, 0.88, 0.64))
    places = range(len(rows))
    for x, row in zip(places, rows, strict=True):
        axes.plot(
            [x] * len(row["seconds"]),
            row["seconds"],
            "o",
            ms=6,
            color=look.ARM_COLOURS[0],
            mec=theme.ink,
            mew=0.4,
            zorder=3,
        )
    axes.plot(places, [median(r["seconds"]) for r in rows], "-", color=look.ARM_COLOURS[0], lw=1.6)
    top = max(max(r["seconds"]) for r in rows) * 1.08
    if floor_s:
        axes.axhline(floor_s, color=theme.ink, lw=1.6, ls="--")
        axes.text(
            len(rows) - 0.55,
            floor_s - top * 0.02,
            f"floor {show_s(floor_s)}",
            va="top",
            ha="right",
            fontsize=look.BASE_PT - 1,
        )
    axes.set_xticks(places, [str(r[setting]) for r in rows])
    axes.set_xlim(-0.5, len(rows) - 0.5)
    axes.set_ylim(0, top)
    axes.grid(True, axis="y")
    axes.set_xlabel(setting)
    axes.set_ylabel("seconds")
    look.title(figure, f"Time against {setting}", 0.94)
    figure.text(0.012, 0.03, note, fontsize=look.BASE_PT - 2, color=theme.faint)
    return figure


def trade(rows: Sequence[JsonMapping]) -> Picture:
    """Bytes on disk against the distance of the answers. rows of `labkit.bench.quality`."""
    text = "\n".join(
        f"{r['format']}: {show_bytes(r['size_bytes'])}, largest logit difference"
        f" {r['distance']:.2g}, {r['agree']:.0%} of greedy choices agree, loaded in"
        f" {show_s(r['load_s'])}"
        for r in rows
    )
    return Picture(
        lambda theme: _draw_trade(rows, theme),
        alt="Size against quality of formats. " + text.replace("\n", "; "),
        text=text,
        name="trade",
    )


def _draw_trade(rows: Sequence[JsonMapping], theme: Theme) -> Figure:
    height_in = 1.3 + 0.5 * len(rows)
    figure = look.blank(WIDTH_IN, height_in)
    columns = (
        ("size_bytes", "bytes on disk", look.ARM_COLOURS[0], show_bytes),
        ("load_s", "loaded in", look.PHASE_COLOURS["load"], show_s),
        ("distance", "largest logit difference", look.ARM_COLOURS[3], lambda v: f"{v:.2g}"),
    )
    for i, (key, title, colour, show) in enumerate(columns):
        axes = figure.add_axes((0.13 + 0.30 * i, 0.28 / height_in, 0.2, 1 - 1.15 / height_in))
        values = [r[key] for r in rows]
        axes.barh(
            range(len(rows)), values, color=colour, height=0.6, edgecolor=theme.ink, linewidth=0.3
        )
        for y, value in enumerate(values):
            axes.text(
                value + max(values) * 0.03, y, show(value), va="center", fontsize=look.BASE_PT - 1
            )
        axes.set_xlim(0, max(values) * 1.05 or 1)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_yticks(range(len(rows)), [r["format"] for r in rows] if not i else [])
        axes.tick_params(axis="both", length=0)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        axes.set_title(title, fontsize=look.BASE_PT, loc="left")
    look.title(figure, "Smaller files, other answers", 1 - 0.25 / height_in)
    return figure

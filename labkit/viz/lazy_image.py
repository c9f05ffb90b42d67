"""Figures of lazy images: bytes touched of bytes present, and the curve on which laziness loses.

    touched_of_present(facts)      # of labkit.image.lazyfs.trials.touch
    crossover_curve(doc)           # of labkit.image.lazyfs.trials.crossover

Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from labkit.core.json_types import JsonMapping
from labkit.core.units import show_bytes, show_s
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH_IN = 9.0
MOST = 10


def touched_of_present(facts: JsonMapping, stamp: str = "") -> Picture:
    """The largest touched files, bytes touched of bytes present; the whole image as the first
    bar."""
    files = sorted(facts["files"].items(), key=lambda f: -f[1][0])[:MOST]
    touched = sum(t for t, _ in facts["files"].values())
    rows = [
        (
            f"the whole image ({len(facts['files'])} of {facts['files_present']} files)",
            touched,
            facts["bytes_present"],
        )
    ]
    rows += [(path if len(path) < 46 else "…" + path[-45:], t, size) for path, (t, size) in files]
    lines = [
        f"{name}: {show_bytes(t)} of {show_bytes(size)} touched ({t / max(size, 1):.0%})"
        for name, t, size in rows
    ]
    text = "\n".join([*lines, stamp] if stamp else lines)
    return Picture(
        lambda theme: _draw_touched(rows, stamp, theme),
        alt="Bytes touched of bytes present. " + text.replace("\n", "; "),
        text=text,
        name="touched_of_present",
    )


def _draw_touched(rows: list[tuple[str, int, int]], stamp: str, theme: Theme) -> Figure:
    from matplotlib.patches import Patch

    height_in = 1.35 + 0.34 * len(rows)
    figure = look.blank(WIDTH_IN, height_in)
    axes = figure.add_axes((0.40, 0.62 / height_in, 0.42, 1 - 1.25 / height_in))
    for y, (_, touched, size) in enumerate(rows):
        share = min(1.0, touched / max(size, 1))
        axes.barh(y, 1, height=0.62, color="none", edgecolor=theme.faint, linewidth=0.7)
        axes.barh(
            y, share, height=0.62, color=look.ARM_COLOURS[0], edgecolor=theme.ink, linewidth=0.3
        )
        axes.text(
            1.02,
            y,
            f"{show_bytes(touched)} of {show_bytes(size)}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=look.BASE_PT - 2,
        )
    axes.set_yticks(range(len(rows)), [r[0] for r in rows], fontsize=look.BASE_PT - 2)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "50 %", "all of it"])
    axes.tick_params(axis="y", length=0)
    look.title(figure, "Which bytes a start really touches", 1 - 0.25 / height_in)
    figure.legend(
        handles=[
            Patch(facecolor=look.ARM_COLOURS[0], label="touched"),
            Patch(facecolor="none", edgecolor=theme.faint, label="present"),
        ],
        loc="upper right",
        bbox_to_anchor=(0.99, 1 - 0.02 / height_in),
        ncols=2,
        frameon=False,
        fontsize=look.BASE_PT - 1,
    )
    figure.text(
        0.012,
        0.1 / height_in,
        stamp or "first touches seen by the mount, with the kernel's read-ahead of 128 KiB",
        fontsize=look.BASE_PT - 2,
        color=theme.faint,
    )
    return figure


def crossover_curve(doc: JsonMapping, stamp: str = "") -> Picture:
    """Seconds to read a share of the image, mounted, against the pull of all of it, a pair of lines
    for each link."""
    lines = []
    for link, full_s in doc["full"].items():
        mine = [r for r in doc["rows"] if r["link"] == link]
        lost = next((r["share"] for r in mine if r["lazy_s"] > full_s), None)
        lines.append(
            f"{link}: whole pull {show_s(full_s)}; mounted "
            + ", ".join(f"{r['share']:.0%} in {show_s(r['lazy_s'])}" for r in mine)
            + ("; laziness lost at " + f"{lost:.0%}" if lost else "; laziness never lost")
        )
    lines += [stamp] if stamp else []
    return Picture(
        lambda theme: _draw_crossover(doc, stamp, theme),
        alt="Time against share of the image read. " + "; ".join(lines),
        text="\n".join(lines),
        name="crossover_curve",
    )


def _draw_crossover(doc: JsonMapping, stamp: str, theme: Theme) -> Figure:
    figure = look.blank(WIDTH_IN, 4.5)
    axes = figure.add_axes((0.10, 0.19, 0.70, 0.68))
    labels: list[tuple[float, str]] = []
    for (link, full_s), colour, mark in zip(
        doc["full"].items(), look.ARM_COLOURS, "os^Dv", strict=False
    ):
        mine = [r for r in doc["rows"] if r["link"] == link]
        axes.plot(
            [r["share"] * 100 for r in mine],
            [r["lazy_s"] for r in mine],
            "-" + mark,
            color=colour,
            mec=theme.ink,
            mew=0.4,
            lw=1.6,
        )
        axes.axhline(full_s, color=colour, lw=1.4, ls="--")
        labels += [(mine[-1]["lazy_s"], f"{link}, mounted"), (full_s, f"{link}, pulled whole")]
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    step, at = (high / low) ** 0.055, 0.0
    for value, label in sorted(labels):  # lines may end in one place; their names may not
        at = max(value, at * step)
        axes.text(101.5, at, label, color=theme.ink, fontsize=look.BASE_PT - 2, va="center")
    axes.yaxis.set_major_formatter(lambda value, _: show_s(value))
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the image's files that is read, %", fontsize=look.BASE_PT - 1)
    axes.set_ylabel("seconds until it is read", fontsize=look.BASE_PT - 1)
    axes.grid(True, which="major")
    axes.set_axisbelow(True)
    look.title(figure, "When laziness loses", 0.94)
    figure.text(
        0.012,
        0.03,
        stamp
        or f"{doc['files']} files of {show_bytes(doc['bytes'] / doc['files'])} in random order,"
        " nothing prefetched: the worst case · links emulated · this host, one run",
        fontsize=look.BASE_PT - 2,
        color=theme.faint,
    )
    return figure

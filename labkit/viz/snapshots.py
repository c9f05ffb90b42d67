"""Figures of snapshots: where restoring is faster than starting, and what an image is made of.

    break_even(case, read_bytes_per_s=1.2e9, host="2 × …")      # modelled lines, this host's rate
        marked (`where`: a recorded one's)
    inside(contents)                                            # of snapshot.criu_images.contents

Lines are a model through this host's measured points, and say so. Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.units import show_bytes, show_rate, show_s
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from labkit.snapshot.breakeven import Case

START, RESTORE, WHOLE = "#C2480F", "#0069A8", "#7A4FC9"


def break_even(
    case: Case, read_bytes_per_s: float, host: str = "", where: str = "this host"
) -> Picture:
    """Time to first token over the read rate, for a start and two restores; the rate of `where` and
    the break-even as lines."""
    even = case.break_even_bytes_per_s()
    rows = [
        f"{show_rate(r)}: start {show_s(case.start_s(r))}, restore {show_s(case.restore_s(r))}"
        f" (weights inside the image {show_s(case.restore_s(r, mapped=False))})"
        for r in (20e6, 100e6, 500e6, read_bytes_per_s, 5e9)
    ]
    verdict = (
        f"break-even at {show_rate(even)}" if even != float("inf") else "restoring never wins here"
    )
    text = "\n".join(
        [
            f"{verdict}; {where} reads {show_rate(read_bytes_per_s)}",
            *rows,
            f"Lines are a model through phases measured on {where}.",
        ]
    )
    return Picture(
        lambda theme: _draw(case, read_bytes_per_s, even, host, where, theme),
        alt=f"Restore against start over the read rate: {verdict}.",
        text=text,
        name="break_even",
    )


def _draw(case: Case, here: float, even: float, host: str, where: str, theme: Theme) -> Figure:
    figure = look.blank(9.0, 4.0)
    axes = figure.add_axes((0.09, 0.15, 0.66, 0.68))
    rates = [10e6 * 1.1**i for i in range(73)]
    lines = (
        ("start", START, "-", [case.start_s(r) for r in rates]),
        ("restore, weights mapped", RESTORE, "-", [case.restore_s(r) for r in rates]),
        ("restore, weights inside", WHOLE, "--", [case.restore_s(r, mapped=False) for r in rates]),
    )
    low = min(min(y) for *_, y in lines)
    ends = sorted(((y[-1], name, colour) for name, colour, _, y in lines), key=lambda e: e[0])
    for name, colour, dash, y in lines:
        axes.plot(rates, y, dash, color=colour, linewidth=1.8, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(rates[0], rates[-1])
    axes.set_ylim(low * 0.7, max(max(y) for *_, y in lines) * 1.2)
    placed = 0.0
    for value, name, colour in ends:  # labels at the lines' ends, kept apart
        at = max(value, placed * 1.22)
        placed = at
        axes.annotate(
            f"{name}",
            (rates[-1], value),
            (1.02, at),
            xycoords="data",
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            fontsize=look.BASE_PT - 1,
            va="center",
        )
    axes.axvline(here, color=theme.ink, linewidth=0.9)
    axes.annotate(
        f"{where} {show_rate(here)}",
        (here, 1.02),
        xycoords=("data", "axes fraction"),
        ha="center",
        fontsize=look.BASE_PT - 2,
        color=theme.ink,
    )
    if rates[0] < even < rates[-1]:
        axes.axvline(even, color=theme.faint, linewidth=0.9, linestyle=":")
        axes.annotate(
            f"break-even\n{show_rate(even)}",
            (even, 0.96),
            xycoords=("data", "axes fraction"),
            ha="left",
            va="top",
            xytext=(4, 0),
            textcoords="offset points",
            fontsize=look.BASE_PT - 2,
            color=theme.faint,
        )
    axes.set_xticks([10e6, 100e6, 1e9, 10e9], ["10 MB/s", "100 MB/s", "1 GB/s", "10 GB/s"])
    axes.minorticks_off()
    axes.set_yticks(
        [
            t
            for t in (0.1, 0.3, 1, 3, 10, 30, 100, 300)
            if low * 0.7 <= t <= max(max(y) for *_, y in lines) * 1.2
        ]
    )
    axes.yaxis.set_major_formatter(lambda v, _: show_s(v))
    axes.set_xlabel("read rate of disk or link")
    look.title(figure, f"Time to first token: a model through phases measured on {where}", 0.955)
    if host:
        figure.text(0.988, 0.03, host, fontsize=look.BASE_PT - 2, color=theme.faint, ha="right")
    return figure


def inside(contents: Mapping[str, int], most: int = 5) -> Picture:
    """Bytes of an image by what they are, largest first."""
    names = {"anonymous": "anonymous memory", "heap": "heap"}
    rows = [
        (_short(Path(k).name) if k.startswith("/") else names.get(k, k), v)
        for k, v in list(contents.items())[:most]
    ]
    rest = sum(list(contents.values())[most:])
    rows += [("other files' changed pages", rest)] if rest else []
    total = sum(contents.values())
    text = (
        "\n".join(f"{show_bytes(v):>10}  {k}" for k, v in rows)
        + f"\n{show_bytes(total):>10}  in all"
    )
    return Picture(
        lambda theme: _draw_inside(rows, total, theme),
        alt=f"An image of {show_bytes(total)}: "
        + "; ".join(f"{k} {show_bytes(v)}" for k, v in rows),
        text=text,
        name="inside",
    )


def _short(name: str, most: int = 26) -> str:
    return name if len(name) <= most else name[:12] + "…" + name[-13:]


def _draw_inside(rows: list[tuple[str, int]], total: int, theme: Theme) -> Figure:
    height_in = 0.8 + 0.32 * len(rows)
    figure = look.blank(9.0, height_in)
    axes = figure.add_axes((0.3, 0.12 / height_in, 0.6, 1 - 0.65 / height_in))
    axes.barh(range(len(rows)), [v for _, v in rows], color=RESTORE, height=0.6)
    axes.set_yticks(range(len(rows)), [k for k, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xticks([])
    for side in ("top", "right", "bottom"):
        axes.spines[side].set_visible(False)
    for y, (_, value) in enumerate(rows):
        axes.annotate(
            f"{show_bytes(value)}",
            (value, y),
            (5, 0),
            textcoords="offset points",
            va="center",
            fontsize=look.BASE_PT - 1,
        )
    look.title(figure, f"What is in the image ({show_bytes(total)})", 1 - 0.25 / height_in)
    return figure

"""A figure with a row an arm: its stamp, its caption, its axes and the colours of the arms.

    names = chosen(run, None)
    figure, axes = frame(run, names, "Time to first token", 0.35, theme)

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.core.records import Run
from labkit.errors import BadInput
from labkit.viz import captions
from labkit.viz import theme as look
from labkit.viz.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTH_IN = 9.0
_ROW_IN = 0.46
_LABEL_CHARS = 24


def stamp(run: Run) -> str:
    """What must stand on every figure and table of this run, or ""."""
    if not run.trials:
        return ""
    return captions.stamp(
        captions.Shown(
            run.trials[0],
            replayed_from=captions.replayed_from(run),
            simulated=captions.simulated(run),
        )
    )


def headed(title: str, run: Run) -> str:
    """The title, with the stamp behind it."""
    return f"{title}   [{stamp(run)}]" if stamp(run) else title


def chosen(run: Run, arms: Sequence[str] | None) -> list[str]:
    """The arms asked for, by default all. Raises BadInput where there is none, or one that the run
    does not have."""
    names = list(arms or run.arm_names)
    unknown = ", ".join(n for n in names if n not in run.arm_names)
    if unknown or not names:
        problem = f"no arm {unknown!r} in run {run.id}" if unknown else f"run {run.id} has no arms"
        raise BadInput(problem, fix="one of: " + ", ".join(run.arm_names))
    return names


def caption(run: Run, names: Sequence[str]) -> str:
    """Model, cache state, scenario, link, n and host of these arms."""
    shown = [captions.choose(run, n) for n in names if run.of_arm(n)]
    if not shown:
        return captions.host_name(run.host, captions.device(run))
    states = sorted({t.cache.get("state", "unverified") for n in names for t in run.of_arm(n)})
    facts = [*([f"model {shown[0].model}"] if shown[0].model else []), f"cache {'/'.join(states)}"]
    facts += sorted({str(s.arm["scenario"]) for s in shown if s.arm.get("scenario")})
    facts += sorted({captions.link_words(str(s.arm["link"])) for s in shown if s.arm.get("link")})
    counts = sorted({s.n for s in shown})
    facts.append(f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}")
    failed = sum(s.failed for s in shown)
    if failed:
        facts.append(f"{failed} failed")
    if disturbed := sum(s.disturbed for s in shown):
        facts.append(f"{disturbed} disturbed by other work")
    return " · ".join([*facts, captions.host_name(run.host, captions.device(run))])


def frame(
    run: Run,
    names: Sequence[str],
    title: str,
    right_in: float,
    theme: Theme,
    legend_in: float = 0.0,
) -> tuple[Figure, Axes]:
    """A blank figure with the title and a labelled row for each arm, `right_in` inches free beside
    the axes and `legend_in` above them."""
    lines = textwrap.wrap(caption(run, names), 150)
    mark = stamp(run)
    labels = ["\n".join(textwrap.wrap(n, _LABEL_CHARS, break_long_words=True)[:3]) for n in names]
    head_in, foot_in = 0.55 + (0.36 if mark else 0) + legend_in, 0.74 + 0.17 * (len(lines) - 1)
    row_in = max(_ROW_IN, 0.2 * max(label.count("\n") + 1 for label in labels) + 0.1)
    height_in = head_in + foot_in + row_in * len(names) + 0.1
    left_in = 0.3 + 0.092 * max(len(part) for label in labels for part in label.split("\n"))
    figure = look.blank(_WIDTH_IN, height_in)
    axes = look.axes(figure, left_in, right_in, head_in, foot_in)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds since the request", fontsize=look.BASE_PT - 1)
    look.title(figure, title, 1 - 0.27 / height_in)
    look.stamp(figure, theme, mark, 1 - 0.65 / height_in)
    look.caption(figure, theme, lines, 0.085 / height_in)
    return figure, axes


def colour(run: Run, name: str) -> str:
    """An arm keeps its colour whatever subset is drawn."""
    return look.ARM_COLOURS[run.arm_names.index(name) % len(look.ARM_COLOURS)]


def beside(axes: Axes, x: float, y: float, text: str, **style: Any) -> None:
    """Text right of a row. `x`: as a share of the axes' width; `y`: the row."""
    transform = axes.get_yaxis_transform()
    axes.text(x, y, text, transform=transform, ha="left", va="center", **style)

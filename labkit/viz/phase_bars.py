"""Phases of a trial end to end in one bar, and the key of their colours.

    stacked(axes, y, trial, theme)      one bar; time that two phases share is drawn once, for the
        one that began first
    axes.legend(handles=key(used, theme))

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from labkit.core.json_types import JsonObject
from labkit.core.records import Trial
from labkit.core.timeline import PHASES
from labkit.viz import captions
from labkit.viz import theme as look
from labkit.viz.theme import Theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def stacked(axes: Axes, y: float, trial: Trial, theme: Theme, **more: Any) -> None:
    """The trial's phases at height `y`, and what no phase accounts for. `more`: of every piece, in
    place of the phase's own look."""
    reached = 0.0
    for row in captions.rows(trial):
        for start_s, end_s in row.pieces:
            accounted = row.phase != captions.UNACCOUNTED
            left = max(start_s, reached) if accounted else start_s
            if end_s > left:
                style = {"height": 0.5, **phase_look(row.phase, theme), **more}
                axes.barh(y, end_s - left, left=left, **style)
                reached = max(reached, end_s) if accounted else reached


def used(trials: Iterable[Trial]) -> list[str]:
    """The phases that these trials have, in their order."""
    drawn = {p for t in trials for p in (*t.phases, *(x["name"] for x in t.spans))}
    return [p for p in PHASES if p in drawn]


def key(phases: Iterable[str], theme: Theme) -> list[Any]:
    """Handles of a legend: these phases, then the unaccounted time."""
    from matplotlib.patches import Patch

    return [
        Patch(label=p.replace("_", " "), **phase_look(p, theme))
        for p in (*phases, captions.UNACCOUNTED)
    ]


def phase_look(phase: str, theme: Theme) -> JsonObject:
    """How a bar of the phase is filled."""
    if phase == captions.UNACCOUNTED:
        return {
            "facecolor": "none",
            "edgecolor": theme.faint,
            "hatch": "////",
            "linewidth": 0.4,
        }
    return {
        "facecolor": look.PHASE_COLOURS[phase],
        "hatch": look.PHASE_HATCHES[phase],
        "edgecolor": theme.paper if theme.paper != "none" else theme.ink,
        "linewidth": 0.4,
    }

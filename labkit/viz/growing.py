"""Phases as bars while a trial runs, from a handful of numbers (about 0.1 ms a phase): matplotlib
would take a core from what is measured. The finished waterfall is the usual one.

    growing_html([("pull", 2.0), ("unpack", 5.0)])       # name, and when it ended

Lesson: notebooks/08_stacking."""

from __future__ import annotations

from html import escape
from typing import Protocol

from labkit.core.records import Trial
from labkit.core.units import show_s
from labkit.viz import theme as look


class Watcher(Protocol):
    """Where the bars and a line beside them are shown."""

    def say(self, text: str) -> None: ...
    def grow(self, html: str) -> None: ...


class Growing:
    """A Progress whose phases become bars as they end. Also without a view: then it says nothing
    until the trial is done."""

    def __init__(self, view: Watcher | None):
        self.view = view
        self.ends: list[tuple[str, float]] = []

    def note(self, text: str) -> None:
        if self.view:
            self.view.say(text)

    def trial_started(self, arm: str, block: int = 0, blocks: int = 0, *_: object) -> None:
        self.ends = []
        self.note(f"{arm}: t0 – nothing is running")

    def phase(self, name: str, at_s: float = 0.0, *_: object) -> None:
        self.ends.append((name, at_s))
        if self.view:
            self.view.grow(growing_html(self.ends))
            after = " – answering, then everything is taken down" if name == "ready" else ""
            self.view.say(f"{name} over after {show_s(at_s)}{after}")

    def trial_done(self, trial: Trial) -> None:
        if self.view:
            self.view.say(
                f"first token after {show_s(trial.total_s)}"
                if trial.ok and trial.total_s
                else f"{trial.outcome}: {trial.error.get('what', '')}"
            )


def growing_html(ends: list[tuple[str, float]]) -> str:
    """Bars of the phases so far, from what ended when. A phase is taken to begin where the one
    before it ended."""
    until = max((end for _, end in ends), default=0.0) or 1.0
    rows, reached = [], 0.0
    for name, end in ends:
        start = min(reached, end)
        width_percent = max(100 * (end - start) / until, 0.4)
        bar = (
            f"margin-left:{100 * start / until:.1f}%;width:{width_percent:.1f}%;height:14px;"
            f"background:{look.PHASE_COLOURS.get(name, '#7C7C7C')}"
        )
        rows.append(
            f'<tr><td style="text-align:right;padding-right:8px">{escape(name)}</td>'
            f'<td style="width:70%"><div style="{bar}"></div></td>'
            f'<td style="text-align:right">{show_s(end - start)}</td></tr>'
        )
        reached = max(reached, end)
    return f'<table role="presentation" style="width:100%;border:none">{"".join(rows)}</table>'

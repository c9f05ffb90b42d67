"""Progress of a run, shown in the way that suits where it runs; the measurement never waits for a
display.

    terminal   one live line, redrawn at most five times a second and at least once: `block 2/5
        naive  pull 1.9 s › unpack 4.8 s ›  1:20, about 4 min left`
    widget     a table in JupyterLab whose rows arrive as trials end, with the same line in words
        beside it (the text twin)
    plain      one line a trial, for papermill, CI and logs: a redrawn line would flood them
    silent     nothing

    with Progress() as progress:
        progress.plan(["naive", "article"], blocks=5)    # an experiment does it by itself
        progress.note("building the image")              # off the clock: its time counts for none
        progress.trial_started("naive", 0, 5)
        progress.phase("load", 7.1)
        progress.trial_done(trial)

`where()` chooses; `LABKIT_DISPLAY=terminal|widget|plain|silent` overrides it. Nothing here raises
into a measurement: a display that breaks is given up. Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import TextIO

from labkit.core import printable
from labkit.core.records import Trial
from labkit.core.stdout import terminal
from labkit.core.units import show_s
from labkit.viz.displays import Line, Silent, display_of
from labkit.viz.remaining import Remaining, clock

ENV = "LABKIT_DISPLAY"
KINDS = ("terminal", "widget", "plain", "silent")
#: How often a live line moves by itself: a wait that stands still looks like a hang.
_TICK_S = 1.0
#: What was done off the clock in less is noted without its time.
_NOTED_S = 1.0


def where(stream: TextIO | None = None) -> str:
    """The display that suits this process: a kernel gets a widget, a terminal a live line, anything
    else plain lines."""
    chosen = os.environ.get(ENV, "")
    if chosen in KINDS:
        return chosen
    if os.environ.get("CI"):
        return "plain"
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    if shell is not None and hasattr(shell, "kernel"):
        return "widget" if _widgets_here() else "plain"
    live = terminal(stream or sys.stderr) and os.environ.get("TERM") != "dumb"
    return "terminal" if live else "plain"


def _widgets_here() -> bool:
    import importlib.util

    return importlib.util.find_spec("ipywidgets") is not None


class Progress:
    """What a run tells its watcher. `trials`: how many there will be (0: unknown); `plan` says
    which, and from then on the time that is left is estimated."""

    def __init__(self, trials: int = 0, *, show: str | None = None, stream: TextIO | None = None):
        self.trials, self.done = trials, 0
        self.stream = stream or sys.stderr
        self.remaining = Remaining()
        self._began_s = self._started_s = time.monotonic()
        self._arm, self._block, self._noted = "", "", ""
        self._phases: list[str] = []
        self._lock = threading.RLock()
        kind = show or where(self.stream)
        self._view: Silent = display_of(kind, self.stream)
        self._closed = threading.Event()
        if kind == "terminal":
            threading.Thread(
                target=_tick,
                args=(weakref.ref(self), self._closed),
                name="labkit-progress",
                daemon=True,
            ).start()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def plan(
        self, arms: Sequence[str], blocks: int = 1, seconds: Mapping[str, float] | None = None
    ) -> None:
        """The trials of the experiment that begins, as `Remaining.plan` takes them. `seconds`: what
        a trial of an arm is expected to take, until one was seen."""
        with self._lock:
            self.remaining.plan(arms, blocks, seconds)
            self.trials = max(self.trials, self.done + len(arms) * blocks)

    def replan(self, arms: Sequence[str], blocks: int = 1) -> None:
        """Other trials are to come than were planned, in the same experiment."""
        with self._lock:
            self.remaining.replan(arms, blocks)
            self.trials = self.done + len(arms) * blocks

    def note(self, text: str) -> None:
        """Something off the clock: "building the image (first time only)"."""
        with self._lock:
            self._end_note()
            self._noted, self._started_s = text, time.monotonic()
            self._say("note", text)
            self._live()

    def trial_started(self, arm: str, block: int = 0, blocks: int = 0, *_more: object) -> None:
        """`block` counts from 0, as in the record."""
        with self._lock:
            self._end_note()
            self._arm, self._phases = arm, []
            self._block = f"block {block + 1}/{blocks}  " if blocks else ""
            self._started_s = time.monotonic()
            self._live()

    def phase(self, name: str, at_s: float = 0.0, *_more: object) -> None:
        """A phase ended, `at_s` seconds after t0. Called as often as one likes; redraws are limited
        by the view."""
        with self._lock:
            self._phases.append(f"{name} {show_s(at_s)}")
            self._live()

    def trial_done(self, trial: Trial) -> None:
        with self._lock:
            self._end_note()
            self.done += 1
            self.remaining.done(trial.arm, time.monotonic() - self._started_s)
            self._arm = ""
            self._say("trial", self.result_line(trial), self.times(count=True))
            self._say("count", self.done, self.trials)

    def close(self) -> None:
        with self._lock:
            self._closed.set()
            self._end_note()
            self._say("close")

    def line(self) -> Line:
        """`block 2/5  naive  pull 1.9 s › unpack 4.8 s ›  1:20, about 4 min left`: phases that are
        over, with their end since t0. Off the clock, what is being done and for how long."""
        if self._noted:
            return Line(self._noted, times=clock(time.monotonic() - self._started_s))
        count = (
            f"{self.done + 1}/{self.trials}  " if self.trials and not self._block else self._block
        )
        steps = tuple(self._phases)
        head = f"{count}{self._arm}" + ("" if steps else "  preparing")
        return Line(head, steps, self.times())

    def times(self, count: bool = False) -> str:
        """`3 of 12 in 1:20, about 4 min left`, or without the count; what is left where that can be
        said."""
        now = time.monotonic()
        elapsed = clock(now - self._began_s)
        if count and self.trials:
            elapsed = f"{self.done} of {self.trials} in {elapsed}"
        running_s = now - self._started_s if self._arm else 0.0
        left = self.remaining.words(self._arm, running_s)
        return f"{elapsed}, {left}" if left else elapsed

    def result_line(self, trial: Trial) -> str:
        """`naive  8.31 s  cold  (load 3.1 s, import 2.2 s, unpack 1.9 s)` or `naive  FAILED
        timeout: …`."""
        head = f"{self._block}{trial.arm}  "
        if not trial.ok:
            reason = trial.error.get("what", "")
            return f"{head}FAILED {trial.outcome}" + (f": {reason}" if reason else "")
        longest = sorted(trial.phases.items(), key=lambda kv: -kv[1])[:3]
        parts = ", ".join(f"{name} {show_s(s)}" for name, s in longest)
        return (
            f"{head}{show_s(trial.total_s or 0)}  {trial.cache.get('state', 'unverified')} "
            f" ({parts})"
        ) + (f"  DISTURBED: {trial.disturbed}" if trial.disturbed else "")

    def tick(self) -> None:
        """The live line as it is now."""
        with self._lock:
            if not self._closed.is_set():
                self._live()

    def _live(self) -> None:
        if self._noted or self._arm:
            head, steps, times = self.line()
            steps = tuple(printable.line(s) for s in steps)
            self._say("live", Line(printable.line(head), steps, times))

    def _end_note(self) -> None:
        if self._noted:
            took_s = time.monotonic() - self._started_s
            self._say("noted", self._noted, show_s(took_s) if took_s >= _NOTED_S else "")
            self._noted = ""

    def _say(self, kind: str, *values: object) -> None:
        try:
            getattr(self._view, kind)(
                *(printable.line(w) if isinstance(w, str) else w for w in values)
            )
        except Exception:
            # A closed pipe or a lost kernel connection must not end a measurement that is otherwise
            # good.
            self._view = Silent()


def progress(trials: int = 0) -> Progress:
    """The progress that suits this process; what `labkit run` and the notebooks hand to an
    experiment."""
    return Progress(trials)


def _tick(watched: weakref.ref[Progress], closed: threading.Event) -> None:
    """Until the progress is closed, or nobody holds it any more."""
    while not closed.wait(_TICK_S):
        if (progress := watched()) is None:
            return
        progress.tick()
        del progress

"""Progress of a run, shown in the way that suits where it runs; the measurement never waits for a
display.

    terminal   one live line, redrawn at most five times a second: `block 2/5  naive  pull 1.9 s ›
        unpack 4.8 s ›`
    widget     a table in JupyterLab whose rows arrive as trials end, with the same line in words
        beside it (the text twin)
    plain      one line a trial, for papermill, CI and logs: a redrawn line would flood them
    silent     nothing

    with Progress(trials=5) as progress:
        progress.trial_started("naive", 0, 5)
        progress.phase("load", 7.1)
        progress.trial_done(trial)

`where()` chooses; `LABKIT_DISPLAY=terminal|widget|plain|silent` overrides it. Nothing here raises
into a measurement: a display that breaks is given up for `plain`. Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import os
import sys
import time
from html import escape
from typing import TextIO

from labkit.core import printable
from labkit.core.records import Trial
from labkit.core.units import show_s

ENV = "LABKIT_DISPLAY"
KINDS = ("terminal", "widget", "plain", "silent")
#: A redraw costs about 1 ms of one core; five a second are seen as live and stay far below the
#: noise of a trial.
_REDRAW_S = 0.2


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
    return (
        "terminal"
        if (stream or sys.stderr).isatty() and os.environ.get("TERM") != "dumb"
        else "plain"
    )


def _widgets_here() -> bool:
    import importlib.util

    return importlib.util.find_spec("ipywidgets") is not None


class Progress:
    """What a run tells its watcher. `trials`: how many there will be (0: unknown)."""

    def __init__(self, trials: int = 0, *, show: str | None = None, stream: TextIO | None = None):
        self.trials, self.done = trials, 0
        self.stream = stream or sys.stderr
        self._started_s = time.monotonic()
        self._arm, self._block = "", ""
        self._phases: list[str] = []
        self._view = _view(show or where(self.stream), self.stream)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, text: str) -> None:
        """Something off the clock: "building the image (first time only)"."""
        self._say("note", text)

    def trial_started(self, arm: str, block: int = 0, blocks: int = 0, *_more: object) -> None:
        """`block` counts from 0, as in the record."""
        self._arm, self._phases = arm, []
        self._block = f"block {block + 1}/{blocks}  " if blocks else ""
        self._started_s = time.monotonic()
        self._say("live", self.line())

    def phase(self, name: str, at_s: float = 0.0, *_more: object) -> None:
        """A phase ended, `at_s` seconds after t0. Called as often as one likes; redraws are limited
        by the view."""
        self._phases.append(f"{name} {show_s(at_s)}")
        self._say("live", self.line())

    def trial_done(self, trial: Trial) -> None:
        self.done += 1
        self._say("trial", self.result_line(trial), trial)
        self._say("count", self.done, self.trials)

    def close(self) -> None:
        self._say("close", "")

    def line(self) -> str:
        """`block 2/5  naive  pull 1.9 s › unpack 4.8 s ›`: phases that are over, with their end
        since t0."""
        count = (
            f"{self.done + 1}/{self.trials}  " if self.trials and not self._block else self._block
        )
        return f"{count}{self._arm}  " + ("".join(f"{p} › " for p in self._phases) or "preparing")

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

    def _say(self, kind: str, *values: object) -> None:
        try:
            getattr(self._view, kind)(
                *(printable.line(w) if isinstance(w, str) else w for w in values)
            )
        except Exception:
            # A closed pipe or a lost kernel connection must not end a measurement that is otherwise
            # good.
            self._view = _Silent()


def progress(trials: int = 0) -> Progress:
    """The progress that suits this process; what `labkit run` and the notebooks hand to an
    experiment."""
    return Progress(trials)


def _view(kind: str, stream: TextIO) -> _Silent:
    if kind == "widget":
        try:
            return _Widget()
        except Exception:
            kind = "plain"
    return {"terminal": _Terminal, "plain": _Plain}.get(kind, _Silent)(stream)


class _Silent:
    def __init__(self, stream: TextIO | None = None):
        self.stream = stream

    def note(self, text: str) -> None: ...
    def live(self, text: str) -> None: ...
    def count(self, done: int, total: int) -> None: ...
    def trial(self, text: str, trial: Trial | None = None) -> None: ...
    def close(self, text: str) -> None: ...


class _Plain(_Silent):
    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def trial(self, text: str, trial: Trial | None = None) -> None:
        print(text, file=self.stream, flush=True)


class _Terminal(_Silent):
    """One line that is rewritten; results scroll above it."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.stream: TextIO = stream
        self._drawn_s = 0.0
        self._dirty = False

    def _write(self, text: str, end: str = "") -> None:
        self.stream.write("\r\x1b[2K" + text + end)
        self.stream.flush()

    def live(self, text: str) -> None:
        now = time.monotonic()
        if now - self._drawn_s >= _REDRAW_S:
            self._drawn_s, self._dirty = now, True
            try:
                width = os.get_terminal_size(self.stream.fileno()).columns
            except (OSError, ValueError):
                width = 80
            self._write(text[: max(width - 1, 20)])

    def note(self, text: str) -> None:
        self._write(text, "\n")

    def trial(self, text: str, trial: Trial | None = None) -> None:
        self._dirty, self._drawn_s = False, 0.0
        self._write(text, "\n")

    def close(self, text: str) -> None:
        if self._dirty:
            self._write("")
            self._dirty = False


class _Widget(_Silent):
    """A bar and a live line as widgets; below them the finished lines as plain HTML – the text
    twin, which an exported page keeps."""

    def __init__(self) -> None:
        super().__init__()
        import ipywidgets
        from IPython.display import HTML, display

        self._html = HTML
        self._label = ipywidgets.HTML()
        self._bar = ipywidgets.IntProgress(value=0, max=1, layout=ipywidgets.Layout(width="160px"))
        self._box = ipywidgets.HBox([self._bar, self._label])
        self._lines: list[str] = []
        self._drawn_s = 0.0
        display(self._box)
        self._twin = display(HTML("<pre></pre>"), display_id=True)

    def live(self, text: str) -> None:
        now = time.monotonic()
        if now - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now
            self._label.value = f"<code>{escape(text)}</code>"

    def count(self, done: int, total: int) -> None:
        self._bar.max, self._bar.value = max(total, done, 1), done

    def note(self, text: str) -> None:
        self._label.value = f"<i>{escape(text)}</i>"

    def trial(self, text: str, trial: Trial | None = None) -> None:
        self._drawn_s = 0.0
        self._lines.append(text)
        self._label.value = ""
        if self._twin is not None:
            self._twin.update(self._html(f"<pre>{escape(chr(10).join(self._lines))}</pre>"))

    def close(self, text: str) -> None:
        self._box.close()

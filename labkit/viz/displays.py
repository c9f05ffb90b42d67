"""Where progress is shown: a terminal's live line, plain lines, JupyterLab's widgets, nowhere.

No display sends an escape sequence: a line is drawn over by a carriage return and blanks, which
every terminal knows, `NO_COLOR` or not. Widths are asked for at each redraw, so a terminal may be
resized. Lesson: notebooks/00_start_here."""

from __future__ import annotations

import time
from html import escape
from typing import NamedTuple, TextIO

from labkit.core.fit import cut, display_width, fit
from labkit.core.stdout import COLUMNS, as_written, columns

#: A redraw costs about 1 ms of one core; five a second are seen as live and stay far below the
#: noise of a trial.
_REDRAW_S = 0.2
#: Below this many columns for the rest, the times are left out.
_LEAST_COLUMNS = 16


class Line(NamedTuple):
    """What is going on: `head` names it, `steps` are over, `times` say how long."""

    head: str
    steps: tuple[str, ...] = ()
    times: str = ""

    def as_written(self, stream: TextIO) -> Line:
        steps = tuple(as_written(step, stream) for step in self.steps)
        return Line(as_written(self.head, stream), steps, self.times)

    def text(self, width: int = 10_000) -> str:
        """In `width` columns: the oldest steps go first, then the times, then the end of the
        head."""
        times = f"  {self.times}" if self.times else ""
        if width - display_width(times) < _LEAST_COLUMNS:
            times = ""
        space = width - display_width(times)
        shown: list[str] = []
        taken = display_width(self.head) + 2
        for step in reversed(self.steps):
            taken += display_width(step) + 3
            if taken - 1 > space:
                break
            shown.insert(0, f"{step} ›")
        return cut("  ".join([self.head, *([" ".join(shown)] if shown else [])]), space) + times


class Silent:
    """Nothing is shown. What the others add to."""

    def __init__(self, stream: TextIO | None = None):
        self.stream = stream

    def note(self, text: str) -> None: ...
    def noted(self, text: str, took: str) -> None: ...
    def live(self, line: Line) -> None: ...
    def count(self, done: int, total: int) -> None: ...
    def trial(self, text: str, times: str) -> None: ...
    def close(self) -> None: ...


class Plain(Silent):
    def note(self, text: str) -> None:
        print(text, file=self.stream, flush=True)

    def trial(self, text: str, times: str) -> None:
        print(f"{text}  {times}".rstrip(), file=self.stream, flush=True)


class Terminal(Silent):
    """One line that is rewritten; results, and what was done off the clock, scroll above it."""

    def __init__(self, stream: TextIO):
        super().__init__(stream)
        self.stream: TextIO = stream
        self._drawn_s = 0.0
        self._shown = 0

    def _width(self) -> int:
        return columns(self.stream) or COLUMNS

    def live(self, line: Line) -> None:
        now = time.monotonic()
        if now - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now
            # in the last column some terminals break the line
            text = line.as_written(self.stream).text(self._width() - 1)
            taken = display_width(text)
            # of a line drawn before the terminal became narrower, no more than it holds now
            blank = min(max(self._shown - taken, 0), self._width() - 1 - taken)
            self.stream.write("\r" + text + " " * blank)
            self.stream.flush()
            self._shown = taken

    def _clear(self) -> None:
        if self._shown:
            self.stream.write("\r" + " " * min(self._shown, self._width() - 1) + "\r")
            self._shown = 0

    def _scroll(self, text: str) -> None:
        self._clear()
        self._drawn_s = 0.0
        self.stream.write(fit(as_written(text, self.stream), self._width()) + "\n")
        self.stream.flush()

    def noted(self, text: str, took: str) -> None:
        self._scroll(f"{text}  {took}".rstrip())

    def trial(self, text: str, times: str) -> None:
        self._scroll(text)

    def close(self) -> None:
        self._clear()
        self.stream.flush()


class Widget(Silent):
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

    def live(self, line: Line) -> None:
        now = time.monotonic()
        if now - self._drawn_s >= _REDRAW_S:
            self._drawn_s = now
            self._label.value = f"<code>{escape(line.text())}</code>"

    def count(self, done: int, total: int) -> None:
        self._bar.max, self._bar.value = max(total, done, 1), done

    def note(self, text: str) -> None:
        self._drawn_s = time.monotonic()
        self._label.value = f"<i>{escape(text)}</i>"

    def trial(self, text: str, times: str) -> None:
        self._drawn_s = 0.0
        self._lines.append(text)
        self._label.value = f"<code>{escape(times)}</code>"
        if self._twin is not None:
            self._twin.update(self._html(f"<pre>{escape(chr(10).join(self._lines))}</pre>"))

    def close(self) -> None:
        self._box.close()


def display_of(kind: str, stream: TextIO) -> Silent:
    """The display of that kind; plain lines where there are no widgets."""
    if kind == "widget":
        try:
            return Widget()
        except Exception:
            kind = "plain"
    return {"terminal": Terminal, "plain": Plain}.get(kind, Silent)(stream)

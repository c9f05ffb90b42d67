"""What the benches of the notebooks share: a guess that is written down before a run, every attempt
in words, and how a bench shows itself – as widgets in JupyterLab, as figure and text elsewhere.

    class MyBench(Bench[MyAttempt]): ...       # labkit.viz.stack_bench, labkit.viz.planner

Every widget is a native form control, reachable by Tab; what was run stays on an exported page.
Lesson: notebooks/08_stacking."""

from __future__ import annotations

from abc import abstractmethod
from html import escape
from typing import Any, Generic, Protocol, TypeVar

from labkit.core.units import show_s
from labkit.errors import LabError
from labkit.viz.theme import Picture


class Guessed(Protocol):
    """An attempt: seconds that were predicted for it, None without a prediction."""

    @property
    def guess_s(self) -> float | None: ...


A = TypeVar("A", bound=Guessed)
B = TypeVar("B", bound="Bench[Any]")


class Bench(Generic[A]):
    """Attempts and the guess of the next one. `title`: what its settings are called."""

    title = ""

    def __init__(self) -> None:
        self.guess_s: float | None = None
        self.attempts: list[A] = []
        self._view: View | None = None

    @abstractmethod
    def settings(self) -> str:
        """What is set, in one line."""

    def page_settings(self) -> str:
        """The same on a page."""
        return self.settings()

    @abstractmethod
    def name(self, attempt: A) -> str:
        """What was tried."""

    @abstractmethod
    def verdict(self, attempt: A) -> str:
        """Guess against result, in a sentence."""

    @abstractmethod
    def figure(self) -> Picture | None:
        """The last result that can be drawn."""

    @abstractmethod
    def _widgets(self) -> View: ...

    def guess(self: B, seconds: float | None) -> B:
        """The prediction of the next attempt, written down before it."""
        self.guess_s = seconds
        return self

    def _add(self, attempt: A) -> None:
        """The guess counts once."""
        self.attempts.append(attempt)
        self.guess_s = None
        if self._view:
            self._view.show_result()

    def _lines(self) -> list[str]:
        return [f"{self.name(attempt)}: {self.verdict(attempt)}" for attempt in self.attempts]

    @property
    def text(self) -> str:
        """The text twin: what is set, every attempt, the last figure in words."""
        lines = [f"{self.title.lower()}: {self.settings()}"]
        lines += [f"{i}. {line}" for i, line in enumerate(self._lines(), 1)]
        figure = self.figure()
        return "\n".join([*lines, figure.text] if figure else lines)

    def html(self) -> str:
        """What stays on an exported page: attempts as a list, the last result as a figure."""
        rows = "".join(f"<li>{escape(line)}</li>" for line in self._lines())
        figure = self.figure()
        return (
            f"<p>{self.title} – {escape(self.page_settings())}</p>"
            + (f"<ol>{rows}</ol>" if rows else "")
            + (figure.html() if figure else "")
        )

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        from labkit.viz.live import where

        if where() == "widget":
            self._view = self._widgets()
            self._view.display()
        else:
            display(HTML(self.html()))

    def __repr__(self) -> str:
        return self.text


def guess_words(took_s: float, guess_s: float | None) -> str:
    """How far a guess was off."""
    if not guess_s:
        return "no guess"
    return f"guessed {show_s(guess_s)}, off by {max(took_s / guess_s, guess_s / took_s):.1f}×"


def announced(text: str, bad: bool = False) -> str:
    """A line that screen readers read out as it changes."""
    return (
        '<div role="status"'
        f' aria-live="polite">{"<b>Not possible.</b> " if bad else ""}{escape(text)}</div>'
    )


class View:
    """The widgets of a bench: a button, a line that is read out, and the bench's page below. Built
    once a display; subclasses make `box`."""

    def __init__(self, bench: Bench[Any], button: str, tooltip: str, invitation: str):
        import ipywidgets as w

        self.bench = bench
        self.button = w.Button(description=button, button_style="primary", tooltip=tooltip)
        self.button.on_click(self._pressed)
        self.status = w.HTML(value=announced(invitation))
        self.box: Any = None
        self.handle: Any = None

    def display(self) -> None:
        from IPython.display import HTML, display

        display(self.box)
        self.handle = display(HTML(self.bench.html()), display_id=True)

    def say(self, text: str, bad: bool = False) -> None:
        self.status.value = announced(text, bad)

    @abstractmethod
    def run(self) -> None:
        """What the button does."""

    def _pressed(self, _button: object) -> None:
        self.button.disabled = True
        try:
            self.run()
        except LabError as error:
            self.say(str(error), bad=True)
        finally:
            self.button.disabled = False

    def show_result(self) -> None:
        from IPython.display import HTML

        self.say(self.bench.verdict(self.bench.attempts[-1]))
        if self.handle is not None:
            self.handle.update(HTML(self.bench.html()))

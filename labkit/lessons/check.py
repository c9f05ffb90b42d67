"""Exercises: a check that takes the learner's answer and explains the likely mistake, a ladder of
hints, then the solution.

    check("anatomy.unaccounted", unaccounted_s)     # prints what is right, or which mistake it
        looks like
    hint("anatomy.unaccounted")                     # the next hint each time it is called; after
        the last: solution(…)
    solution("anatomy.unaccounted")

An exercise lives in `labkit/lessons/exercises/<topic>.py` as data (`Exercise`), its solution as a
real function that the linter sees and a test runs through its own check. In a notebook its cell is
tagged `exercise` and carries the id in its metadata; run headless, the solution takes the place of
the learner's code (labkit.lessons.execute), and a check that fails then fails the notebook. Lesson:
notebooks/01_anatomy is the pattern."""

from __future__ import annotations

import importlib
import inspect
import math
import os
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput, LabError

HEADLESS = "LABKIT_HEADLESS"  # set by labkit.lessons.execute: a failed check is then an error


class WrongAnswer(Exception):
    """Raised by a check function: what was seen, and the mistake that it looks like. Plain text for
    the learner."""


class CheckFailed(LabError):
    """A check failed where no learner is (headless): the solution or the check is broken."""


@dataclass(frozen=True)
class Exercise:
    """difficulty and importance: 1 to 5. `solution`: the function asked for, using only what it
    imports itself – or the text of the cell, for exercises that ask for something else. `check`
    raises Wrong; what it returns is praise."""

    id: str  # "<topic>.<name>"; the topic is the module
    title: str
    difficulty: int
    importance: int
    minutes: int
    hints: tuple[str, ...]
    solution: Callable[..., Any] | str
    check: Callable[[Any], str | None]

    @property
    def source(self) -> str:
        """The solution as the text of a cell."""
        if isinstance(self.solution, str):
            return self.solution.strip("\n")
        return textwrap.dedent(inspect.getsource(self.solution)).strip("\n")

    @property
    def header(self) -> str:
        """The line above the exercise's cell; `labkit notebooks check --fix` keeps it in step."""
        return (
            f"**Exercise: {self.title}** · difficulty {self.difficulty}/5 · importance"
            f" {self.importance}/5 · about {self.minutes} minutes"
        )


class Verdict:
    """True or False, and silent as the last expression of a cell: what it has to say was
    printed."""

    def __init__(self, right: bool):
        self.right = right

    def __bool__(self) -> bool:
        return self.right

    def _ipython_display_(self) -> None: ...


_LADDER: dict[str, int] = {}


def exercise(name: str) -> Exercise:
    """Look one up. Raises BadInput with the names of the topic."""
    topic = name.partition(".")[0]
    try:
        known = {
            e.id: e for e in importlib.import_module(f"labkit.lessons.exercises.{topic}").EXERCISES
        }
    except ModuleNotFoundError:
        raise BadInput(
            f"no exercises about {topic!r}",
            fix="the id stands above the exercise, as in anatomy.unaccounted",
        ) from None
    if name not in known:
        raise BadInput(f"no exercise {name!r}", fix="one of: " + ", ".join(known))
    return known[name]


def check(name: str, answer: Any) -> Verdict:
    """Check an answer and print the verdict; it is true when the answer is right. Headless, a wrong
    one raises CheckFailed."""
    entry = exercise(name)
    try:
        praise = entry.check(answer)
    except WrongAnswer as wrong:
        verdict = f"Not yet. {wrong}"
    except NotImplementedError:
        verdict = (
            "Not written yet: put your code in place of the raise, run the cell again, then this"
            " one."
        )
    except Exception as error:
        verdict = f"Your code raised {type(error).__name__}: {error}"
    else:
        print("Right. " + (praise or ""))
        return Verdict(True)
    if os.environ.get(HEADLESS):
        raise CheckFailed(
            f"{name}: {verdict}",
            why="headless, the exercise's own solution was in its cell",
            fix=f"labkit/lessons/exercises/{name.partition('.')[0]}.py",
        )
    print(verdict + f'\nFor help: hint("{name}")')
    return Verdict(False)


def hint(name: str) -> None:
    """Print the next hint of the ladder."""
    entry, step = exercise(name), _LADDER.get(name, 0)
    if step >= len(entry.hints):
        print(f'That was the last hint. solution("{name}") shows one way to do it.')
        return
    _LADDER[name] = step + 1
    print(f"Hint {step + 1} of {len(entry.hints)}: {entry.hints[step]}")


def solution(name: str) -> None:
    print(exercise(name).source)


def predicted(guess: float | str | None, measured: float | str, label: str = "") -> None:
    """Set a prediction beside what was measured. `None`: nothing was written down, and the question
    is lost – say so."""
    from labkit.core.units import show_s

    about = f"{label}: " if label else ""
    if guess is None:
        print(
            f"{about}no prediction written down. Measured:"
            f" {measured if isinstance(measured, str) else show_s(measured)}. A guess made before"
            " the figure is seen is what you learn from; the next one counts."
        )
    elif isinstance(measured, str) or isinstance(guess, str):
        print(
            f"{about}you said {guess}, it was {measured}."
            + (" Right." if str(guess) == str(measured) else "")
        )
    elif guess <= 0 or measured <= 0:
        print(f"{about}you said {guess}, it was {show_s(measured)}.")
    else:
        off = max(guess / measured, measured / guess)
        side = (
            "within a tenth"
            if off <= 1.1
            else f"{off:.1f} times too {'high' if guess > measured else 'low'}"
        )
        print(f"{about}you said {show_s(float(guess))}, it was {show_s(measured)}: {side}.")


def expect(
    got: Any, wanted: Any, case: str, mistakes: JsonObject | None = None, rel: float = 1e-6
) -> None:
    """For check functions: raise Wrong unless `got` is `wanted`. `mistakes`: explanation -> the
    value that mistake gives."""
    if _same(got, wanted, rel):
        return
    for explanation, value in (mistakes or {}).items():
        if _same(got, value, rel):
            raise WrongAnswer(
                f"For {case} you return {_shown(got)}; it should be {_shown(wanted)}. {explanation}"
            )
    if got is None:
        raise WrongAnswer(f"For {case} your function returns None: is the return missing?")
    raise WrongAnswer(f"For {case} you return {_shown(got)}; it should be {_shown(wanted)}.")


def _same(a: Any, b: Any, rel: float) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)) and not isinstance(a, bool):
        return math.isclose(a, b, rel_tol=rel, abs_tol=1e-9)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return len(a) == len(b) and all(_same(x, y, rel) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


def _shown(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else repr(value)

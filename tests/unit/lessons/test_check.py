"""Exercises: each solution passes its own check, each known mistake is explained, and nothing shows
a traceback."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import labkit.lessons.exercises
from labkit.errors import BadInput
from labkit.lessons import check as lesson

TOPICS = [m.name for m in pkgutil.iter_modules(labkit.lessons.exercises.__path__)]
EXERCISES = [
    e
    for topic in TOPICS
    for e in importlib.import_module(f"labkit.lessons.exercises.{topic}").EXERCISES
]


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda e: e.id)
def test_an_exercise_is_complete(exercise):
    assert lesson.exercise(exercise.id) is exercise
    assert 1 <= exercise.difficulty <= 5 and 1 <= exercise.importance <= 5 and exercise.minutes > 0
    assert len(exercise.hints) >= 2 and exercise.source


@pytest.mark.parametrize(
    "exercise", [e for e in EXERCISES if not isinstance(e.solution, str)], ids=lambda e: e.id
)
def test_a_solution_pasted_into_a_cell_passes_its_check(exercise, monkeypatch, capsys):
    monkeypatch.setenv(lesson.HEADLESS, "1")
    cell: dict = {}
    exec(exercise.source, cell)
    assert lesson.check(exercise.id, cell[exercise.solution.__name__])
    assert capsys.readouterr().out.startswith("Right.")


@pytest.mark.parametrize(
    "exercise", [e for e in EXERCISES if not isinstance(e.solution, str)], ids=lambda e: e.id
)
@pytest.mark.parametrize(
    "answer",
    [lambda *_a, **_k: None, lambda *_a, **_k: "nonsense", lambda: 0],
    ids=["none", "nonsense", "no-arguments"],
)
def test_a_wrong_answer_is_explained_without_a_traceback(exercise, answer, capsys):
    assert not lesson.check(exercise.id, answer)
    said = capsys.readouterr().out
    assert (
        said.startswith(("Not yet.", "Your code raised"))
        and "Traceback" not in said
        and f'hint("{exercise.id}")' in said
    )


@pytest.mark.parametrize(
    ("name", "answer", "explained"),
    [
        (
            "anatomy.unaccounted",
            lambda spans, total: total - sum(e - s for s, e in spans),
            "Overlapping phases then count twice",
        ),
        (
            "anatomy.unaccounted",
            lambda spans, total: max(total - sum(e - s for s, e in spans), 0.0),
            "hides the hole",
        ),
        (
            "anatomy.floor",
            lambda size, link, disk: size / link + size / disk,
            "the slower of the two sets the floor",
        ),
        (
            "anatomy.floor",
            lambda size, link, disk: size / max(link, disk),
            "as fast as its slowest link",
        ),
        (
            "anatomy.is_faster",
            lambda a, b: "faster" if sum(a) < sum(b) else "slower",
            "trade places|lie on both sides",
        ),
        (
            "start.attack_first",
            lambda phases, floors: max(phases, key=phases.get),
            "Take the floor off",
        ),
    ],
)
def test_the_likely_mistake_is_named(name, answer, explained, capsys):
    import re

    assert not lesson.check(name, answer)
    assert re.search(explained, capsys.readouterr().out)


def test_a_stub_is_told_apart_from_a_mistake(capsys):
    def stub(*_):
        raise NotImplementedError

    assert not lesson.check("anatomy.floor", stub)
    assert "Not written yet" in capsys.readouterr().out


def test_hints_come_one_at_a_time_and_end_with_the_way_to_the_solution(capsys):
    lesson._LADDER.clear()
    for _ in range(4):
        lesson.hint("anatomy.floor")
    said = capsys.readouterr().out
    assert "Hint 1 of 2" in said and "Hint 2 of 2" in said and 'solution("anatomy.floor")' in said
    lesson.solution("anatomy.floor")
    assert "def floor_s" in capsys.readouterr().out


def test_an_unknown_exercise_names_the_known_ones():
    with pytest.raises(BadInput, match="no exercise"):
        lesson.check("anatomy.nothing", None)
    with pytest.raises(BadInput, match="no exercises about"):
        lesson.check("nothing.at_all", None)


@pytest.mark.parametrize(
    ("guess", "measured", "said"),
    [
        (None, 8.0, "no prediction"),
        (20.0, 8.0, "2.5 times too high"),
        (8.2, 8.0, "within a tenth"),
        ("load", "load", "Right"),
        ("pull", "load", "it was load"),
        (-1, 2.0, "it was"),
    ],
)
def test_a_prediction_is_set_beside_the_measurement(guess, measured, said, capsys):
    lesson.predicted(guess, measured, "time")
    assert said in capsys.readouterr().out

"""The form of a plan at a terminal."""

from __future__ import annotations

import os
import pty
import sys

import pytest

from labkit.cli import main
from labkit.core import records
from labkit.decide.form import QUESTIONS, ask, not_given
from tests.support.decide_runs import three


def answered(*answers):
    left = iter(answers)

    def read(prompt):
        try:
            return next(left)
        except StopIteration:
            raise EOFError from None

    return read


def filled(*answers, given=None):
    said = []
    return ask(given or {}, answered(*answers), said.append), "\n".join(said)


def test_answers_are_read_with_their_units():
    found, _ = filled("5GB", "16 GB", "10gbit", "120/h", "2,5")
    assert found == {
        "image_bytes": 5e9,
        "model_bytes": 16e9,
        "link_bytes_per_s": 1.25e9,
        "rate_per_s": pytest.approx(1 / 30),
        "price_per_gpu_hour": 2.5,
    }


def test_enter_leaves_a_field_as_it_is_and_the_plan_says_so():
    found, _ = filled("", "1GB", "", "", "")
    assert found == {"model_bytes": 1e9}
    left = not_given(found)
    assert left["left out"] == ["requests", "price of a GPU-hour"]
    assert "model" not in left["as measured"] and len(left["as measured"]) == 2


def test_what_makes_no_sense_is_asked_again():
    found, said = filled("large", "2GB", "", "", "twice a day", "48/day", "-1", "3")
    assert found["image_bytes"] == 2e9 and found["price_per_gpu_hour"] == 3.0
    assert "large" in said and "twice a day" in said and "not a price" in said


def test_the_end_of_the_input_leaves_the_rest_and_what_was_given_is_not_asked():
    assert filled("5GB")[0] == {"image_bytes": 5e9}
    known = {q.name: 1.0 for q in QUESTIONS}
    assert filled(given=known)[0] == known


@pytest.mark.parametrize(
    ("more", "asked"), [((), True), (("--json",), False), (("--model-size", "1GB"), False)]
)
def test_the_command_asks_in_a_terminal_alone_where_no_size_is_given(
    tmp_path, monkeypatch, capsys, more, asked
):
    paths = [str(records.write(r, tmp_path / f"{i}.json")) for i, r in enumerate(three())]
    ours, theirs = pty.openpty()
    prompts = []
    monkeypatch.setattr("builtins.input", lambda prompt: prompts.append(prompt) or "")
    with os.fdopen(theirs, "r") as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        assert main(["plan", *more, "--records", *paths]) == 0
    os.close(ours)
    assert len(prompts) == (len(QUESTIONS) if asked else 0)

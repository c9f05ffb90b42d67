"""Text from elsewhere never commands the terminal."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import printable
from labkit.core.records import Run, Trial

ANY = st.text(st.characters(exclude_categories=()), max_size=80)  # surrogates too


def obeyed(text: str, but: str = "") -> list[str]:
    return [
        c
        for c in text
        if (c not in but and unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp"))
        or c in "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\ufeff"
    ]


@given(ANY)
def test_a_line_holds_nothing_that_a_terminal_obeys(text):
    assert obeyed(printable.line(text)) == []


@given(ANY)
def test_a_text_keeps_its_lines_and_tabs_and_nothing_else_that_is_obeyed(text):
    made = printable.text(text)
    assert (
        obeyed(made, "\n\t") == []
        and made.count("\n") == text.count("\n")
        and made.count("\t") == text.count("\t")
    )
    made.encode("utf-8")


@given(ANY)
def test_what_is_safe_is_not_changed_a_second_time(text):
    assert printable.line(printable.line(text)) == printable.line(text) and printable.text(
        printable.text(text)
    ) == printable.text(text)


@pytest.mark.parametrize(
    "text", ["naive", "2 × AMD EPYC, 24 GiB", "60–80 % · müde", "日本語", "a\\b"]
)
def test_plain_text_stays_as_it_is(text):
    assert printable.line(text) == text and printable.text(text) == text


def test_every_string_of_a_record_is_made_safe_and_its_log_keeps_its_lines():
    run = Run(
        "i\x1bd",
        "now",
        host={"title": "h\u202e"},
        trials=(
            Trial(
                "a\n",
                0,
                0,
                evidence=[{"how": "x\x07"}],
                log_tail="one\ntwo\x1b[2J",
                error={"why": "p\nq"},
            ),
        ),
    )
    made = printable.every(run)
    assert (made.id, made.host["title"], made.trials[0].arm, made.trials[0].evidence[0]["how"]) == (
        "i\\x1bd",
        "h\\u202e",
        "a\\x0a",
        "x\\x07",
    )
    assert made.trials[0].log_tail == "one\ntwo\\x1b[2J" and made.trials[0].error["why"] == "p\nq"

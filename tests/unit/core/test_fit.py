"""Text fitted to a terminal: no line is wider, no number is cut, nothing is lost."""

from __future__ import annotations

import pytest

from labkit.core.fit import cut, display_width, fit
from labkit.core.stdout import table

TABLE = table(
    [
        ["naive", "8.31 s", "7.90 s – 9.20 s", "the registry sent all of it before the start"],
        ["漢字の腕", "4.02 s", "3.80 s – 4.10 s", "mounted, 12 % fetched"],
    ],
    ["arm", "median", "interval", "evidence"],
)


def _widest(text: str) -> int:
    return max(map(display_width, text.split("\n")))


@pytest.mark.parametrize("width", [200, 60, 40, 24])
def test_no_line_is_wider_and_no_word_is_lost(width):
    text = f"a title\n{TABLE}\ncache cold, and a caption that goes on for longer than a line has"
    shown = fit(text, width)
    assert _widest(shown) <= max(width, 24)
    words = [w for w in text.split() if set(w) != {"-"}]
    assert all(shown.split().count(w) >= 1 for w in words)
    assert shown == text or width < 200


@pytest.mark.parametrize("width", [60, 40, 24])
def test_a_number_is_never_broken(width):
    shown = fit(TABLE, width)
    for number in ("8.31 s", "7.90 s", "9.20 s", "12 %"):
        assert number in shown


def test_columns_stay_columns_while_they_can():
    _, rule, *rows = fit(TABLE, 60).split("\n")
    assert len(rule.split("  ")) == 4 and rows[0].startswith("naive")
    assert fit(TABLE, 24).startswith("arm       naive\nmedian    8.31 s\n")


def test_a_path_stays_whole_and_what_follows_is_indented():
    path = "/a/path/that/is/longer/than/the/line"
    assert fit(f"  fix: labkit show {path}", 20) == f"  fix: labkit show\n    {path}"


def test_what_fits_is_left_as_it_is():
    text = "a  b\n\n  c   d\n-----\n" + TABLE
    assert fit(text, _widest(text)) == text


@pytest.mark.parametrize(
    ("text", "width", "kept"),
    [("漢字漢字", 5, "漢字"), ("ab", 5, "ab"), ("e\u0301x", 1, "e\u0301")],
)
def test_a_line_is_cut_by_what_a_display_takes(text, width, kept):
    assert cut(text, width) == kept

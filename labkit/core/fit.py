"""Text made as wide as the terminal that shows it: lines are broken at spaces, tables keep their
columns.

A table is known by its rule (`----  ------`), whose dashes say where the columns are. Its text
columns are wrapped, the widest first; a column of numbers never is. Where even that is too wide,
each row becomes a block of `heading  value` lines. A word longer than the line – a path, an address
– stays whole, so that it can be copied. Widths are those of a display: a wide character takes two
columns, a combining one none.

    fit("a long line of words", 12)      # 'a long line\\n  of words'
    cut("漢字漢字", 5)                    # '漢字'

Lesson: none."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_RULE = re.compile(r"-+(  -+)*\Z")
_GAP = 2
#: Blanks and what follows them. A number keeps its unit.
_WORDS = re.compile(
    r"( *)([^ ]*\d (?:[nmµu]?s|[kKMGT]?i?B(?:/s)?|%|min|h)(?![^ ,;:.)*])[^ ]*|[^ ]+)"
)
#: A column narrower than this is read letter by letter.
_NARROWEST = 8


def display_width(text: str) -> int:
    """Columns of a terminal that `text` takes."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int) -> str:
    """The beginning of `text` that takes at most `width` columns."""
    if display_width(text) <= width:
        return text
    taken = 0
    for at, char in enumerate(text):
        taken += _columns(char)
        if taken > width:
            return text[:at]
    return text


def pad(text: str, width: int, right: bool = False) -> str:
    """`text` filled with spaces to `width` columns; `right`: it stands at the right."""
    space = " " * (width - display_width(text))
    return space + text if right else text + space


def is_number(cell: str) -> bool:
    """A cell that stands at the right of its column and is never wrapped."""
    return cell[:1].isdigit() or cell[:1] in "-–" or not cell


def fit(text: str, width: int) -> str:
    """`text` in lines of at most `width` columns, as far as its words allow."""
    lines, fitted, at = text.split("\n"), [], 0
    while at < len(lines):
        rule = lines[at + 1] if at + 1 < len(lines) else ""
        if _RULE.match(rule):
            spans = _spans(rule)
            end = at + 2
            while end < len(lines) and _is_row(lines[end], spans):
                end += 1
            block = lines[at:end]
            if all(display_width(line) <= width for line in block):
                fitted += block
            else:
                rows = [_cells(line, spans) for line in (block[0], *block[2:])]
                fitted += _table(rows, width)
            at = end
        else:
            fitted += _wrapped(lines[at], width)
            at += 1
    return "\n".join(fitted)


# -- lines -----------------------------------------------------------------------------------------


def _wrapped(line: str, width: int, hang: int | None = None) -> list[str]:
    """`line` broken at spaces; what follows stands two columns further in, or at `hang`."""
    if display_width(line) <= width:
        return [line]
    indent = len(line) - len(line.lstrip(" "))
    further = " " * (min(indent + 2, width // 2) if hang is None else hang)
    lines, now = [], " " * indent
    fresh = True
    for gap, word in _WORDS.findall(line[indent:]):
        if not fresh and display_width(now + gap + word) > width:
            lines.append(now)
            now, gap = further, ""
        now += gap + word
        fresh = False
    return [*lines, now]


# -- tables ----------------------------------------------------------------------------------------


def _spans(rule: str) -> list[tuple[int, int]]:
    return [found.span() for found in re.finditer("-+", rule)]


def _is_row(line: str, spans: Sequence[tuple[int, int]]) -> bool:
    """Blank between the columns and beyond them. A caption below a table has words there."""
    return bool(line) and all(
        not _between(line, end, end + _GAP if n + 1 < len(spans) else None).strip()
        for n, (_, end) in enumerate(spans)
    )


def _cells(line: str, spans: Sequence[tuple[int, int]]) -> list[str]:
    return [_between(line, start, end).strip() for start, end in spans]


def _between(line: str, start: int, end: int | None) -> str:
    """What of `line` stands in the display's columns from `start` to `end`."""
    before = len(cut(line, start))
    return line[before:] if end is None else line[before : len(cut(line, end))]


def _table(rows: list[list[str]], width: int) -> list[str]:
    natural = [max(display_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    right = [all(is_number(row[i]) for row in rows[1:]) for i in range(len(natural))]
    least = [
        whole
        if number
        else min(
            whole,
            max(_NARROWEST, *(display_width(w) for row in rows for w in row[i].split(" "))),
        )
        for i, (whole, number) in enumerate(zip(natural, right, strict=True))
    ]
    space = width - _GAP * (len(natural) - 1)
    if sum(least) > space:
        return _blocks(rows, width)
    widths = list(natural)
    while sum(widths) > space:
        widest = max((i for i, w in enumerate(widths) if w > least[i]), key=lambda i: widths[i])
        widths[widest] -= 1
    head = [
        "  ".join("-" * w for w in widths),
    ]
    lines = [_row(row, widths, right) for row in rows]
    return [*lines[0], *head, *(line for row in lines[1:] for line in row)]


def _row(row: list[str], widths: list[int], right: list[bool]) -> list[str]:
    cells = [_wrapped(cell, w, hang=0) for cell, w in zip(row, widths, strict=True)]
    height = max(map(len, cells))
    columns = list(zip(cells, widths, right, strict=True))
    return [
        "  ".join(pad(c[n] if n < len(c) else "", w, r) for c, w, r in columns).rstrip()
        for n in range(height)
    ]


def _blocks(rows: list[list[str]], width: int) -> list[str]:
    """Each row as lines of `heading  value`; empty cells are left out."""
    titles = max(display_width(title) for title in rows[0])
    lines: list[str] = []
    for row in rows[1:]:
        lines += [""] if lines else []
        for title, cell in zip(rows[0], row, strict=True):
            if cell:
                lines += _wrapped(pad(title, titles + _GAP) + cell, width, hang=titles + _GAP)
    return lines or rows[0]

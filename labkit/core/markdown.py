"""Markdown that quotes what it does not trust: records, names of arms, words of a server.

    table([["naive|x", "9.3 s"]], ["arm", "median"])     # | arm | median | … naive\\|x
    block("error\\n```")                                  # a fence longer than any in the text

What a text holds of markup, HTML, links and mathematics is shown as it stands (GitHub's flavour).
Limit: a bare web address becomes a link to itself. Lesson: none; see docs/ci.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from labkit.core import printable

_MARKUP = re.compile(r"[\\`*_\[\]|~$#!]")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_HTML = re.compile("[&<>]")


def inline(value: Any) -> str:
    """As one line of text, also inside of a table."""
    escaped = _MARKUP.sub(r"\\\g<0>", printable.line("" if value is None else value))
    return _HTML.sub(lambda found: _ENTITIES[found[0]], escaped)


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    lines = [[inline(cell) for cell in row] for row in (head, *rows)]
    lines.insert(1, ["---"] * len(head))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def block(text: str) -> str:
    """As it stands, in several lines."""
    longest = max(map(len, re.findall("`{3,}", text)), default=2)
    fence = "`" * (longest + 1)
    return f"{fence}text\n{printable.text(text).rstrip()}\n{fence}"


def items(lines: Iterable[Any]) -> str:
    return "\n".join(f"- {inline(line)}" for line in lines)


def folded(title: str, body: str) -> str:
    """Behind a line that opens it."""
    return f"<details><summary>{inline(title)}</summary>\n\n{body}\n\n</details>"

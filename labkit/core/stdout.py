"""What commands print: text for people, and one compact JSON document for programs.

Who reads it decides, here and nowhere else. In a terminal there is text alone, fitted to its width.
In a pipe or a file the text is followed by the document as the last line. With `--json` the
document is all there is on stdout, wherever that goes.

    add_json(parser)                     # the option
    with only_json(args.json):           # `labkit.cli.main` does
        say("4 files are whole")         # for people
        last_line({"files": 4})          # for programs

Lesson: none."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from labkit.core import printable, secrets
from labkit.core.fit import display_width, fit, is_number, pad
from labkit.core.json_types import JsonObject

#: Of a terminal that does not know its own, as terminals are taken to have.
COLUMNS = 80
#: Below it nothing is fitted: a terminal so narrow is a mistake, or shows one word a line.
_LEAST_COLUMNS = 20

#: Where the document goes under `--json`; None without it.
_machine: Any = None


def add_json(parser: argparse.ArgumentParser) -> None:
    """`--json`, in the same words everywhere."""
    parser.add_argument(
        "--json", action="store_true", help="only the JSON line on stdout, in a terminal too"
    )


@contextmanager
def only_json(wanted: bool) -> Iterator[None]:
    """While the block runs, nothing but documents is on stdout, where `wanted`. What a library
    prints is on stderr."""
    global _machine
    if not wanted:
        yield
        return
    before, _machine = _machine, secrets.own_words()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        _machine = before


def terminal(stream: Any = None) -> bool:
    """A person reads `stream` (stdout)."""
    try:
        return bool((stream or secrets.own_words()).isatty())
    except (AttributeError, ValueError):  # not a stream of the system's, or closed
        return False


def columns(stream: Any = None) -> int | None:
    """The columns of a terminal's line on `stream` (stdout): COLUMNS where it is set, else what the
    terminal says. None for a pipe, whatever COLUMNS says: a line is as long as it is, as programs
    read it, and some that start us set it (pytest-xdist)."""
    stream = stream or secrets.own_words()
    if not terminal(stream):
        return None
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given):
        return max(int(given), _LEAST_COLUMNS)
    try:
        found = os.get_terminal_size(stream.fileno()).columns
    except (OSError, ValueError):
        found = 0
    return max(found or COLUMNS, _LEAST_COLUMNS)


def say(text: str) -> None:
    """Text for people, as wide as their terminal. Whatever it quotes of a record, a file or a
    server, the terminal obeys none of it."""
    if _machine is None:
        print(fitted(printable.text(text)))


def fitted(text: str, stream: Any = None) -> str:
    """`text` as wide as `stream` (stdout) allows."""
    width = columns(stream)
    return fit(as_written(text, stream), width) if width else text


def as_written(text: str, stream: Any = None) -> str:
    """`text` as it looks once the encoding of `stream` (stdout) has it, which may be longer."""
    stream = stream or secrets.own_words()
    encoding, errors = getattr(stream, "encoding", None), getattr(stream, "errors", None)
    with contextlib.suppress(LookupError, UnicodeError):
        return text.encode(encoding or "utf-8", errors or "strict").decode(encoding or "utf-8")
    return text


def last_line(doc: JsonObject, *, unmasked: bool = False) -> None:
    """The line for programs: always last, always one line, NaN-free; not where a person reads.
    `unmasked`: it hands keys to whoever started a server of the lab."""
    sys.stdout.flush()
    if _machine is None and terminal():
        return
    line = json.dumps(
        doc if unmasked else secrets.masked(doc),
        separators=(",", ":"),
        default=str,
        allow_nan=False,
    )
    # masked as a document: as text its quotes could suffer
    print(line, flush=True, file=_machine or secrets.own_words())


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Plain columns: numbers to the right, text to the left. `say` fits it to a terminal."""
    cells = [[str(c) for c in head]] + [
        ["" if c is None else printable.line(c) for c in row] for row in rows
    ]
    widths = [max(display_width(r[i]) for r in cells) for i in range(len(head))]
    right = [all(is_number(r[i]) for r in cells[1:]) for i in range(len(head))]
    lines = [
        "  ".join(pad(c, w, r) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in widths))
    return "\n".join(lines)

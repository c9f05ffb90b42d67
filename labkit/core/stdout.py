"""What commands print: text for people, and one compact JSON document as the last line of
stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from labkit.core import printable, secrets
from labkit.core.json_types import JsonObject


def say(text: str) -> None:
    """Text for people. Whatever it quotes of a record, a file or a server, the terminal obeys none
    of it."""
    print(printable.text(text))


def last_line(doc: JsonObject) -> None:
    """The machine's line. Always last, always one line, NaN-free."""
    sys.stdout.flush()
    line = json.dumps(secrets.masked(doc), separators=(",", ":"), default=str, allow_nan=False)
    # masked as a document: as text its quotes could suffer
    print(line, flush=True, file=secrets.own_words())


def table(rows: Sequence[Sequence[Any]], head: Sequence[str]) -> str:
    """Plain columns: numbers to the right, text to the left."""
    cells = [[str(c) for c in head]] + [
        ["" if c is None else printable.line(c) for c in row] for row in rows
    ]
    width = [max(len(r[i]) for r in cells) for i in range(len(head))]
    right = [
        all(r[i][:1].isdigit() or r[i][:1] in "-–" or not r[i] for r in cells[1:])
        for i in range(len(head))
    ]
    lines = [
        "  ".join(
            c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, width, right, strict=True)
        ).rstrip()
        for row in cells
    ]
    lines.insert(1, "  ".join("-" * w for w in width))
    return "\n".join(lines)

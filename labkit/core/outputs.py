"""Files that the lab writes where the user says: none takes the place of a file that the lab did
not make.

A report made again replaces the report; a report told to go where a web site lies does not. What
the lab makes carries its mark near its beginning – a page its generator, a figure the label of its
drawing – so that looking is enough. Limit: a file that somebody edited by hand keeps the mark, and
is replaced.

    refuse_stranger("site/index.html", lambda head: b'content="labkit"' in head, "a page of the
        lab")

Records have a stricter rule, as each is measured for minutes:
`labkit.core.records.refuse_overwriting`. Lesson: none."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from labkit.core import printable
from labkit.errors import BadInput

HEAD_BYTES = 1 << 16


def refuse_stranger(
    path: str | os.PathLike[str], ours: Callable[[bytes], bool], what: str, option: str = "--out"
) -> None:
    """Raises BadInput where something is that does not begin as ours does. Never waits at a pipe,
    never follows into a device."""
    if not os.path.lexists(path):
        return
    name, fix = printable.line(path), f"give another {option}, or move it away"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
            head = file.read(HEAD_BYTES) if regular else b""
    except OSError as error:
        raise BadInput(
            f"{name} exists and cannot be read: {error.strerror}",
            why=f"{what} would take its place",
            fix=fix,
        ) from None
    if not regular or not ours(head):
        raise BadInput(f"{name} exists, and it is not {what}", why="it would be lost", fix=fix)

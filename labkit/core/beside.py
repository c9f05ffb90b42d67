"""What is being made gets its name when it is whole; until then it stands beside it under a name
that is on the ledger.

    with becoming(target) as part: ...            # a directory; renamed to `target` at the end,
        removed on any other way out
    with replacing(path) as part: ...             # a file; it takes `path`'s place in one step
    with file_in(folder) as part: ...             # a file whose name is known only when it is
        written; rename it inside
    build_once(target, lambda part: pack(model, part))   # kept by its name; nobody builds it twice
    with scratch("nodes-", where) as folder: ...  # a directory that is only needed for a while

The name is noted before it exists, and carries the run's token, by which alone the take-down may
remove it outside of the workspace. So a killed maker leaves nothing, wherever it wrote. Limit: on
one file system, as a rename is. Lesson: none."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from labkit.core import ledger
from labkit.core.takedown import remove_tree
from labkit.errors import LabError


def _name(stem: str, book: ledger.Ledger | ledger.Unnoted, ending: str) -> str:
    """Hidden, and with the token: `.model-small.4f0c….17-1.part`. A long stem is cut: a name has
    255 bytes."""
    short = os.fsdecode(os.fsencode(stem)[:150])
    return f".{short}.{book.token or 'x'}.{os.getpid()}-{next(ledger._parts)}{ending}"


@contextlib.contextmanager
def _noted(kind: str, path: Path, book: ledger.Ledger | ledger.Unnoted) -> Iterator[Path]:
    entry = book.note(kind, path)
    try:
        yield path
    finally:
        if kind == "dir":
            remove_tree(path)
        else:
            path.unlink(missing_ok=True)
        book.done(entry)


@contextlib.contextmanager
def becoming(target: str | os.PathLike[str], *, mode: int = 0o777) -> Iterator[Path]:
    """An empty directory beside `target` that takes its name when the block ends well. Raises
    OSError if there is one that is not empty by then."""
    final, book = Path(os.path.abspath(target)), ledger.current()
    final.parent.mkdir(parents=True, exist_ok=True)
    with _noted("dir", final.with_name(_name(final.name, book, ".part")), book) as part:
        part.mkdir(mode=mode)
        yield part
        os.rename(part, final)


@contextlib.contextmanager
def replacing(target: str | os.PathLike[str]) -> Iterator[Path]:
    """A path beside the file `target` to write to; it takes the file's place when the block ends
    well, in one step."""
    final, book = Path(os.path.abspath(target)), ledger.current()
    with _noted("file", final.with_name(_name(final.name, book, ".part")), book) as part:
        yield part
        os.replace(part, final)


@contextlib.contextmanager
def file_in(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A path in this directory to write to, and to rename inside the block; removed if it is
    not."""
    book = ledger.current()
    with _noted("file", Path(os.path.abspath(folder)) / _name("new", book, ".part"), book) as part:
        yield part


@contextlib.contextmanager
def one_at_a_time(target: Path) -> Iterator[None]:
    """Of two that build the same at the same time, the second waits and finds it. The lock is a
    file beside `target`."""
    with open(target.with_name(f".{target.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], object], *, mode: int = 0o777) -> Path:
    """`build(part)` fills an empty directory beside `target`, which becomes it when it is whole;
    what is there already is kept. `target`'s name says what it is built from."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(target):
        if not target.exists():
            with becoming(target, mode=mode) as part:
                build(part)
    return target


@contextlib.contextmanager
def scratch(
    prefix: str, where: str | os.PathLike[str] | None = None, *, needed: bool = True
) -> Iterator[Path]:
    """An empty directory of this user's alone, removed at the end. `where`: the system's temporary
    directory if it is not given.

    needed: without a workspace there is no ledger, and a LabError; False goes on without (`labkit
    doctor` says what is wrong with it)."""
    try:
        book: ledger.Ledger | ledger.Unnoted = ledger.current()
    except LabError:
        if needed:
            raise
        book = ledger.Unnoted()
    with _noted(
        "dir",
        Path(where or tempfile.gettempdir()).resolve()
        / f"{prefix}{book.token or 'x'}-{os.getpid()}-{next(ledger._parts)}",
        book,
    ) as folder:
        folder.mkdir(mode=0o700)
        yield folder

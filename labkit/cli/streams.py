"""The process's own streams, made safe once: whatever the caller closed, filled or encoded, a
command says its words and ends by its code.

A closed stream becomes /dev/null, so that no file the lab opens takes its number. What an encoding
cannot hold is written plainly (`–` as `-`), else as an escape: the table reads on, and the last
line is ASCII in any case. A stderr that nobody reads, or a full one, never ends a measurement. And
as programs and files are UTF-8, a process under another locale starts itself again in Python's
UTF-8 mode; its terminal keeps its encoding.

    settle()                     # first thing in a process; not in a notebook or a test
    sys.exit(finish(code))       # last thing: what could not be written is an error, not a note of
        the interpreter

Lesson: none.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys

CLOSED_PIPE = 141
_ENCODING = "LABKIT_STDIO_ENCODING"
_PLAIN = {
    "–": "-",
    "—": "-",
    "…": "...",
    "×": "x",
    "÷": "/",
    "→": "->",
    "·": "-",
    "≤": "<=",
    "≥": ">=",
    "µ": "u",
    "’": "'",
    "“": '"',
    "”": '"',
    "█": "#",
    "─": "-",
    "−": "-",
    "›": ">",
    "✕": "x",
    "±": "+-",
    "²": "^2",
    "³": "^3",
    "√": "sqrt ",
    "λ": "lambda",
    "§": "section ",
}


class Forgiving(io.TextIOWrapper):
    """A stderr whose reader may be gone, or whose disk full: words are lost, the work is not."""

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError):
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().flush()


#: Why stdout failed, once it has: a print that fails names no file, and a second try may succeed
#: with half the text.
failures: list[OSError] = []


class Noting(io.TextIOWrapper):
    """A stdout that keeps its failures in `failures`."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            failures.append(error)
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            failures.append(error)
            raise


def settle() -> None:
    if (
        sys.getfilesystemencoding().lower() != "utf-8"
        and not sys.flags.utf8_mode
        and sys.executable
    ):
        os.environ["PYTHONUTF8"] = "1"  # for what this process starts, too
        if sys.stdout is not None:
            os.environ[_ENCODING] = sys.stdout.encoding
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    encoding = os.environ.pop(_ENCODING, "")
    # of this process's terminal: what its own children say is read as UTF-8
    os.environ.pop("PYTHONIOENCODING", None)
    for number, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        _open_if_closed(number, flags)
    codecs.register_error("plain", plain)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False, encoding="utf-8")  # noqa: SIM115 - the process's own
    out, err = (
        (
            (stream.encoding, stream.line_buffering, stream.write_through)
            if isinstance(stream, io.TextIOWrapper)
            else ("utf-8", True, True)
        )
        for stream in (sys.stdout, sys.stderr)
    )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
    sys.stdout = Noting(
        open(1, "wb", 0 if out[2] else -1, closefd=False),  # noqa: SIM115 - it stays open
        encoding=encoding or out[0],
        errors="plain",
        line_buffering=out[1],
        write_through=out[2],
    )
    sys.stderr = Forgiving(
        io.FileIO(2, "w", closefd=False),
        encoding=encoding or err[0],
        errors="plain",
        line_buffering=True,
        write_through=True,
    )
    # Some print to these; typeshed calls them final.
    setattr(sys, "__stdout__", sys.stdout)  # noqa: B010
    setattr(sys, "__stderr__", sys.stderr)  # noqa: B010


def finish(code: int) -> int:
    """Write out what is left of stdout; the code, or what its failure makes of it."""
    try:
        sys.stdout.flush()
    except OSError as error:
        return undone(error)
    return undone(failures[0]) if failures and code in (0, 1) else code


def undone(error: OSError) -> int:
    """The exit code for a stdout that cannot be written. What it still holds is dropped, else the
    interpreter tries again at its end."""
    gone = error.errno == errno.EPIPE
    with contextlib.suppress(OSError):
        null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(null, 1)
        os.close(null)
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    if gone:
        return CLOSED_PIPE
    print(
        f"labkit: standard output: {error.strerror}\n  why: what was to be said is not all there\n "
        " fix: write it to a place with room",
        file=sys.stderr,
    )
    return 2


def plain(error: UnicodeError) -> tuple[str, int]:
    """An error handler of codecs: the signs the lab uses in their ASCII form, all others as an
    escape."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    piece = error.object[error.start : error.end]
    return (
        "".join(
            _PLAIN.get(c) or c.encode("ascii", "backslashreplace").decode("ascii") for c in piece
        ),
        error.end,
    )


def _open_if_closed(number: int, flags: int) -> None:
    try:
        os.fstat(number)
    except OSError:
        got = os.open(os.devnull, flags)
        if got != number:
            os.dup2(got, number)
            os.close(got)
        os.set_inheritable(number, True)

"""Arguments are judged before anything is prepared: a number out of range or a place that cannot be
written is said in the first second, not after ten minutes of measuring.

Types for argparse, which see the text alone (`count`, `port`, `seconds`, …), and checks of the file
system for the first line of a command's `run` (`readable_file`, `directory`, `new_file`,
`output_directory`). All raise BadInput: what, why, fix.

    parser.add_argument("--blocks", type=count("--blocks"), default=5)
    output_directory(args.out, "--out")

Limit: a place that can be written now may be full later; `labkit.core.refusals` says that. Lesson:
none."""

from __future__ import annotations

import argparse
import math
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from labkit.core.fit import fit
from labkit.errors import BadInput

#: More trials of one arm than a lifetime has time for: a slip of the finger.
MOST_BLOCKS = 10_000
#: A week; beyond it the calls of the system that wait refuse the number.
MOST_SECONDS = 7 * 86_400.0


class Parser(argparse.ArgumentParser):
    """A parser whose refusals are of the lab's error family, and whose arguments are added when
    they are asked for.

    `fill(parser)` runs at the first parse, so a command's module is imported only when the command
    is called."""

    def __init__(
        self,
        *args: Any,
        fill: Callable[[argparse.ArgumentParser], None] | None = None,
        **options: Any,
    ):
        super().__init__(*args, **options)
        self._fill = fill

    def filled(self) -> Parser:
        fill, self._fill = self._fill, None
        if fill:
            fill(self)
        return self

    # what a subparser is called by, too
    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        self.filled()
        return super().parse_known_args(args, namespace)

    def format_help(self) -> str:
        """No wider than the terminal; argparse itself never breaks an option's usage or a group's
        title."""
        return fit(super().format_help(), shutil.get_terminal_size().columns)

    def error(self, message: str) -> Any:
        raise BadInput(
            message,
            why="the call is not understood; nothing was started",
            fix=f"{self.prog} --help",
        )


class Paragraphs(argparse.HelpFormatter):
    """Help whose description and epilog keep their paragraphs, each filled to the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n\n".join(fill(part, width, indent) for part in text.split("\n\n"))


def count(option: str, least: int = 1, most: int = MOST_BLOCKS) -> Callable[[str], int]:
    """A whole number from `least` to `most`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise BadInput(
                f"{option} {text}",
                why=f"it is a whole number from {least} to {most}",
                fix=f"{option} {max(least, min(5, most))}",
            )
        return value

    return read


def port(option: str = "--port", least: int = 1) -> Callable[[str], int]:
    return count(option, least, 65_535)


def seconds(option: str) -> Callable[[str], float]:
    """More than 0, at most a week; neither nan nor inf."""
    return number(option, above=0.0, most=MOST_SECONDS, example="300")


def number(
    option: str, above: float = 0.0, most: float = math.inf, example: str = "1", zero: bool = False
) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (above < value <= most or (zero and value == 0)) or math.isinf(value):
            raise BadInput(
                f"{option} {text}",
                why=f"it is a number {'from' if zero else 'above'} {above:g}"
                + (f" to {most:g}" if math.isfinite(most) else ""),
                fix=f"{option} {example}",
            )
        return value

    return read


def names(option: str, known: Iterable[str] = (), example: str = "") -> Callable[[str], str]:
    """A comma-separated list that names something; each of `known`, where that is given."""
    choices = tuple(known)

    def read(text: str) -> str:
        given = [part.strip() for part in text.split(",") if part.strip()]
        wrong = [part for part in given if choices and part not in choices]
        if not given or wrong:
            raise BadInput(
                f"{option} {text!r}" + (f": no {wrong[0]!r}" if wrong else " names nothing"),
                why="what is named is all that is measured",
                fix=f"{option} {example or ','.join(choices[:2])}"
                + (f"  (of: {', '.join(choices)})" if choices else ""),
            )
        return ",".join(given)

    return read


def scenario(text: str) -> str:
    from labkit.core.plan import SCENARIOS

    if text not in SCENARIOS:
        raise BadInput(
            f"no scenario {text!r}",
            why="it says what the host has at t0",
            fix="one of: " + ", ".join(SCENARIOS),
        )
    return text


def bucket_url(text: str) -> str:
    """s3://BUCKET/PREFIX or gs://BUCKET/PREFIX; "" is none."""
    parts = text.partition("://")
    if text and (parts[0] not in ("s3", "gs") or not parts[2].strip("/").split("/")[0]):
        raise BadInput(
            f"not a bucket: {text!r}",
            why="an object store is asked for",
            fix="write it like s3://BUCKET/PREFIX or gs://BUCKET/PREFIX",
        )
    return text


def web_url(text: str) -> str:
    """http:// or https://, with a host and a port that can be."""
    try:
        parts = urlsplit(text)
        good = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        good = False
    if not good:
        raise BadInput(
            f"not an address of a server: {text!r}",
            why="nothing could be asked there",
            fix="write it like http://127.0.0.1:5000/lab/subject:latest",
        )
    return text


def free_port(number: int | None, option: str = "--port") -> None:
    """Raises BadInput where a server listens on that port of this host already; None and 0 ask for
    any."""
    if not number:
        return
    with socket.socket() as probe:
        # a port that is only cooling down is free
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", number))
        except OSError as error:
            raise BadInput(
                f"{option} {number}: {error.strerror}",
                why="another server holds the port, or it is below 1024",
                fix=f"another {option}, or leave it out for a free one",
            ) from None


# -- the file system -------------------------------------------------------------------------------


def readable_file(path: str | os.PathLike[str], option: str, fix: str = "") -> Path:
    found = Path(path)
    if not found.is_file() and not found.is_fifo():
        raise BadInput(
            f"{option} {path}: " + ("that is a directory" if found.is_dir() else "no such file"),
            why="it is read before anything else",
            fix=fix or "look for a misspelt path",
        )
    if not os.access(found, os.R_OK):
        raise BadInput(
            f"{option} {path}: not permitted",
            why="you have no right to read it",
            fix=f"chmod u+r {path}, or give another file",
        )
    return found


def directory(path: str | os.PathLike[str], option: str, fix: str = "") -> Path:
    found = Path(path).expanduser()
    if not found.is_dir():
        raise BadInput(
            f"{option} {path}: " + ("that is a file" if found.exists() else "no such directory"),
            why="what is in it is needed",
            fix=fix or "look for a misspelt path",
        )
    return found


def new_file(path: str | os.PathLike[str], option: str) -> Path:
    """Where a file may be made: its directory exists or can be made, and takes a file now."""
    target = Path(path)
    if target.is_dir() or str(path).endswith("/"):
        raise BadInput(
            f"{option} {path}: that is a directory",
            why="one file is written",
            fix=f"{option} {target / 'run.json'}",
        )
    _takes_a_file(target.absolute().parent, f"{option} {path}")
    return target


def output_directory(path: str | os.PathLike[str], option: str) -> Path:
    """A directory that takes files, or can be made where it does not exist."""
    target = Path(path)
    if target.exists() and not target.is_dir():
        raise BadInput(
            f"{option} {path}: that is a file",
            why="several files are written below it",
            fix=f"{option} DIR, a new or an empty directory",
        )
    _takes_a_file(target.absolute(), f"{option} {path}")
    return target


def _takes_a_file(where: Path, what: str) -> None:
    """Asked by making one: rights, read-only mounts and a full disk all answer. What does not exist
    yet is asked of the nearest that does."""
    while not where.exists() and where != where.parent:
        where = where.parent
    if not where.is_dir():
        raise BadInput(
            f"{what}: {where} is a file",
            why="nothing can be made below it",
            fix="give another path",
        )
    try:
        # without a name, where the file system can: a kill leaves none
        with tempfile.TemporaryFile(dir=where) as probe:
            probe.write(b"\0" * 4096)
            probe.flush()
    except OSError as error:
        from labkit.core.refusals import refusal

        refused = refusal(error)
        assert refused is not None
        raise BadInput(
            f"{what}: nothing can be written in {where}: {error.strerror}",
            refused.why,
            "give a path that you may write",
        ) from None

"""Where the lab keeps what it made: one folder, `LABKIT_HOME` (default `~/.cache/labkit`), safe to
delete at any time.

    models/     checkpoints by preset and format         artifacts/  what techniques prepared, by
        content
    images/     OCI layouts                              runs/       records
    nodes/      one empty directory a trial, removed     ledger/     what is running now, for
        take-down

A workspace on a shared team host belongs to one user: it is made 0700, as it holds registry state
and snapshots, and one of another user, or that others may write, is refused. Root under sudo uses
its own."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pwd
import stat
import struct
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.errors import LabError

DIRECTORIES = ("models", "images", "artifacts", "runs", "nodes", "ledger")


# linux/fs.h: FS_IOC_GETFLAGS, FS_IOC_SETFLAGS, FS_TOPDIR_FL
GET_FLAGS, SET_FLAGS, TOP_OF_HIERARCHY = 0x80086601, 0x40086602, 0x00020000


def spread(directory: Path) -> bool:
    """Ask the file system to place each new directory in here far from the others (`chattr +T`).
    Returns whether it did.

    An ext4 without a journal does not reuse an inode for minutes after its removal, and walks over
    all such inodes for every file that it makes near by. A trial that unpacks 20 000 files where
    the trial before removed 20 000 took 8, 18, 23, 27, 29 s here, none of it work that a fresh node
    does; in block groups of its own it takes 8 s every time. Other file systems do not know the
    flag; they lose nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            flags = (
                struct.unpack("<Q", fcntl.ioctl(descriptor, GET_FLAGS, bytes(8)))[0] & 0xFFFFFFFF
            )
            if not flags & TOP_OF_HIERARCHY:
                fcntl.ioctl(descriptor, SET_FLAGS, struct.pack("<Q", flags | TOP_OF_HIERARCHY))
            return True
        finally:
            os.close(descriptor)
    return False


#: How long removed inodes are walked over, and how many inodes beside a directory its files may
#: take.
_said: set[Path] = set()
SPENT_FOR_S, SPENT_INODES = 300, 1 << 17


def refuse_others(path: Path, closed_above: bool = False) -> None:
    """Raises LabError where the directory is another user's, or where others may write: what stands
    in it is trusted and swept.

    closed_above: a directory above lets nobody else in, so its own mode says nothing (with umask
    002 rooms are made 0775)."""
    about = path.stat()
    if not stat.S_ISDIR(about.st_mode):
        raise LabError(
            f"{path} is not a directory",
            why="the lab keeps what it makes in there",
            fix="rm it, or export LABKIT_HOME=/another/path",
        )
    if about.st_uid != os.geteuid():
        raise LabError(
            f"{path} belongs to user {_user(about.st_uid)}, and you are {_user(os.geteuid())}",
            why="a workspace holds what is run and what is taken down, so it is one user's alone",
            fix=(
                "export LABKIT_HOME=/a/path/of/your/own; or, if it is yours after all: sudo chown"
                f" -R {_user(os.geteuid())} {path}"
            ),
        )
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH) and not closed_above:
        raise LabError(
            f"{path} may be written by others (mode {about.st_mode & 0o7777:04o})",
            why="who can write a workspace decides what is run and removed in your name",
            fix=f"chmod go-w {path}",
        )


def _user(uid: int) -> str:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _made(path: Path, mode: int, closed_above: bool = False) -> Path:
    """The directory, made if it is not there. Raises LabError with what stands in the way."""
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        refuse_others(path, closed_above)
    except FileExistsError:
        raise LabError(
            f"{path} is not a directory",
            why="the lab keeps what it makes in there",
            fix="rm it, or export LABKIT_HOME=/another/path",
        ) from None
    except OSError as error:
        fix = {
            errno.ENOSPC: (
                "free some space there (df -h), or export LABKIT_HOME=/path/on/another/disk"
            ),
            errno.EDQUOT: "free some of your quota, or export LABKIT_HOME=/path/on/another/disk",
        }
        raise LabError(
            f"{path} cannot be used: {error.strerror}",
            why="the lab keeps what it makes in there",
            fix=fix.get(error.errno or 0, "export LABKIT_HOME=/a/path/you/may/write"),
        ) from None
    return path


def _owner_of_place(path: Path) -> int:
    """Whose the nearest directory on the way to `path` is."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.stat().st_uid


def _wanted() -> Path:
    return (
        Path(os.environ.get("LABKIT_HOME") or Path.home() / ".cache" / "labkit")
        .expanduser()
        .absolute()
    )


def place() -> Path:
    """Where this user's workspace is. Under sudo with the user's HOME or LABKIT_HOME that is root's
    own, not the user's: what root makes there would lock the user out, and what the user put there
    would be run as root."""
    wanted = _wanted()
    if os.geteuid() == 0 and os.environ.get("SUDO_UID", "0") != "0":
        with contextlib.suppress(OSError):
            if _owner_of_place(wanted.resolve()) != 0:
                return Path(pwd.getpwuid(0).pw_dir) / ".cache" / "labkit"
    return wanted


@dataclass(frozen=True)
class Workspace:
    root: Path

    @staticmethod
    def default() -> Workspace:
        where, wanted = place(), _wanted()
        if where != wanted and where not in _said and "LABKIT_RUN" not in os.environ:
            _said.add(where)
            print(
                f"labkit: as root the workspace is {where}, not {wanted}, which is"
                f" {_user(_owner_of_place(wanted))}'s",
                file=sys.stderr,
            )
        return Workspace.at(where)

    @staticmethod
    def at(root: str | os.PathLike[str]) -> Workspace:
        """Made 0700 if it is not there. Raises LabError for one that is not this user's alone, or
        cannot be made."""
        try:
            path = Path(root).expanduser().resolve()
        except (OSError, RuntimeError, ValueError) as error:
            raise LabError(
                f"{root} cannot be a workspace: {error}",
                fix="export LABKIT_HOME=/a/path/you/may/write",
            ) from None
        return Workspace(_made(path, 0o700))

    def directory(self, name: str) -> Path:
        if name not in DIRECTORIES:
            raise ValueError(
                f"no directory {name!r} in a workspace; there are {', '.join(DIRECTORIES)}"
            )
        path = self.root / name
        inside = (
            not path.is_symlink() and not os.stat(self.root).st_mode & 0o011
            if self.root.exists()
            else False
        )
        _made(path, 0o755, closed_above=inside)
        if name == "nodes":
            spread(path)
        return path

    models = property(lambda self: self.directory("models"))
    images = property(lambda self: self.directory("images"))
    artifacts = property(lambda self: self.directory("artifacts"))
    runs = property(lambda self: self.directory("runs"))
    nodes = property(lambda self: self.directory("nodes"))
    ledger = property(lambda self: self.directory("ledger"))

    def new_node(self, name: str, before: Callable[[Path], Any] = lambda _: None) -> Path:
        """An empty directory in `nodes/` for one trial, away from where those of the last minutes
        were removed (see `spread`)."""
        room, seen, now_s = self.nodes, self.root / "recent-nodes", time.time()
        recent: list[tuple[float, int]] = []
        with contextlib.suppress(OSError, ValueError):
            lines = [line.split() for line in seen.read_text().splitlines()]
            recent = [
                (float(when), int(inode))
                for when, inode in lines
                if now_s - float(when) < SPENT_FOR_S
            ]
        for attempt in range(16):  # where a directory goes follows from its name
            path = room / (name if not attempt else f"{name}-{attempt}")
            before(path)  # whoever keeps a ledger notes it first
            path.mkdir()
            inode = path.stat().st_ino
            if attempt == 15 or all(abs(inode - other) > SPENT_INODES for _, other in recent):
                break
            path.rmdir()
        with contextlib.suppress(OSError):
            seen.write_text(
                "".join(f"{when} {where}\n" for when, where in [*recent, (now_s, inode)])
            )
        return path

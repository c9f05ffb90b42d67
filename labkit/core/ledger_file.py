"""A ledger's file: who wrote it, what is still open in it, and whether it may be ended by somebody
else.

    open_entries(path)          # last first
    sweep(workspace)            # the names of the ledgers that were cleared

A lock that neither harness nor watchdog holds any more is the proof of their death, in whatever PID
namespace they were; the file's first line says whether the numbers in it mean anything here and now
(boot, PID namespace, user). Limit: on a file system without locks it is judged by pid and start
time alone, and one of another PID namespace is left until the next boot. Lesson: none; STYLE.md,
Code 6."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from labkit.core import takedown
from labkit.core.json_types import JsonObject
from labkit.core.proc import start_time
from labkit.core.workspace import DIRECTORIES, Workspace

TOKEN = re.compile(r"[0-9a-f]{16}")
WATCHDOG_AT_WORK_S = 10.0
CLOSED = b"closed"  # what a harness says to its watchdog when all is ended


def boot_id() -> str:
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def pid_namespace() -> int:
    with contextlib.suppress(OSError):
        return os.stat("/proc/self/ns/pid").st_ino
    return 0


def scope_of(workspace: Workspace, mark: str, token: str, processes: bool = True) -> takedown.Scope:
    root = os.path.realpath(workspace.root)
    rooms = [os.path.realpath(os.path.join(root, name)) for name in DIRECTORIES]
    ours = [
        r
        for r in rooms
        if r.startswith(root + "/") or (os.path.isdir(r) and os.stat(r).st_uid == os.geteuid())
    ]
    return takedown.Scope(mark, token if TOKEN.fullmatch(token) else "", (root, *ours), processes)


def within(entry: JsonObject, mark: str) -> bool:
    """Whether an entry was noted under this mark, or under one below it. One that does not say
    belongs to the whole."""
    noted = entry.get("mark")
    return noted == mark or str(noted).startswith(mark + "/") or ("/" not in mark and noted is None)


def open_entries(path: Path | int) -> list[JsonObject]:
    """Entries not yet done, last first. A torn line, and any that is no entry, is ignored."""
    entries: dict[str, JsonObject] = {}
    for doc in _lines(path):
        if "done" in doc:
            entries.pop(str(doc["done"]), None)
        elif isinstance(doc.get("id"), str) and isinstance(doc.get("kind"), str):
            entries[doc["id"]] = doc
    return list(reversed(entries.values()))


def _lines(path: Path | int) -> Iterator[JsonObject]:
    text = ""
    with contextlib.suppress(OSError):
        # A descriptor by its number in /proc: it may be shared, and so may its position.
        text = Path(f"/proc/self/fd/{path}" if isinstance(path, int) else path).read_text(
            errors="replace"
        )
    for line in text.split("\n"):
        with contextlib.suppress(ValueError, RecursionError):
            doc = json.loads(line)
            if isinstance(doc, dict):  # half a line can be a whole JSON number
                yield doc


@contextlib.contextmanager
def locked(directory: Path) -> Iterator[None]:
    """One at a time in this room; where directories cannot be locked, without."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def sweep(workspace: Workspace) -> list[str]:
    """End what harnesses that are dead left behind. Returns the names of the ledgers cleared."""
    cleared = []
    for path in sorted(workspace.ledger.glob("*.jsonl")):
        with contextlib.suppress(OSError), _abandoned(path, workspace) as fd:
            if fd is not None:
                _clear(fd, path.stem, workspace)
                path.unlink(missing_ok=True)
                cleared.append(path.stem)
    return cleared


@contextlib.contextmanager
def _abandoned(path: Path, workspace: Workspace) -> Iterator[int | None]:
    """The file, locked, if neither its harness nor its watchdog lives; None if one may, or if it is
    another user's."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        about = os.fstat(fd)
        ours = stat.S_ISREG(about.st_mode) and about.st_uid == os.geteuid() and about.st_nlink == 1
        yield fd if ours and _lock(fd, workspace.ledger) and os.fstat(fd).st_nlink == 1 else None
    finally:
        os.close(fd)


def _lock(fd: int, directory: Path) -> bool:
    until = time.monotonic() + WATCHDOG_AT_WORK_S
    while True:
        head = next(_lines(fd), {})
        here = (head.get("boot"), head.get("pid_namespace")) == (boot_id(), pid_namespace())
        pid = head.get("pid")
        gone = here and not (isinstance(pid, int) and start_time(pid) == head.get("started"))
        try:
            with locked(directory):
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if not gone or time.monotonic() > until:
                return False
            time.sleep(0.02)  # its watchdog is at work
        except OSError:  # a file system without locks
            return gone or head.get("boot", "") != boot_id()


def _clear(fd: int, name: str, workspace: Workspace) -> None:
    """Of another boot, no process is left; of another PID namespace, no number means anything: then
    only marks and files count."""
    head = next(_lines(fd), {})
    token = str(head.get("token"))
    token = token if TOKEN.fullmatch(token) and name.endswith(token) else ""
    here = (head.get("boot"), head.get("pid_namespace"), head.get("uid")) == (
        boot_id(),
        pid_namespace(),
        os.geteuid(),
    )
    entries = open_entries(fd)
    if any(e["kind"] == "command" for e in entries):
        print(
            f"labkit: ledger {name} was written by an older version; its commands are not run",
            file=sys.stderr,
        )
    takedown.end(entries, scope_of(workspace, f"labkit-{token or name}", token, here), settle=True)

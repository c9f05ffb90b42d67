"""The ledger: what the lab has running, written down before it is started, so that anything can
take it down later.

One JSON-lines file a run in `workspace/ledger/`. It opens with who wrote it: boot, PID namespace,
user, pid and start time. Three things read it: the harness's own exit, a watchdog process that
notices the harness's death (also SIGKILL) by the end of a pipe, and the next start of the lab.
Harness and watchdog hold a lock on the file: while either lives – in whatever PID namespace –
nobody else ends its entries. What is believed of them is labkit.core.takedown's business.

    with Ledger.open(workspace) as ledger:
        entry = ledger.note("mount", path)      # before mounting
        ...
        ledger.done(entry)                      # after unmounting

A process has one ledger for a workspace. Opened again inside, or by a process that a run started,
it is a part of the same file with a mark below the first one's (`labkit-…/812-1`), and its end is
the end of that part. While one is open its mark is in os.environ, so every child carries it however
it is started. `current()` is for code that was handed no ledger."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import itertools
import json
import os
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from labkit.core import shipped, takedown
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.ledger_file import (
    CLOSED,
    boot_id,
    locked,
    open_entries,
    pid_namespace,
    scope_of,
    sweep,
    within,
)
from labkit.core.proc import start_time
from labkit.core.takedown import MARK, is_mounted, marked_pids, remove_tree, unmount
from labkit.core.workspace import Workspace

__all__ = [
    "MARK",
    "Ledger",
    "boot_id",
    "current",
    "is_mounted",
    "marked",
    "marked_pids",
    "open_entries",
    "pid_namespace",
    "remove_tree",
    "start_time",
    "sweep",
    "unmount",
]

# beside the mark: the file, for a child of the run that has to note something itself
WHERE = "LABKIT_LEDGER"
_open: list[Ledger] = []
_parts = itertools.count(1)
_commanded = False


class Ledger:
    """Append-only; entries are dicts with id, kind, and what is needed to end them."""

    KINDS = ("process", "group", "mount", "dir", "file", "action")

    def __init__(self, path: Path, mark: str, lock: int = -1):
        self.path, self.mark, self.token = (
            path,
            mark,
            mark.removeprefix("labkit-").partition("/")[0],
        )
        self._lock, self._pid, self._count = lock, os.getpid(), itertools.count(1)
        # kept: entries are written, and read by the watchdog, even after the workspace was deleted
        self._out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._watch: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str | None] = {}
        self._scope: takedown.Scope | None = None

    @classmethod
    def open(cls, workspace: Workspace, *, watch: bool = True) -> Ledger:
        """A part of the ledger that is open here already; else sweep what dead harnesses left, and
        start one for this process (and its watchdog)."""
        return cls._opened(workspace, watch)._enter()

    @classmethod
    def _opened(cls, workspace: Workspace, watch: bool = True) -> Ledger:
        around = next(
            (o for o in reversed(_open) if o.path.parent == workspace.ledger), None
        ) or _inherited(workspace)
        if around:
            return around.below()
        sweep(workspace)
        pid, token = os.getpid(), secrets.token_hex(8)
        path = workspace.ledger / f"{pid}-{start_time(pid)}-{token}.jsonl"
        with locked(workspace.ledger):  # nobody may find it before its lock is held
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with contextlib.suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            opened = cls(path, f"labkit-{token}", lock)
            opened._append(
                {
                    "ledger": 2,
                    "token": token,
                    "boot": boot_id(),
                    "pid_namespace": pid_namespace(),
                    "uid": os.geteuid(),
                    "pid": pid,
                    "started": start_time(pid),
                }
            )
        # A forked child must not hold the lock: it may outlive the run.
        os.register_at_fork(after_in_child=lambda: opened._forked())
        if watch:
            opened._watch = _start_watchdog(opened, workspace)
        return opened

    @classmethod
    def join(cls, path: str | Path, mark: str) -> Ledger:
        """The same ledger from another process of the run (the node agent)."""
        return cls(Path(path), mark)

    def below(self) -> Ledger:
        """A part of this ledger: what is noted or started under its mark ends with it. For a child
        process, or a block."""
        return Ledger(self.path, f"{self.mark}/{os.getpid()}-{next(_parts)}")

    @property
    def environment(self) -> dict[str, str]:
        """What a child must carry to be found, and to note what it starts itself."""
        return {MARK: self.mark, WHERE: str(self.path)}

    @property
    def scope(self) -> takedown.Scope:
        self._scope = self._scope or scope_of(
            Workspace(self.path.parent.parent), self.mark, self.token
        )
        return self._scope

    def _enter(self, exported: bool = True) -> Ledger:
        exports = {**self.environment, **self._temporary()} if exported else {}
        self._environment = {name: os.environ.get(name) for name in exports}
        os.environ.update(exports)
        _open.append(self)
        return self

    def _temporary(self) -> dict[str, str]:
        """A command's own TMPDIR: compilers and daemons leave files there when they are killed,
        under names that nobody else knows."""
        if not _commanded or self._lock < 0:
            return {}
        where = Path(tempfile.gettempdir()).resolve() / f"lk-{self.token}"
        self.note("dir", where)
        with contextlib.suppress(OSError):
            where.mkdir(mode=0o700)
            return {"TMPDIR": str(where)}
        return {}

    def _leave(self) -> None:
        if self in _open:
            later = _open[_open.index(self) + 1 :]
            _open.remove(self)
            for name, before in self._environment.items():
                # not the innermost: what was before it is now before the next
                if any(o._environment for o in later):
                    next(o for o in later if o._environment)._environment[name] = before
                elif before is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = before

    def _forked(self) -> None:
        if self._lock >= 0:
            with contextlib.suppress(OSError):
                os.close(self._lock)
            self._lock = -1

    def _append(self, doc: JsonObject) -> None:
        os.write(self._out, (json.dumps(doc) + "\n").encode())

    def note(self, kind: str, target: str | int | Path, **detail: Any) -> str:
        """kind: process|group (a pid) · mount, dir, file (a path) · action
        ("room:name", registered in the room's module `takedown`; its arguments in detail). Returns
        the entry's id for `done`.

        A path must be one that the ledger may touch: below the workspace, or named with the
        ledger's token (labkit.core.beside makes such names). Raises ValueError for another, before
        it is made."""
        if kind not in self.KINDS:
            raise ValueError(f"ledger kind {kind!r}")
        entry = f"{os.getpid()}.{next(self._count)}.{secrets.token_hex(3)}"
        if kind in ("process", "group"):
            detail["started"] = start_time(int(target))  # type: ignore[arg-type]
        elif kind == "action":
            if takedown.action(target) is None:
                raise ValueError(f"no action {target!r} in its room's ACTIONS")
            if "pid" in detail:
                detail["started"] = start_time(int(detail["pid"]))
            if "root" in detail:
                detail["root"] = self._real(detail["root"])
        else:
            target = self._real(target)
        self._append({"id": entry, "kind": kind, "target": target, "mark": self.mark, **detail})
        return entry

    def _real(self, target: Any) -> str:
        """The path with every link on its way followed."""
        above, name = os.path.split(os.path.abspath(target))
        path = os.path.join(os.path.realpath(above), name)
        if self.scope.owns(path):
            return path
        raise ValueError(
            f"{path} cannot be noted: it is outside of the workspace, and its name is without the"
            " ledger's token (labkit.core.beside gives it one)"
        )

    def done(self, entry: str) -> None:
        self._append({"done": entry})

    def close(self) -> None:
        """End everything still noted under this mark, and every process that carries it; the whole
        ledger's end is also its file's and its watchdog's."""
        if os.getpid() != self._pid or self._out < 0:  # a forked child has the object, not the run
            return
        part = [
            e
            for e in open_entries(self._lock if self._lock >= 0 else self.path)
            if within(e, self.mark)
        ]
        takedown.end(part, self.scope, settle=self._lock >= 0)
        for entry in part:
            self.done(entry["id"])
        self._leave()
        if self._lock >= 0:
            self.path.unlink(missing_ok=True)
            if self._watch:
                _stop_watchdog(self._watch)
            os.close(self._lock)
        os.close(self._out)
        self._lock = self._out = -1

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Around:
    """The ledger of the run that started this process: a part of it is this one's."""

    def __init__(self, path: Path, mark: str):
        self.path, self.mark = path, mark

    def below(self) -> Ledger:
        return Ledger(self.path, f"{self.mark}/{os.getpid()}-{next(_parts)}")


def _inherited(workspace: Workspace | None = None) -> _Around | None:
    """If it is still there (and of this workspace)."""
    where, mark = os.environ.get(WHERE, ""), os.environ.get(MARK, "")
    if not where or not mark or (workspace is not None and Path(where).parent != workspace.ledger):
        return None
    with contextlib.suppress(OSError):
        if os.stat(where).st_uid == os.geteuid():
            return _Around(Path(where), mark)
    return None


class Unnoted:
    """In the server of a trial: its node, which is noted, is taken down with everything in it."""

    mark = token = ""
    environment: ClassVar[dict[str, str]] = {}

    def below(self) -> Unnoted:
        return self

    def note(self, *_: Any, **__: Any) -> str:
        return ""

    def done(self, _entry: str) -> None:
        return None

    def close(self) -> None:
        return None


def current() -> Ledger | Unnoted:
    """The ledger of this process: the innermost open one, else a part of that of the run which
    started it, else one in the default workspace for as long as this process lives. Raises LabError
    where there can be no workspace."""
    if _open:
        return _open[-1]
    around = _inherited()
    if around is None and os.environ.get(MARK):
        return Unnoted()
    # What a program that merely uses the lab starts beside it is its own: only a command of the lab
    # marks every child.
    opened = (around.below() if around else Ledger._opened(Workspace.default()))._enter(
        exported=_commanded or around is not None
    )
    atexit.register(opened.close)
    return opened


@contextlib.contextmanager
def command() -> Iterator[None]:
    """While it lasts this process is a command of the lab: whatever it starts, from its first need
    of a ledger on, is part of the run."""
    global _commanded
    before, _commanded = _commanded, True
    try:
        yield
    finally:
        _commanded = before


def close_current() -> None:
    """The end of a command: everything still open in this process, innermost first."""
    for opened in reversed(_open.copy()):
        opened.close()


def marked(environment: dict[str, str]) -> dict[str, str]:
    """An environment that does not come from os.environ, with the mark of whoever starts the
    process."""
    return {**environment, **current().environment}


def _start_watchdog(opened: Ledger, workspace: Workspace) -> subprocess.Popen[bytes]:
    # Without the mark, or it would end itself; at home nowhere, or it would keep a directory busy.
    environment = {k: v for k, v in os.environ.items() if k not in (MARK, WHERE)}
    environment["PYTHONPATH"] = shipped.import_path(environment.get("PYTHONPATH", ""))
    return subprocess.Popen(
        [*module("labkit.core.watchdog"), str(opened._lock), str(workspace.root), opened.mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        pass_fds=(opened._lock,),
        env=environment,
        cwd="/",
    )


def _stop_watchdog(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin
    with contextlib.suppress(OSError):
        process.stdin.write(CLOSED)
        process.stdin.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(10)

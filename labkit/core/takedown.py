"""Ending what a run left: processes, mounts, files, what rooms registered – and nothing else.

What a ledger holds is judged before it is believed: it may be torn, forged, of another boot or of
another PID namespace. A process is ended only when its start time fits or its environment carries
the run's mark; a path is removed only below the workspace, or when its own name carries the run's
token, and never through a link; what else has to be *done* is an action that a room registered by
name (labkit.<room>.takedown), with checked arguments, never a command line. An entry that fits
nothing is left alone, silently: ending must not fail.

    remove_tree(node); unmount(point)
    end(entries, Scope(mark, token, roots, processes=True))

Limit: what another user owns, and what lives in another PID namespace, stays. Lesson: none;
STYLE.md, Code 6."""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonMapping
from labkit.core.proc import all_pids, mounts, start_time, stat_fields

# in the environment of every process of a run: what re-parents itself is still found
MARK = "LABKIT_RUN"
MAX_PID = 1 << 22
SETTLE_S = 0.1
FIRST = ("process", "group")  # they hold mounts and files


@dataclass(frozen=True)
class Scope:
    """What a ledger may touch. `roots`: the workspace and its rooms, real paths. `processes`: its
    pids mean something here and now."""

    mark: str
    token: str
    roots: tuple[str, ...]
    processes: bool = True

    def owns(self, path: object) -> bool:
        """Below the workspace (not one of its rooms itself), or named with the run's token, or
        below what is; and no link on the way."""
        if (
            not isinstance(path, str)
            or not os.path.isabs(path)
            or "\0" in path
            or os.path.normpath(path) != path
        ):
            return False
        above, name = os.path.split(path)
        if not name or os.path.realpath(above) != above:
            return False
        inside = (
            any(above == root or above.startswith(root + "/") for root in self.roots)
            and path not in self.roots
        )
        return inside or (len(self.token) >= 16 and self.token in path)


@dataclass(frozen=True)
class Action:
    """Something to be done that is no process, mount or path. `run` judges its entry itself and may
    raise; `first`: it holds mounts and files."""

    run: Callable[[JsonMapping, Scope], object]
    first: bool = False


def carries(pid: int, mark: str, variable: str = MARK) -> bool:
    """Whether the process was started with this mark, or with one below it."""
    needle = f"{variable}={mark}".encode()
    try:
        found = [
            v
            for v in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if v.startswith(variable.encode() + b"=")
        ]
    except OSError:
        return False
    return any(v == needle or v.startswith(needle + b"/") for v in found)


def marked_pids(mark: str, variable: str = MARK) -> list[int]:
    """Processes whose environment carries this run's mark."""
    return [pid for pid in all_pids() if pid != os.getpid() and carries(pid, mark, variable)]


def kill(pids: Iterable[int], patience_s: float = 5.0) -> None:
    """SIGKILL, and wait until they are gone."""
    left = list(pids)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(start_time(p) for p in left):
        for pid in left:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def kill_marked(mark: str, settle: bool = False) -> None:
    """Everything that carries the mark; looked for until nothing is found, as a process may be
    starting another.

    settle: between fork and exec a process has its parent's environment, or none. Where a parent
    was killed in mid-start, the whole is looked for once more after SETTLE_S."""
    quiet = 0
    for _ in range(20):
        if found := marked_pids(mark):
            kill(found)
            quiet = 0
        elif quiet or not settle:
            return
        else:
            quiet += 1
            time.sleep(SETTLE_S)


def unmount(path: str | Path) -> None:
    """Unmount, whatever it takes: fusermount3 for a user's own mount, then lazily. No error when
    nothing is mounted."""
    for argv in (
        ["umount", str(path)],
        ["fusermount3", "-u", "-q", str(path)],
        ["umount", "-l", str(path)],
        ["fusermount3", "-u", "-z", "-q", str(path)],
    ):
        if not is_mounted(path):
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)


def is_mounted(path: str | Path) -> bool:
    text = os.path.realpath(os.path.dirname(str(path))) + "/" + os.path.basename(str(path))
    return any(mount.point == text for mount in mounts())


def remove_tree(path: str | Path) -> None:
    """Remove a tree that may hold directories without write permission; never follows links, never
    crosses mounts below it."""
    top = os.path.normpath(os.path.abspath(path))
    with contextlib.suppress(OSError):
        below = [m.point for m in mounts() if m.point == top or m.point.startswith(top + "/")]
        for mounted in reversed(below):
            unmount(mounted)

    def open_up(function: Any, name: str, _info: Any) -> None:
        with contextlib.suppress(OSError):
            above = os.path.dirname(name)
            # never the directory that holds the tree: it may be /tmp
            if above == top or above.startswith(top + "/"):
                os.chmod(above, 0o700)
            if not os.path.islink(name):
                os.chmod(name, 0o700)
            function(name)

    shutil.rmtree(top, onerror=open_up)
    if os.path.isdir(top):
        shutil.rmtree(top, ignore_errors=True)


def end(entries: Iterable[JsonMapping], scope: Scope, settle: bool = False) -> None:
    """Processes first, by entry and by mark, then everything else, last first. Raises nothing,
    whatever the entries hold."""
    holders: list[JsonMapping] = []
    others: list[JsonMapping] = []
    for entry in entries:
        if entry.get("kind") in _END:
            (holders if _holds(entry) else others).append(entry)
    for entry in holders:
        _one(entry, scope)
    kill_marked(scope.mark, settle)
    for entry in others:
        _one(entry, scope)


def _holds(entry: JsonMapping) -> bool:
    found = action(entry.get("target")) if entry["kind"] == "action" else None
    return entry["kind"] in FIRST or bool(found and found.first)


def _one(entry: JsonMapping, scope: Scope) -> None:
    with contextlib.suppress(
        OSError, ValueError, TypeError, OverflowError, subprocess.SubprocessError
    ):
        _END[entry["kind"]](entry, scope)


def process_id(value: object) -> int:
    """A process id that may be meant. Raises ValueError."""
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or not 1 < value <= MAX_PID
        or value == os.getpid()
    ):
        raise ValueError(f"no process id: {value!r}")
    return value


def _process(entry: JsonMapping, scope: Scope) -> None:
    pid = process_id(entry.get("target"))
    if scope.processes and entry.get("started") and start_time(pid) == entry["started"]:
        kill([pid])


def _group(entry: JsonMapping, scope: Scope) -> None:
    """Its leader as noted: the group is ours. Without it the number may be a stranger's by now:
    only members with the mark."""
    group = process_id(entry.get("target"))
    if not scope.processes or group == os.getpgid(0):
        return
    if (
        entry.get("started")
        and start_time(group) == entry["started"]
        and os.getpgid(group) == group
    ):
        os.killpg(group, signal.SIGKILL)
    kill(
        [
            pid
            for pid in all_pids()
            if stat_fields(pid)[2:3] == [str(group)] and carries(pid, scope.mark)
        ]
    )


def _mount(entry: JsonMapping, scope: Scope) -> None:
    if scope.owns(entry.get("target")):
        unmount(entry["target"])


def _dir(entry: JsonMapping, scope: Scope) -> None:
    if scope.owns(entry.get("target")) and not os.path.islink(entry["target"]):
        remove_tree(entry["target"])


def _file(entry: JsonMapping, scope: Scope) -> None:
    if scope.owns(entry.get("target")):
        Path(entry["target"]).unlink(missing_ok=True)


def action(name: object) -> Action | None:
    """What a room registered under "room:name", in the ACTIONS of its module `takedown`; None if
    there is no such thing."""
    named = re.fullmatch(r"([a-z]+):([a-z-]+)", name) if isinstance(name, str) else None
    if named is None:
        return None
    try:
        registered = importlib.import_module(f"labkit.{named[1]}.takedown")
    except ImportError:
        return None
    actions: dict[str, Action] = vars(registered).get("ACTIONS", {})
    return actions.get(named[2])


def _action(entry: JsonMapping, scope: Scope) -> None:
    if found := action(entry.get("target")):
        found.run(entry, scope)


_END: dict[str, Callable[[JsonMapping, Scope], None]] = {
    "process": _process,
    "group": _group,
    "mount": _mount,
    "dir": _dir,
    "file": _file,
    "action": _action,
}

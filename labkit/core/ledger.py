"""The ledger: what the lab has running, written down before it is started, so that anything can take it down later.

One JSON-lines file a run in `workspace/ledger/`, named after the harness's pid and start time. Entries are ended last
first: processes, containers, mounts, directories. Three things read it: the harness's own exit, a watchdog process that
notices the harness's death (also SIGKILL) by the end of a pipe, and the next start of the lab. Entries whose process id
was given to somebody else meanwhile (other start time) are left alone.

    with Ledger.open(workspace) as ledger:
        entry = ledger.note("mount", path)      # before mounting
        ...
        ledger.done(entry)                      # after unmounting
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from labkit.core.interpreter import module
from labkit.core.workspace import Workspace

MARK = "LABKIT_RUN"  # in the environment of every process of a run: what re-parents itself is still found


def start_time(pid: int) -> int:
    """Kernel start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    fields = stat.rpartition(")")[2].split()
    return 0 if fields[0] in ("Z", "X") else int(fields[19])


class Ledger:
    """Append-only; entries are dicts with id, kind, and what is needed to end them."""

    KINDS = ("process", "group", "mount", "container", "dir", "file", "command")

    def __init__(self, path: Path, mark: str):
        self.path, self.mark = path, mark
        self._next = 0
        self._watch: subprocess.Popen[bytes] | None = None

    @classmethod
    def open(cls, workspace: Workspace, *, watch: bool = True) -> Ledger:
        """Sweep what dead harnesses left, then start a ledger for this process (and its watchdog)."""
        sweep(workspace)
        pid = os.getpid()
        name = f"{pid}-{start_time(pid)}-{time.monotonic_ns()}"
        made = cls(workspace.ledger / f"{name}.jsonl", f"labkit-{name}")
        made.path.touch()
        if watch:
            made._watch = subprocess.Popen([*module("labkit.core.ledger"), str(made.path), made.mark],
                                           stdin=subprocess.PIPE, start_new_session=True,
                                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return made

    @classmethod
    def join(cls, path: str | Path, mark: str) -> Ledger:
        """The same ledger from another process of the run (the node agent)."""
        return cls(Path(path), mark)

    def _append(self, doc: dict[str, Any]) -> None:
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, (json.dumps(doc) + "\n").encode())
        finally:
            os.close(fd)

    def note(self, kind: str, target: str | int | Path | list[str], **detail: Any) -> str:
        """kind: process|group (a pid) · mount, dir, file (a path) · container (id; bundle state in detail) ·
        command (an argv that ends the thing). Returns the entry's id for `done`."""
        if kind not in self.KINDS:
            raise ValueError(f"ledger kind {kind!r}")
        self._next += 1
        entry = f"{os.getpid()}.{self._next}"
        if kind in ("process", "group"):
            detail["started"] = start_time(int(target))  # type: ignore[arg-type]
        self._append({"id": entry, "kind": kind, "target": target if isinstance(target, (int, list)) else str(target), **detail})
        return entry

    def done(self, entry: str) -> None:
        self._append({"done": entry})

    def close(self) -> None:
        """End everything still noted, then the ledger itself and its watchdog."""
        end_entries(self.path, self.mark)
        self.path.unlink(missing_ok=True)
        if self._watch:
            with contextlib.suppress(OSError):
                assert self._watch.stdin
                self._watch.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._watch.wait(10)
            self._watch = None

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_entries(path: Path) -> list[dict[str, Any]]:
    """Entries not yet done, last first. A torn last line is ignored."""
    entries: dict[str, dict[str, Any]] = {}
    with contextlib.suppress(OSError):
        for line in path.read_text(errors="replace").split("\n"):
            try:
                doc = json.loads(line)
            except ValueError:
                continue
            if not isinstance(doc, dict):  # half a line can be a whole JSON number
                continue
            if "done" in doc:
                entries.pop(str(doc["done"]), None)
            elif "id" in doc and "kind" in doc:
                entries[str(doc["id"])] = doc
    return list(reversed(entries.values()))


def marked_pids(mark: str, variable: str = MARK) -> list[int]:
    """Processes whose environment carries this run's mark."""
    needle, found = f"{variable}={mark}".encode(), []
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) != os.getpid():
            with contextlib.suppress(OSError):
                if needle in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                    found.append(int(name))
    return found


def _kill(pids: list[int], patience_s: float = 5.0) -> None:
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    until = time.monotonic() + patience_s
    while time.monotonic() < until and any(start_time(p) for p in pids):
        for pid in pids:
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.01)


def unmount(path: str | Path) -> None:
    """Unmount, whatever it takes: fusermount3 for a user's own mount, then lazily. No error when nothing is mounted."""
    for argv in (["umount", str(path)], ["fusermount3", "-u", "-q", str(path)], ["umount", "-l", str(path)],
                 ["fusermount3", "-u", "-z", "-q", str(path)]):
        if not is_mounted(path):
            return
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)


def is_mounted(path: str | Path) -> bool:
    text = os.path.realpath(os.path.dirname(str(path))) + "/" + os.path.basename(str(path))
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.split(" ")[4].encode().decode("unicode_escape", "replace") == text for line in lines)


def _end(entry: dict[str, Any]) -> None:
    kind, target = entry["kind"], entry["target"]
    if kind in ("process", "group"):
        pid = int(target)
        # A group outlives its leader; its id is not given away while a member lives.
        if kind == "group":
            with contextlib.suppress(OSError):
                if entry.get("started") and start_time(pid) in (0, entry["started"]):
                    os.killpg(pid, signal.SIGKILL)
        elif entry.get("started") and start_time(pid) == entry["started"]:
            _kill([pid])
    elif kind == "mount":
        unmount(target)
    elif kind == "container":
        root = ["--root", entry["root"]] if entry.get("root") else []
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(["runc", *root, "delete", "--force", str(target)], stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL, timeout=20)
    elif kind == "command":
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(list(target), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=20)
    elif kind == "dir":
        remove_tree(target)
    elif kind == "file":
        Path(target).unlink(missing_ok=True)


def remove_tree(path: str | Path) -> None:
    """Remove a tree that may hold directories without write permission; never follows links, never crosses mounts below it."""
    top = os.path.normpath(os.path.abspath(path))
    with contextlib.suppress(OSError):
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
            below = [p for p in (line.split(" ")[4] for line in lines) if p == top or p.startswith(top + "/")]
        for mounted in reversed(below):
            unmount(mounted)

    def open_up(function: Any, name: str, _info: Any) -> None:
        with contextlib.suppress(OSError):
            above = os.path.dirname(name)
            if above == top or above.startswith(top + "/"):  # never the directory that holds the tree: it may be /tmp
                os.chmod(above, 0o700)
            if not os.path.islink(name):
                os.chmod(name, 0o700)
            function(name)

    shutil.rmtree(top, onerror=open_up)
    if os.path.isdir(top):
        shutil.rmtree(top, ignore_errors=True)


def end_entries(path: Path, mark: str) -> None:
    """Processes first (they hold mounts and files), then everything else, last first."""
    entries = open_entries(path)
    for entry in entries:
        if entry["kind"] in ("container", "process", "group"):
            _end(entry)
    _kill(marked_pids(mark))
    for entry in entries:
        if entry["kind"] not in ("container", "process", "group"):
            _end(entry)


def sweep(workspace: Workspace) -> list[str]:
    """End what harnesses that are dead left behind. Returns the names of the ledgers cleared."""
    cleared = []
    for path in sorted(workspace.ledger.glob("*.jsonl")):
        pid, started, *_ = path.stem.split("-")
        if start_time(int(pid)) != int(started):
            end_entries(path, f"labkit-{path.stem}")
            path.unlink(missing_ok=True)
            cleared.append(path.stem)
    return cleared


def _watch(path: Path, mark: str) -> None:
    """Wait for the harness to close the pipe (or die), then end what is left."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    while sys.stdin.buffer.read(4096):
        pass
    if path.exists():
        end_entries(path, mark)
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    _watch(Path(sys.argv[1]), sys.argv[2])

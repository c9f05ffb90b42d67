"""CRIU as three calls: dump, restore, and the version that a snapshot is tied to.

Everything it refuses comes back as the lab's own words (`labkit.snapshot.explain`). The log is kept
beside the work, not in the snapshot. Limits: a dump writes the memory in use at the disk's rate
while the process stands still; a restore reads it in one stream and copies it page by page (1.2–1.6
GB/s on one core), which is why `readahead` runs beside it.

    dumped = dump(pid, criu_images, work)         # the process is gone afterwards, unless
        leave_running
    back = restore(criu_images, work, permissions=dumped["permissions"])    # back.pid: a child of
        this process, running

What CRIU itself leaves behind, the processes' permissions to use parts of the CPU, is carried over
here (`xstate`).

Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from labkit.core import timeline
from labkit.core.json_types import JsonObject
from labkit.core.proc import children, descendants, start_time
from labkit.errors import MissingCapability
from labkit.snapshot import xstate
from labkit.snapshot.explain import refusal

#: Up to this size a deleted but open file goes into the CRIU image; larger ones are refused with
#: the reason.
GHOST_LIMIT = "1M"
OnStart = Callable[[subprocess.Popen[bytes]], object]


def program() -> str:
    found = shutil.which("criu") or shutil.which(
        "criu", path="/usr/local/bin:/usr/local/sbin:/usr/sbin"
    )
    if not found:
        raise MissingCapability(
            "criu is not here",
            why="snapshots are made and restored by it",
            fix="scripts/host-tools --only criu",
        )
    return found


@functools.cache
def version() -> str:
    output = subprocess.run([program(), "--version"], capture_output=True, text=True).stdout
    match = re.search(r"Version:\s*v?(\S+)", output)
    return match[1] if match else "unknown"


def dump(
    pid: int,
    criu_images: Path,
    work: Path,
    *,
    leave_running: bool = False,
    options: Sequence[str] = (),
    on_start: OnStart | None = None,
) -> JsonObject:
    """Write the tree below `pid` into `criu_images`. Raises SnapshotError; then the tree goes on as
    if nothing had been.

    Returns dump_s, pages_bytes and `permissions`, which `restore` wants back. on_start(process):
    called with CRIU's own process (the failure tests kill it there)."""
    work.mkdir(parents=True, exist_ok=True)
    argv = [
        program(),
        "dump",
        "-t",
        str(pid),
        "-D",
        str(criu_images),
        "-W",
        str(work),
        "-o",
        "dump.log",
        "-v2",
        "--ghost-limit",
        GHOST_LIMIT,
    ]
    argv += ["--leave-running"] if leave_running else []
    began, permissions = timeline.now_s(), xstate.masks(pid)
    status = _run([*argv, *options], on_start)
    log = log_text(work / "dump.log")
    if status:
        if status < 0:
            # a CRIU that was killed in mid-dump leaves its subject stopped, with nobody tracing it
            resume(pid)
        raise refusal(
            "dump", log or ("killed\n" if status < 0 else ""), status, running=bool(start_time(pid))
        )
    return {
        "dump_s": timeline.now_s() - began,
        "pages_bytes": sum(p.stat().st_size for p in criu_images.glob("pages-*.img")),
        "permissions": permissions,
    }


class Restored(NamedTuple):
    pid: int  # on this host
    handed: xstate.Handed


def restore(
    criu_images: Path,
    work: Path,
    *,
    permissions: Mapping[str, int],
    stopped: bool = False,
    options: Sequence[str] = (),
) -> Restored:
    """Bring it back as a child of this process. `permissions`: of the dump. `stopped`: it waits for
    `resume`. Raises SnapshotError."""
    work.mkdir(parents=True, exist_ok=True)
    pidfile = work / "restored.pid"
    pidfile.unlink(missing_ok=True)
    before = children()
    argv = [
        program(),
        "restore",
        "-D",
        str(criu_images),
        "-W",
        str(work),
        "-o",
        "restore.log",
        "-v2",
        "--restore-detached",
        "--restore-sibling",
        # no thread of it runs before it has its permissions
        "--pidfile",
        str(pidfile),
        "--leave-stopped",
    ]
    status = _run([*argv, *options], None)
    if status:
        # A CRIU that was killed leaves half-restored children of ours; one that failed has removed
        # them itself.
        end([child for child in children() if child not in before])
        raise refusal(
            "restore", log_text(work / "restore.log") or ("killed\n" if status < 0 else ""), status
        )
    pid = int(pidfile.read_text())
    try:
        handed = xstate.hand_on(pid, permissions)
    except BaseException:
        end([pid])
        raise
    if not stopped:
        resume(pid)
    return Restored(pid, handed)


def resume(pid: int) -> None:
    """Let a stopped tree go on."""
    for member in [pid, *descendants(pid)]:
        with contextlib.suppress(OSError):
            os.kill(member, signal.SIGCONT)


def _run(argv: list[str], on_start: OnStart | None) -> int:
    process = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        if on_start:
            on_start(process)
        return process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise


def log_text(path: Path) -> str:
    """A log as far as it was written; "" where there is none."""
    with contextlib.suppress(OSError):
        return path.read_text(errors="replace")
    return ""


def end(pids: Sequence[int]) -> None:
    """Kill and reap."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    for pid in pids:
        with contextlib.suppress(OSError):
            os.waitpid(pid, 0)

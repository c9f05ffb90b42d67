"""What the snapshot room leaves running, for `labkit.core.takedown`: clones of a snapshot, and a
process that was stopped to be dumped.

    ledger.note("action", END_ORPHANS, mark_of_snapshot=mark)
    ledger.note("action", WAKE, pid=pid)

Lesson: none; STYLE.md, Code 6."""

from __future__ import annotations

import contextlib
import os
import re
import signal

from labkit.core.json_types import JsonMapping
from labkit.core.proc import descendants, environ, parent, start_time
from labkit.core.takedown import Action, Scope, carries, kill, marked_pids, process_id

# of the ledger's actions; imported by whoever notes one, so that nothing is imported after t0
END_ORPHANS, WAKE = "snapshot:end-orphans", "snapshot:wake"
# in the environment of every process that was dumped: its clones are found by it
MARK = "LABKIT_SNAPSHOT"
NAME = re.compile(r"[A-Za-z0-9_.+@-]{1,255}")
RESTORERS = ("python", "criu", "runc")


def _end_orphans(entry: JsonMapping, scope: Scope) -> None:
    """Clones of one snapshot whose restorer is gone: whoever took them over (init, a service
    manager) runs no Python and no CRIU."""
    mark = entry.get("mark_of_snapshot")
    if scope.processes and isinstance(mark, str) and NAME.fullmatch(mark):
        kill([pid for pid in marked_pids(mark, MARK) if not _restorer_lives(pid)])


def _restorer_lives(pid: int) -> bool:
    """Up the line of parents that are clones themselves, to the one that restored the first of
    them."""
    for _ in range(100):
        above = parent(pid)
        if above <= 1:
            return False
        if not carries(above, _snapshot_of(pid), MARK):
            with contextlib.suppress(OSError):
                program = os.path.basename(os.readlink(f"/proc/{above}/exe"))
                return program.startswith(RESTORERS)
            return False
        pid = above
    return True


def _snapshot_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return environ(pid, "replace").get(MARK, "\n")
    return "\n"


def _wake(entry: JsonMapping, scope: Scope) -> None:
    """A process of the user that was stopped to be dumped goes on, and all below it."""
    pid = process_id(entry.get("pid"))
    if scope.processes and entry.get("started") and start_time(pid) == entry["started"]:
        for stopped in (pid, *descendants(pid)):
            with contextlib.suppress(OSError):
                os.kill(stopped, signal.SIGCONT)


ACTIONS = {"end-orphans": Action(_end_orphans), "wake": Action(_wake)}

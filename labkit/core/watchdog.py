"""The watchdog of a ledger: a process that outlives its harness by as long as it takes to end what
that left.

    python -m labkit.core.watchdog LOCK_FD WORKSPACE MARK      # started by labkit.core.ledger,
        never by hand

It waits for the end of its standard input, which the kernel brings about however the harness dies,
and holds the ledger's lock meanwhile. Limit: killed together with the harness it ends nothing; the
next start of the lab does. Lesson: none."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from labkit.core import takedown
from labkit.core.ledger_file import CLOSED, open_entries, scope_of
from labkit.core.workspace import Workspace


def main(lock: int, workspace: Workspace, mark: str) -> None:
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    word = b""
    while got := os.read(sys.stdin.fileno(), 64):
        word += got
    if word == CLOSED:
        return
    token = mark.removeprefix("labkit-")
    takedown.end(open_entries(lock), scope_of(workspace, mark, token), settle=True)
    for path in (workspace.root / "ledger").glob(f"*-{token}.jsonl"):
        path.unlink(missing_ok=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Workspace(Path(sys.argv[2])), sys.argv[3])

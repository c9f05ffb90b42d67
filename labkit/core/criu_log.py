"""CRIU's log: which of its lines say what went wrong.

    error_lines(log)[-1]     # "Error (criu/cr-restore.c:1480): 17 killed by signal 4: Illegal …"

What such a line means to a user of snapshots is labkit.snapshot.explain's business. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import re

#: CRIU writes these as errors and goes on.
HARMLESS = (
    "Can't setup RLIMIT_NOFILE",
    "cgroupd: recv req error",
    "Restoring FAILED",
    "Dumping FAILED",
)


def error_lines(log: str) -> list[str]:
    """CRIU's own error lines, in order, without the time in front."""
    lines = [
        line
        for line in log.splitlines()
        if ("Error (" in line or "Error:" in line) and not any(h in line for h in HARMLESS)
    ]
    return [re.sub(r"^\(\d+\.\d+\)\s*", "", line).strip() for line in lines]

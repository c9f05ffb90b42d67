"""What the kernel says in /proc and /sys: small files, and what is mounted where.

    read_text("/proc/sys/kernel/osrelease")       # "" where it is not there or not for us
    meminfo_bytes("MemAvailable")
    filesystem_of("/data")["fs"]                  # "ext4"

Limit: a process may end between two reads; what it no longer says is "" or 0, never an error.
Lesson: none."""

from __future__ import annotations

import os
import re
from pathlib import Path


def read_text(path: str) -> str:
    """A small file of /proc or /sys, stripped; "" when it is not there or not for us."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def meminfo_bytes(name: str, root: str = "") -> int:
    """One line of /proc/meminfo; 0 where there is none."""
    found = re.search(rf"^{name}:\s+(\d+) kB", read_text(f"{root}/proc/meminfo"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def filesystem_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """{"fs", "source", "mount"} of the file system that holds `path`, from mountinfo."""
    real = os.path.realpath(path)
    best = {"fs": "unknown", "source": "", "mount": ""}
    for line in read_text("/proc/self/mountinfo").split("\n"):
        left, _, right = line.partition(" - ")
        if not right:
            continue
        mount = left.split(" ")[4].encode().decode("unicode_escape")
        if (real == mount or real.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(
            best["mount"]
        ):
            best = {"fs": right.split(" ")[0], "source": right.split(" ")[1], "mount": mount}
    return best

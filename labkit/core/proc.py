"""What the kernel says in /proc and /sys: processes and their descendants, mounts, small files.

    read_text("/proc/sys/kernel/osrelease")       # "" where it is not there or not for us
    [pid, *descendants(pid)]                      # a process and all below it
    filesystem_of("/data")["fs"]                  # "ext4"

Limit: a process may end between two reads. Where a function does not say that it raises, what is
gone is "", 0 or nothing. Lesson: none."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


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


# -- processes -------------------------------------------------------------------------------------


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on: state, parent, group, session, …"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return []


def start_time(pid: int) -> int:
    """Kernel start time of a process in clock ticks since boot (field 22 of /proc/PID/stat); 0 if
    it is gone."""
    fields = stat_fields(pid)
    return 0 if not fields or fields[0] in ("Z", "X") else int(fields[19])


def parent(pid: int) -> int:
    return int((stat_fields(pid)[1:2] or ["0"])[0])


def children(pid: int | None = None) -> list[int]:
    """Child processes (of this one, without a pid), from every thread of the process, by the
    kernel's own list."""
    found: list[int] = []
    for task in Path(f"/proc/{pid or os.getpid()}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += [int(child) for child in task.read_text().split()]
    return found


def descendants(pid: int) -> list[int]:
    """Children, and children of children, the nearer ones first."""
    found: list[int] = []
    queue = [pid]
    while queue:
        below = children(queue.pop(0))
        found += below
        queue += below
    return found


def status_bytes(pid: int | str, *names: str) -> list[int]:
    """Sizes of /proc/PID/status ("VmRSS", "VmHWM"), 0 for one that is not there. Raises OSError."""
    text = Path(f"/proc/{pid}/status").read_text()
    found = [re.search(rf"^{name}:\s+(\d+) kB", text, re.MULTILINE) for name in names]
    return [int(line[1]) << 10 if line else 0 for line in found]


def io_counters(pid: int | str = "self") -> dict[str, int]:
    """/proc/PID/io: rchar, read_bytes, … Raises OSError (another user's)."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return {key: int(value) for key, _, value in (line.partition(": ") for line in lines)}


def environ(pid: int, errors: str = "surrogateescape") -> dict[str, str]:
    """The environment a process was started with. Raises OSError."""
    raw = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (entry.decode(errors=errors).partition("=") for entry in raw if b"=" in entry)
    return {key: value for key, _, value in pairs}


class MappedRange(NamedTuple):
    """Addresses `start` to `end`; `path` is "" for anonymous memory, "[vdso]" and its like for the
    kernel's, else of a file, from `offset` on. Bytes."""

    start: int
    end: int
    offset: int
    path: str


def mapped_ranges(
    pid: int | str = "self", errors: str = "surrogateescape"
) -> Iterator[MappedRange]:
    """What a process has mapped, in the order of its addresses. Raises OSError."""
    for line in Path(f"/proc/{pid}/maps").read_text(errors=errors).split("\n"):
        fields = line.split(None, 5)
        if fields:
            start, _, end = fields[0].partition("-")
            # the kernel writes a line break in a name as \012, and nothing else so
            path = "".join(fields[5:]).replace("\\012", "\n")
            yield MappedRange(int(start, 16), int(end, 16), int(fields[2], 16), path)


def mapped_files(pid: int | str = "self", errors: str = "surrogateescape") -> Iterator[str]:
    """Paths that a process has mapped, in the order of their addresses; one may come again. Raises
    OSError."""
    return (r.path for r in mapped_ranges(pid, errors) if r.path.startswith("/"))


def open_files(pid: int | str = "self") -> dict[int, str]:
    """Descriptor -> what it leads to ("/path", "socket:[…]"), by its number. Raises OSError."""
    found = {}
    for number in sorted(map(int, os.listdir(f"/proc/{pid}/fd"))):
        with contextlib.suppress(OSError):  # closed meanwhile
            found[number] = os.readlink(f"/proc/{pid}/fd/{number}")
    return found


def namespace_pids(pid: int) -> list[int]:
    """A process's id in each of its pid namespaces, the outermost first; [] when it is gone."""
    found = re.search(r"^NSpid:(.*)$", read_text(f"/proc/{pid}/status"), re.MULTILINE)
    return [int(number) for number in found[1].split()] if found else []


# -- mounts ----------------------------------------------------------------------------------------


class Mount(NamedTuple):
    point: str
    kind: str  # type of the file system
    source: str
    options: str  # the file system's own


def mounts(pid: int | str = "self") -> list[Mount]:
    """A process's mounts in the order in which they were made; the last of several on one point is
    the one seen. Raises OSError."""
    found = []
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            left, _, right = line.rstrip("\n").partition(" - ")
            found.append(Mount(_unescaped(left.split(" ")[4]), *right.split(" ", 2)))
    return found


def _unescaped(text: str) -> str:
    """The kernel writes space, tab, newline and backslash as three octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), text)


def filesystem_of(path: str | os.PathLike[str]) -> dict[str, str]:
    """{"fs", "source", "mount"} of the file system that holds `path`, from mountinfo."""
    real = os.path.realpath(path)
    best = {"fs": "unknown", "source": "", "mount": ""}
    with contextlib.suppress(OSError):
        for point, kind, source, _ in mounts():
            inside = real == point or real.startswith(point.rstrip("/") + "/")
            if inside and len(point) >= len(best["mount"]):
                best = {"fs": kind, "source": source, "mount": point}
    return best

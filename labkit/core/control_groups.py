"""What the control groups of this process leave it: memory and CPUs, of version 1, version 2 and
both mounted together.

A limit holds for everything below the group that has it, so each level counts from the process's
own group up to the root of the mount; what is above a container's mount cannot be seen from inside,
and is not known. A group that is named but not mounted here (another namespace's path) leaves the
mount's own root.

    memory_limit_bytes()     # the smallest limit on the way up, None without one
    memory_left_bytes()      # the least that any of them has left; page cache counts as used, as
        the kernel counts it
    cpu_quota()              # CPUs, 1.5 where a period of 100 ms may use 150 ms

All take a `root` below which /proc and /sys are looked for. Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from labkit.core import proc


def levels(controller: str, root: str = "") -> Iterator[tuple[int, str]]:
    """(version, directory) of every group that limits this process by a controller ("memory",
    "cpu"), its own first."""
    own = _own_groups(controller, root)
    for version, shown, point in _mounts(controller, root):
        path = own.get(version)
        if path is None:
            continue
        inside = (
            os.path.relpath(path, shown)
            if path == shown or path.startswith(shown.rstrip("/") + "/")
            else path.lstrip("/")
        )
        where = os.path.normpath(f"{root}{point}/{inside}")
        if not (where + "/").startswith(f"{root}{point}/") or not os.path.isdir(where):
            where = f"{root}{point}"
        while True:
            yield version, where
            if where == f"{root}{point}" or (
                version == 1
                and controller == "memory"
                and proc.read_text(f"{os.path.dirname(where)}/memory.use_hierarchy") == "0"
            ):
                break
            where = os.path.dirname(where)


def memory_limit_bytes(root: str = "") -> int | None:
    return min((limit for limit, _ in _memory(root)), default=None)


def memory_left_bytes(root: str = "") -> int | None:
    left = [limit - used for limit, used in _memory(root) if used is not None]
    return max(0, min(left)) if left else None


def cpu_quota(root: str = "") -> float | None:
    found = []
    for version, where in levels("cpu", root):
        if version == 2:
            quota, _, period = proc.read_text(f"{where}/cpu.max").partition(" ")
        else:
            quota, period = (
                proc.read_text(f"{where}/cpu.cfs_quota_us"),
                proc.read_text(f"{where}/cpu.cfs_period_us"),
            )
        # "max" and -1: none
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            found.append(int(quota) / int(period))
    return min(found, default=None)


def _memory(root: str) -> Iterator[tuple[int, int | None]]:
    """(limit, used) of each level that has one. Above `memory.high` the kernel takes pages back at
    once, so it is a limit as well."""
    for version, where in levels("memory", root):
        names, use = (
            (("memory.max", "memory.high"), "memory.current")
            if version == 2
            else (("memory.limit_in_bytes",), "memory.usage_in_bytes")
        )
        used = proc.read_text(f"{where}/{use}")
        for name in names:
            limit = proc.read_text(f"{where}/{name}")
            # version 1 writes "none" as the largest number of pages
            if limit.isdigit() and int(limit) < 1 << 62:
                yield int(limit), int(used) if used.isdigit() else None


def _own_groups(controller: str, root: str) -> dict[int, str]:
    """Version -> path of this process's group."""
    found = {}
    for line in proc.read_text(f"{root}/proc/self/cgroup").split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            found[2] = path
        elif controller in controllers.split(","):
            found[1] = path
    return found


def _mounts(controller: str, root: str) -> list[tuple[int, str, str]]:
    """(version, group that is mounted, mount point), as mountinfo has them; without it, where every
    distribution mounts them."""
    found = []
    for line in proc.read_text(f"{root}/proc/self/mountinfo").split("\n"):
        left, _, right = line.partition(" - ")
        fields, about = left.split(" "), right.split(" ")
        if (
            len(fields) < 5
            or len(about) < 3
            or not (
                about[0] == "cgroup2"
                or (about[0] == "cgroup" and controller in about[2].split(","))
            )
        ):
            continue
        shown, point = (field.encode().decode("unicode_escape") for field in fields[3:5])
        found.append((2 if about[0] == "cgroup2" else 1, shown, point))
    return found or [(2, "/", "/sys/fs/cgroup"), (1, "/", f"/sys/fs/cgroup/{controller}")]

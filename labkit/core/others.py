"""What the other processes of this machine used between two looks: CPU time and disk bytes.

A trial's own processes are told from the others by three signs: the run's mark in the environment,
a place on the way from the sampler up to the process that opened the run's ledger, or a parent that
has either. So the harness, the node agent, its servers, their daemons and a private containerd are
ours; kernel threads are nobody's, as they carry our reads and writes too.

    before = census()
    ...
    used(before, census())   # {"cpu_s": 4.1, "disk_bytes": 0, "most": "cc1plus", "visible": True}

Limits: a process that begins and ends between the looks counts where a parent that stayed has
waited for it; in a PID namespace, or where /proc hides other users' processes (hidepid), the others
are not to be seen, and `visible` says so; of other users' processes only root reads the disk bytes.
Cost: two small reads a process, four for one of others: 25 ms of one CPU a look at 150 processes,
before t0 and after the first token. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from labkit.core import proc
from labkit.core.json_types import JsonObject
from labkit.core.takedown import MARK, carries

#: /proc/self/ns/pid of the machine's first PID namespace (PROC_PID_INIT_INO of the kernel).
FIRST_PID_NAMESPACE = "pid:[4026531836]"
KTHREADD = 2


class Use(NamedTuple):
    """Of one process: its name, CPU seconds of its own and of the children that it has waited for,
    and bytes that it moved from and to disks."""

    name: str
    own_s: float
    waited_s: float
    disk_bytes: int


@dataclass(frozen=True)
class Census:
    """Processes that are not the run's, by pid and start time. `visible`: whether those of all
    users can be seen from here."""

    others: Mapping[tuple[int, int], Use] = field(default_factory=dict)
    visible: bool = True


def census(pid: int | None = None) -> Census:
    """All processes that do not belong to the run of process `pid` (default: this one)."""
    stats = {member: fields for member in proc.all_pids() if (fields := proc.stat_fields(member))}
    parents = {member: int(fields[1]) for member, fields in stats.items()}
    ours = _ours(parents, pid or os.getpid())
    ticks = os.sysconf("SC_CLK_TCK")
    others = {}
    for member, fields in stats.items():
        if member in ours or KTHREADD in (member, parents[member]):
            continue
        own, waited = sum(map(int, fields[11:13])), sum(map(int, fields[13:15]))
        others[member, int(fields[19])] = Use(
            proc.read_text(f"/proc/{member}/comm"),
            own / ticks,
            waited / ticks,
            _disk_bytes(member),
        )
    return Census(others, all_visible())


def all_visible() -> bool:
    """Whether /proc shows the processes of the whole machine and of all users."""
    with contextlib.suppress(OSError):
        first = os.readlink("/proc/self/ns/pid") == FIRST_PID_NAMESPACE
        return first and os.path.exists("/proc/1/stat")
    return False


def _ours(parents: Mapping[int, int], pid: int) -> set[int]:
    """`pid`, what is above it up to the process that opened the ledger, all with the run's mark,
    and everything below one of them."""
    token = os.environ.get(MARK, "").partition("/")[0]
    ours, at = {pid}, parents.get(pid, 0)
    while at > 1:  # the first above without the mark is the one that gave it
        ours.add(at)
        if not (token and carries(at, token)):
            break
        at = parents.get(at, 0)
    known: dict[int, bool] = {}

    def belongs(member: int) -> bool:
        if member not in known:
            known[member] = member in ours or bool(token and carries(member, token))
            if not known[member] and (above := parents.get(member, 0)) > 1:
                known[member] = belongs(above)
        return known[member]

    return {member for member in parents if belongs(member)}


def _disk_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        counters = proc.io_counters(pid)
        return counters.get("read_bytes", 0) + counters.get("write_bytes", 0)
    return 0


def used(before: Census, after: Census) -> JsonObject:
    """CPU seconds and disk bytes of others between two looks, and the name of the process with the
    most.

    What a process waited for counts where the child began after the first look; of one that was
    there, only what it used since. Children of a parent that is gone are the first process's to
    wait for, so the two are set against each other over all processes."""
    own_s, waited_s, disk_bytes, most = 0.0, 0.0, 0, (0.0, "")
    for key, now in after.others.items():
        was = before.others.get(key, Use(now.name, 0.0, 0.0, 0))
        own_s += now.own_s - was.own_s
        waited_s += now.waited_s - was.waited_s
        disk_bytes += max(0, now.disk_bytes - was.disk_bytes)
        most = max(most, (now.own_s - was.own_s, now.name))
    counted_before_s = sum(
        was.own_s + was.waited_s for key, was in before.others.items() if key not in after.others
    )
    return {
        "cpu_s": round(own_s + max(0.0, waited_s - counted_before_s), 3),
        "disk_bytes": disk_bytes,
        "most": most[1],
        "visible": before.visible and after.visible,
    }

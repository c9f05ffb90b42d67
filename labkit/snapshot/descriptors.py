"""Descriptors that CRIU does not know, closed in a process before its dump and opened again after
its restore.

A parked CUDA process holds nothing of the GPU, but may keep descriptors of /dev/nvidiactl,
/dev/nvidia0 or /dev/nvidia-uvm open (NVML handles do), and CRIU ends with "Can't dump file 9 of
that type (chr 195:255)". Here the process itself closes them, by system calls carried out inside of
it (`labkit.snapshot.tracee`), and after the restore opens the same paths under the same numbers.

    closed = close(pid, "/dev/nvidia")            # while it is parked
    reopen(restored_pid, closed)                  # while it stands stopped

What a driver keeps for an open file is new then: whether the process can go on is for its next
calls to show. Limit: 1 ms a descriptor. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.core import proc
from labkit.snapshot.tracee import Tracee, TraceError

OPEN, CLOSE, LSEEK, DUP3 = 2, 3, 8, 292  # x86-64


@dataclass(frozen=True)
class Closed:
    """`flags` as open(2) takes them, O_CLOEXEC among them."""

    number: int
    path: str
    flags: int
    offset: int


def open_ones(pid: int, prefix: str) -> list[Closed]:
    """Descriptors of files whose path begins with `prefix`."""
    found = []
    for number, path in proc.open_files(pid).items():
        lines = proc.read_text(f"/proc/{pid}/fdinfo/{number}").splitlines()
        if path.startswith(prefix) and lines:  # none: it was closed meanwhile
            facts = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
            found.append(Closed(number, path, int(facts["flags"], 8), int(facts["pos"])))
    return found


def close(pid: int, prefix: str) -> list[Closed]:
    """Close them in the process. Raises TraceError; then those that were closed are open again."""
    found, done = open_ones(pid, prefix), []
    try:
        with Tracee(pid) as tracee:
            for one in found:
                if (result := tracee.call(CLOSE, one.number)) < 0:
                    raise TraceError(
                        f"process {pid} did not close descriptor {one.number} ({one.path}):"
                        f" {os.strerror(-result)}"
                    )
                done.append(one)
    except BaseException:
        with contextlib.suppress(TraceError):
            reopen(pid, done)
        raise
    return found


def reopen(pid: int, closed: Sequence[Closed]) -> None:
    """Open them again under their numbers. Raises TraceError with the first that does not open."""
    if not closed:
        return
    with Tracee(pid) as tracee:
        for one in closed:
            with tracee.holding(os.fsencode(one.path) + b"\0") as address:
                number = tracee.call(
                    OPEN, address, one.flags & ~os.O_CREAT & ~os.O_EXCL & ~os.O_TRUNC, 0
                )
            if number < 0:
                raise TraceError(
                    f"process {pid} did not open {one.path} again: {os.strerror(-number)}",
                    why="the device's file is not here, or not for it",
                    fix="ls -l /dev/nvidia*",
                )
            if number != one.number:
                result = tracee.call(DUP3, number, one.number, one.flags & os.O_CLOEXEC)
                tracee.call(CLOSE, number)
                if result < 0:
                    raise TraceError(
                        f"process {pid} did not give {one.path} its number {one.number}:"
                        f" {os.strerror(-result)}"
                    )
            if one.offset:
                tracee.call(LSEEK, one.number, one.offset, os.SEEK_SET)

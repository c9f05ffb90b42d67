"""Free memory in one state before each trial: held by this host, not given back to the one below
it.

A virtual machine may hand what it frees back to its hypervisor (free page reporting, a balloon),
and whoever allocates next waits for the hypervisor to find it again: 2.2 GB of first touch took
0.39 s just after another process had freed as much and 1.1 s a few seconds later. A trial is then
as fast as what happened to run before it. And only whole huge pages are handed back: anonymous
memory is made of small pages, which the kernel takes from what is left of broken ones, the page
cache of large ones, so the same host is fast for one loader and slow for another. So what is about
to be needed is touched and freed, as large and as small pages, just before the clock starts, and
all arms find the same.

    prefault(2_200_000_000)    # bytes touched, half in huge pages; fewer where less is free

On a host whose memory is its own this changes nothing. Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import contextlib
import mmap

from labkit.core import control_groups, host, proc
from labkit.core.pages import MADV_POPULATE_WRITE, anonymous, populate

#: Left alone: taking the last free page would make the kernel drop page cache, which is some
#: trial's state.
_SPARE_BYTES = 512 << 20
_PIECE_BYTES = 64 << 20


def free_bytes(root: str = "") -> int:
    """MemFree – pages that hold nothing, not even cache – or what the limits of this process's
    control groups leave, if less."""
    free, left = proc.meminfo_bytes("MemFree", root), control_groups.memory_left_bytes(root)
    return free if left is None else min(free, left)


def prefault(size_bytes: int) -> int:
    """Touch so many bytes of free memory as huge pages and as many as small ones, give them back at
    once; how many it were in all.

    Never more than is free, so no cache is lost."""
    half_bytes = (
        min(size_bytes, (free_bytes() - _SPARE_BYTES) // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    )
    if half_bytes <= 0:
        return 0
    with anonymous(half_bytes) as large, anonymous(half_bytes) as small:
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            large.madvise(mmap.MADV_HUGEPAGE)
        _touch(large)
        _touch(small)
    return 2 * half_bytes


def _touch(buffer: mmap.mmap) -> None:
    pieces = [
        (at, min(_PIECE_BYTES, len(buffer) - at)) for at in range(0, len(buffer), _PIECE_BYTES)
    ]
    if not populate(buffer, pieces, MADV_POPULATE_WRITE, host.cpu_count()):  # before Linux 5.14
        buffer[:: mmap.PAGESIZE] = b"\1" * -(-len(buffer) // mmap.PAGESIZE)

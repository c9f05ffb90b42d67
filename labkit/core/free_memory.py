"""Free memory in one state before each trial: held by this host, not given back to the one below it.

A virtual machine may hand what it frees back to its hypervisor (free page reporting, a balloon), and whoever allocates
next waits for the hypervisor to find it again: 2.2 GB of first touch took 0.39 s just after another process had freed as
much and 1.1 s a few seconds later. A trial is then as fast as what happened to run before it. And only whole huge pages
are handed back: anonymous memory is made of small pages, which the kernel takes from what is left of broken ones, the
page cache of large ones, so the same host is fast for one loader and slow for another. So what is about to be needed is
touched and freed, as large and as small pages, just before the clock starts, and all arms find the same.

    lay(2_200_000_000)      # bytes touched, half of them in huge pages; fewer where less is free

On a host whose memory is its own this changes nothing. Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit.core import host

_MADV_POPULATE_WRITE = 23
#: Left alone: taking the last free page would make the kernel drop page cache, which is some trial's state.
_SPARE_BYTES = 512 << 20
_PIECE_BYTES = 64 << 20


def free_bytes(proc: str = "/proc", groups: str = "/sys/fs/cgroup") -> int:
    """MemFree – pages that hold nothing, not even cache – or what the limits of this process's control groups leave, if less."""
    found = re.search(r"^MemFree:\s+(\d+) kB", host.read_text(f"{proc}/meminfo"), re.MULTILINE)
    free = int(found[1]) << 10 if found else 0
    group = Path(groups) / host.read_text(f"{proc}/self/cgroup").rpartition("::/")[2].split("\n")[0]
    for level in (group, *group.parents):
        limit, now = host.read_text(f"{level}/memory.max"), host.read_text(f"{level}/memory.current")
        if limit.isdigit() and now.isdigit():
            free = min(free, int(limit) - int(now))
    return max(0, free)


def lay(size_bytes: int) -> int:
    """Touch so many bytes of free memory as huge pages and as many as small ones, give them back at once; how many it were in all.

    Never more than is free, so no cache is lost."""
    half_bytes = min(size_bytes, (free_bytes() - _SPARE_BYTES) // 2) // mmap.PAGESIZE * mmap.PAGESIZE
    if half_bytes <= 0:
        return 0
    with _anonymous(half_bytes) as large, _anonymous(half_bytes) as small:
        with contextlib.suppress(OSError):  # a kernel without transparent huge pages
            large.madvise(mmap.MADV_HUGEPAGE)
        _touch(large)
        _touch(small)
    return 2 * half_bytes


def _anonymous(size_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _touch(room: mmap.mmap) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = ctypes.addressof(ctypes.c_char.from_buffer(room))

    def touch(at: int) -> None:
        length = min(_PIECE_BYTES, len(room) - at)
        if libc.madvise(address + at, length, _MADV_POPULATE_WRITE):  # before Linux 5.14
            room[at:at + length:mmap.PAGESIZE] = b"\1" * -(-length // mmap.PAGESIZE)

    with ThreadPoolExecutor(host.cpu_count()) as many:  # the host below is slow to answer one of them
        list(many.map(touch, range(0, len(room), _PIECE_BYTES)))

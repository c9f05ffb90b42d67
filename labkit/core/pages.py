"""Pages: how many of a file are in the page cache, anonymous memory, and faulting a mapping's pages
in before they are needed.

    cached_pages(fd).cached                       # cachestat(2), Linux 6.5

    with anonymous(1 << 30) as room:
        populate(room, [(0, 1 << 29), (1 << 29, 1 << 29)], MADV_POPULATE_WRITE, threads=2)

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

MADV_POPULATE_READ, MADV_POPULATE_WRITE = 22, 23
_SYS_CACHESTAT = 451  # the same number on every architecture
_libc = ctypes.CDLL(None, use_errno=True)


class _Range(ctypes.Structure):
    _fields_ = [("offset", ctypes.c_uint64), ("length", ctypes.c_uint64)]


class CachedPages(ctypes.Structure):
    """Pages of a range of a file, as cachestat(2) counts them."""

    cached: int
    dirty: int
    writeback: int
    _fields_ = [
        (name, ctypes.c_uint64)
        for name in ("cached", "dirty", "writeback", "evicted", "recently_evicted")
    ]


def cached_pages(fd: int, offset: int = 0, length: int = 0) -> CachedPages | None:
    """What of a range (length 0: to the end of the file) is in the page cache. None where the
    kernel does not say; then ctypes.get_errno() says why."""
    found = CachedPages()
    where = ctypes.byref(_Range(offset, length))
    failed = _libc.syscall(_SYS_CACHESTAT, fd, where, ctypes.byref(found), 0)
    return None if failed else found


def anonymous(length: int) -> mmap.mmap:
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def populate(
    memory: mmap.mmap, pieces: Sequence[tuple[int, int]], advice: int, threads: int
) -> bool:
    """Fault (offset, length) pieces of a mapping in from several threads at once. False where the
    kernel (before 5.14) or the disk cannot."""
    if not pieces:
        return True
    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    with ThreadPoolExecutor(min(threads, len(pieces))) as many:
        return all(many.map(lambda p: libc.madvise(address + p[0], p[1], advice) == 0, pieces))

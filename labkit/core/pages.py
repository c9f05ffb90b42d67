"""Anonymous memory, and faulting a mapping's pages in before they are needed.

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

"""Reading local files: chunks of what is in the page cache out of it, of what is not past it
(O_DIRECT), or whole files through it.

A direct read does not fill the cache with bytes that are needed once; but it ignores the cache too,
so on a warm host it would read the disk for nothing. `cachestat(2)` says beforehand which is which,
chunk by chunk. And it needs pages of its own, each filled with zeros before the disk may fill it:
where the final place is the host's memory and the kernel reads far enough ahead to keep the disk
busy (`labkit.core.disks`), mapping the file and letting it is faster.

Never silently wrong: a short read goes on where it stopped, EINVAL (no O_DIRECT on this file
system) and EIO are asked again through the cache, and what still fails, or a file that changed
meanwhile, is an error. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.pages import cached_pages
from labkit.errors import BadInput, TransferError
from labkit.weights.streamer.plan import PAGE_BYTES, Chunk, File, cut, stamp_of

_NO_STORAGE = (0x01021994, 0x858458F6)  # TMPFS_MAGIC, RAMFS_MAGIC of statfs(2)
#: What is looked at and read in at once where almost all of a file is in the page cache.
PIECE_BYTES = 2 << 20
#: From this read-ahead on the kernel keeps a disk as busy as direct reads do. 128 KiB is its own
#: default, distributions and clouds set up to 8 MiB.
FAR_AHEAD_BYTES = 1 << 20
_libc = ctypes.CDLL(None, use_errno=True)
Read = Callable[[int, list[memoryview], int], int]


def resident_share(fd: int, offset: int, length: int) -> float:
    """Share of a range that is in the page cache; 0.0 where the kernel (before 6.5) does not
    say."""
    found = cached_pages(fd, offset, length)
    return min(1.0, found.cached * PAGE_BYTES / max(length, 1)) if found else 0.0


def in_memory(fd: int) -> bool:
    """Is the file in a file system that has no storage below it (tmpfs, ramfs)? Counting its pages
    would cost what reading them does."""
    kind = (ctypes.c_long * 32)()  # struct statfs begins with f_type
    return _libc.fstatfs(fd, kind) == 0 and kind[0] in _NO_STORAGE


class LocalFile:
    """One shard, open twice: buffered, and direct where the file system can and a page is missing.
    `read(chunk, memory)` fills the memory."""

    def __init__(self, path: Path, file: File, preadv: Read = os.preadv):
        self.path, self.file, self._preadv = path, file, preadv
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.direct = -1
        self.direct_bytes = self.cached_bytes = 0
        if stamp_of(self.fd) != file.stamp:
            self.close()
            raise self._changed()
        self.device = os.fstat(self.fd).st_dev
        self.in_memory = in_memory(self.fd)
        self.share = 1.0 if self.in_memory else resident_share(self.fd, 0, file.size_bytes)
        if self.share < 1.0:
            try:
                self.direct = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    self.close()
                    raise

    def _changed(self) -> BadInput:
        return BadInput(
            f"{self.path} changed while it was read",
            why="its parts would be of two versions; nothing was loaded",
            fix="load it again once nobody writes to it",
        )

    def check_unchanged(self) -> None:
        if stamp_of(self.fd) != self.file.stamp:
            raise self._changed()

    def close(self) -> None:
        for fd in (self.fd, self.direct):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct = -1

    def missing(self) -> list[tuple[int, int]]:
        """(offset, length) of the pieces that are not wholly in memory."""
        if self.share >= 1.0:
            return []
        return [
            piece
            for piece in cut(0, self.file.size_bytes, PIECE_BYTES)
            if resident_share(self.fd, *piece) < 1.0
        ]

    def read(self, chunk: Chunk, memory: memoryview) -> None:
        """Exactly `chunk.length` bytes. Raises TransferError, BadInput (the file ended early)."""
        cached = self.in_memory or (
            self.share > 0 and resident_share(self.fd, chunk.offset, chunk.length) > 0.9
        )
        done = 0
        if self.direct >= 0 and not cached:
            done = self._direct(chunk, memory)
        self.direct_bytes += done
        while done < chunk.length:
            try:
                got = self._preadv(self.fd, [memory[done : chunk.length]], chunk.offset + done)
            except OSError as error:
                raise TransferError(
                    f"{self.path} at byte {chunk.offset + done}: {error.strerror}",
                    why="the disk or its file system refused; nothing was loaded",
                    fix="look at dmesg; fetch the shard again, then labkit model verify DIR",
                ) from None
            if not got:
                raise BadInput(
                    f"{self.path} ended at byte {chunk.offset + done}, its header promises"
                    f" {self.file.size_bytes}",
                    why="truncated while it was read; nothing was loaded",
                    fix="fetch the shard again",
                )
            done += got
            self.cached_bytes += got

    def _direct(self, chunk: Chunk, memory: memoryview) -> int:
        """Bytes read past the cache; fewer than asked where the rest has to come through it."""
        done = 0
        while done < chunk.length:
            try:
                got = self._preadv(self.direct, [memory[done:]], chunk.offset + done)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EIO, errno.EINTR, errno.EAGAIN):
                    return done
                raise TransferError(f"{self.path}: {error.strerror}", fix="look at dmesg") from None
            done += got
            if not got or done % PAGE_BYTES:
                break
        return min(done, chunk.length)


def facts_of(files: list[LocalFile]) -> JsonObject:
    return {
        "direct_bytes": sum(f.direct_bytes for f in files),
        "cached_bytes": sum(f.cached_bytes for f in files),
    }

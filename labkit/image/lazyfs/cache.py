"""Blobs on disk as they arrive, and chunks in memory: what came once is not fetched again, and
nothing is believed twice.

On disk a blob is one sparse file under its digest: bytes stand where they stand in the blob, so a
stream of a thousand small files is one sequential write, and any number of mounts may fill the same
file. There is no index to tear: which ranges are there is asked of the file system (SEEK_HOLE), and
every chunk is checked against its TOC digest each time it is read. A torn or forged range fails
that check and is fetched again. The size bound is kept by removing the blobs of other images, least
recently used first, and then by punching holes into one's own.

    store = BlobStore(Path("~/cache"), limit_bytes=20 << 30)
    blob = store.open("sha256:…", size_bytes)
    blob.write(0, data); blob.has(0, 4096); blob.read(0, 4096)

Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from pathlib import Path

BLOCK = 4096
_PUNCH = 0x02 | 0x01  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class Intervals:
    """A set of half-open ranges, merged. Not thread-safe."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []

    def add(self, start: int, end: int) -> None:
        if start >= end:
            return
        low = bisect_left(self._ends, start)
        high = bisect_right(self._starts, end)
        if low < high:
            start, end = min(start, self._starts[low]), max(end, self._ends[high - 1])
        self._starts[low:high], self._ends[low:high] = [start], [end]

    def remove(self, start: int, end: int) -> None:
        for a, b in list(zip(self._starts, self._ends, strict=True)):
            if a < end and b > start:
                at = self._starts.index(a)
                del self._starts[at], self._ends[at]
                self.add(a, min(b, start))
                self.add(max(a, end), b)

    def has(self, start: int, end: int) -> bool:
        at = bisect_right(self._starts, start) - 1
        return start >= end or (at >= 0 and self._ends[at] >= end)

    def missing(self, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that are not in the set."""
        gaps, at = [], bisect_right(self._ends, start)
        while start < end:
            if at >= len(self._starts) or self._starts[at] >= end:
                gaps.append((start, end))
                break
            if self._starts[at] > start:
                gaps.append((start, self._starts[at]))
            start = max(start, self._ends[at])
            at += 1
        return gaps

    @property
    def total(self) -> int:
        return sum(self._ends) - sum(self._starts)

    def spans(self) -> list[tuple[int, int]]:
        return list(zip(self._starts, self._ends, strict=True))


class Blob:
    """One blob's file. `written` is what this process put there; what others put there is found by
    `has`."""

    def __init__(self, path: Path, size_bytes: int):
        self.path, self.size_bytes = path, size_bytes
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self.fd, fcntl.LOCK_SH)  # in use: no other mount may remove it
        if os.fstat(self.fd).st_size != size_bytes:
            os.ftruncate(self.fd, size_bytes)
        os.utime(self.fd)
        self.written = Intervals()
        self._lock = threading.Lock()

    def write(self, start: int, data: bytes | memoryview) -> None:
        rest, at = memoryview(data), start
        while rest:
            done = os.pwrite(self.fd, rest, at)
            rest, at = rest[done:], at + done
        with self._lock:
            self.written.add(start, at)

    def read(self, start: int, size: int) -> bytes:
        return os.pread(self.fd, size, start)

    def own(self, start: int, end: int) -> bool:
        with self._lock:
            return self.written.has(start, end)

    def has(self, start: int, end: int) -> bool:
        """Whether the range may be read. False alarms are possible at the edges of what others
        wrote: verify."""
        return self.own(start, end) or self._there(start, end)

    def missing(self, start: int, end: int, *, trust_others: bool = True) -> list[tuple[int, int]]:
        """Parts of the range to fetch. `trust_others=False`: also what only seems to be here, after
        it failed its check."""
        with self._lock:
            parts = self.written.missing(start, end)
        return [r for r in parts if not (trust_others and self._there(*r))]

    def _there(self, start: int, end: int) -> bool:
        """Whether others put it there. A block that this process wrote a part of says nothing about
        the rest of it."""
        low, high = start // BLOCK * BLOCK, -(-end // BLOCK) * BLOCK
        with self._lock:
            if self.written.missing(low, high) != [(low, high)]:
                return False
        try:
            return (
                os.lseek(self.fd, start, os.SEEK_DATA) == start
                and os.lseek(self.fd, start, os.SEEK_HOLE) >= end
            )
        except OSError:  # no data after start
            return False

    def forget(self, start: int, end: int) -> None:
        """The range was not what it should be, or its room is needed: as if it never came."""
        with self._lock:
            self.written.remove(start, end)
        _punch(self.fd, start, end)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


def _punch(fd: int, start: int, end: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    if libc.fallocate(fd, _PUNCH, start, end - start):
        # no holes on this file system: zeros fail verification too
        os.pwrite(fd, bytes(min(end - start, 1 << 20)), start)


class BlobStore:
    """A folder of blobs, shared by any number of mounts, held below `limit_bytes`."""

    def __init__(self, root: str | os.PathLike[str], limit_bytes: int = 64 << 30):
        self.root, self.limit_bytes = Path(root), limit_bytes
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._open: dict[str, Blob] = {}

    def open(self, digest: str, size_bytes: int) -> Blob:
        path = self.root / (digest.replace(":", "-") + ".blob")
        while True:
            blob = Blob(path, size_bytes)
            with contextlib.suppress(FileNotFoundError):
                # else: removed by another mount just now
                if os.stat(path).st_ino == os.fstat(blob.fd).st_ino:
                    self._open[digest] = blob
                    return blob
            blob.close()

    def used_bytes(self) -> int:
        total = 0
        for path in self.root.glob("*.blob"):
            with contextlib.suppress(OSError):
                total += os.stat(path).st_blocks * 512
        return total

    def keep_bound(self) -> int:
        """Bring the folder below its bound. Returns the bytes given back."""
        used = self.used_bytes()
        before = used
        if used <= self.limit_bytes:
            return 0
        for path in sorted(
            self.root.glob("*.blob"), key=lambda p: p.stat().st_mtime if p.exists() else 0
        ):
            if used <= self.limit_bytes:
                break
            used -= _remove_unused(path)
        # oldest bytes of one's own, at the front of the blob, are the ones served first
        for blob in self._open.values():
            for start, end in blob.written.spans():
                if used <= self.limit_bytes:
                    break
                end = min(end, start + max(BLOCK, used - self.limit_bytes + BLOCK))
                blob.forget(start, end)
                used = self.used_bytes()
        return before - used

    def close(self) -> None:
        for blob in self._open.values():
            blob.close()
        self._open.clear()


def _remove_unused(path: Path) -> int:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size = os.fstat(fd).st_blocks * 512
        path.unlink(missing_ok=True)
        return size
    except OSError:
        return 0  # another mount uses it
    finally:
        os.close(fd)


class ChunkMemory:
    """Decompressed, verified chunks by digest, up to `limit_bytes`; what the kernel has read to its
    end goes first."""

    def __init__(self, limit_bytes: int = 256 << 20):
        self.limit_bytes, self.used_bytes = limit_bytes, 0
        self._chunks: OrderedDict[str, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, digest: str) -> bytes | None:
        return self._chunks.get(digest)

    def put(self, digest: str, data: bytes, *, ahead: bool = False) -> bool:
        """`ahead`: only where there is room; a chunk nobody asked for yet must not push out one in
        use."""
        with self._lock:
            if digest in self._chunks:
                return True
            if ahead and self.used_bytes + len(data) > self.limit_bytes:
                return False
            self._chunks[digest] = data
            self.used_bytes += len(data)
            while self.used_bytes > self.limit_bytes and len(self._chunks) > 1:
                _, old = self._chunks.popitem(last=False)
                self.used_bytes -= len(old)
            return True

    def served(self, digest: str, to_its_end: bool) -> None:
        """The kernel keeps what it was given: a chunk served to its end is the next to go, others
        stay longer."""
        with self._lock:
            if digest in self._chunks:
                self._chunks.move_to_end(digest, last=not to_its_end)

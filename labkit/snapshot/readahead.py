"""Bringing a snapshot's bytes into memory ahead of CRIU, by several threads, checked on the way.

CRIU reads its image in one stream and copies it page by page; a cold disk answers one stream at a
third to a half of its rate, and the libraries that the process has mapped would come in page fault
by page fault. So all ranges are put into the disk's queue ahead (`POSIX_FADV_WILLNEED`: no copy),
in the order in which the restore needs them: pages of the CRIU image, then what the process touched
of libraries and model before its first token when the snapshot was made (its working set). Two
threads follow and take the CRC of the pages: checking a snapshot costs no second read of the disk.

    with reading(snapshot) as ahead:
        pid = criu.restore(…, stopped=True)
        ahead.checked()                      # raises SnapshotRefused before the process runs a
            single instruction

Limit: bytes ÷ the disk's rate with a queue. Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from labkit.core import proc, timeline
from labkit.snapshot import store
from labkit.snapshot.explain import SnapshotRefused

PAGE = mmap.PAGESIZE
#: For the pages that are checked; the rest is only asked for. 600 MB cold on two cores: four
#: reading threads 0.6 s (0.2 to 0.8 s of CPU), two 0.4–0.6 s (0.2 to 0.3), asked for in these
#: pieces 0.45–0.57 s (0.15).
THREADS, ASK_BYTES = 2, 512 << 10
#: Gaps up to this size between touched ranges are read as well: one request is cheaper than two.
GAP_BYTES = 256 << 10


@dataclass(frozen=True)
class Piece:
    path: str
    offset: int
    length: int
    crc: int | None = None
    name: str = ""


@dataclass
class Ahead:
    """What the threads did. `checked` waits for the pieces with a checksum only."""

    pieces: Sequence[Piece]
    asked_bytes: int = 0
    checked_bytes: int = 0
    damaged: list[str] = field(default_factory=list)
    seconds: float = 0.0
    _next: int = 0
    _left_to_check: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _all_checked: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)
    _stop: bool = False

    def start(self, threads: int = THREADS) -> None:
        checked = [p for p in self.pieces if p.crc is not None]
        asking = threading.Thread(target=self._ask, daemon=True, name="readahead-ask")
        asking.start()
        self._threads.append(asking)
        self._left_to_check = len(checked)
        if not self._left_to_check:
            self._all_checked.set()
        began = timeline.now_s()
        for _ in range(min(threads, len(checked))):
            thread = threading.Thread(
                target=self._work, args=(checked, began), daemon=True, name="readahead"
            )
            thread.start()
            self._threads.append(thread)

    def _ask(self) -> None:
        """Put every piece into the disk's queue, in order: nothing is copied by that, and the
        queue's length holds it back."""
        opened: dict[str, int] = {}
        try:
            for piece in self.pieces:
                if self._stop:
                    return
                with contextlib.suppress(OSError):
                    fd = opened.get(piece.path)
                    if fd is None:
                        fd = opened[piece.path] = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
                    for at in range(piece.offset, piece.offset + piece.length, ASK_BYTES):
                        self.asked_bytes += min(ASK_BYTES, piece.offset + piece.length - at)
                        os.posix_fadvise(
                            fd,
                            at,
                            min(ASK_BYTES, piece.offset + piece.length - at),
                            os.POSIX_FADV_WILLNEED,
                        )
        finally:
            for fd in opened.values():
                os.close(fd)

    def _work(self, checked: Sequence[Piece], began: float) -> None:
        crc32, buffer = store.crc32(), mmap.mmap(-1, store.CHUNK_BYTES)
        view = memoryview(buffer)
        opened: dict[str, int] = {}
        try:
            while not self._stop:
                with self._lock:
                    if self._next >= len(checked):
                        return
                    piece = checked[self._next]
                    self._next += 1
                got = self._read(piece, view, opened)
                wrong = got != piece.length or crc32(view[:got]) != piece.crc
                with self._lock:
                    self.checked_bytes += max(got, 0)
                    self.seconds = timeline.now_s() - began
                    if wrong:
                        self.damaged.append(piece.name)
                    self._left_to_check -= 1
                    if not self._left_to_check:
                        self._all_checked.set()
        finally:
            for fd in opened.values():
                os.close(fd)
            view.release()
            buffer.close()

    def _read(self, piece: Piece, view: memoryview, opened: dict[str, int]) -> int:
        done = 0
        try:
            fd = opened.get(piece.path)
            if fd is None:
                fd = opened[piece.path] = os.open(piece.path, os.O_RDONLY | os.O_CLOEXEC)
            while done < piece.length and (
                got := os.preadv(fd, [view[done : piece.length]], piece.offset + done)
            ):
                done += got
        except OSError:
            return -1
        return done

    def checked(self) -> None:
        """Wait until every checksummed byte was seen. Raises SnapshotRefused for the first that
        differs."""
        self._all_checked.wait()
        if self.damaged:
            raise SnapshotRefused(
                f"the snapshot is damaged: {', '.join(sorted(set(self.damaged)))}",
                "bytes changed since the dump; the process was not let run",
                "labkit snapshot dump makes a new one",
            )

    def join(self) -> None:
        for thread in self._threads:
            thread.join()

    def stop(self) -> None:
        self._stop = True
        self.join()


def pieces_of(
    snapshot: store.Snapshot,
    moved: dict[str, str] | None = None,
    root: str = "",
    coming: Collection[str] = (),
) -> list[Piece]:
    """Pages of the CRIU image (with their CRCs), then the working set. `moved`: path at the dump ->
    path here; `root`: of a container; `coming`: files (paths at the dump) that are still on their
    way, not to be read ahead."""
    found = []
    for name, about in snapshot.manifest.files.items():
        crcs = about.get("crc32")
        for i, crc in enumerate(crcs or ()):
            offset = i * store.CHUNK_BYTES
            found.append(
                Piece(
                    str(snapshot.criu_images / name),
                    offset,
                    min(store.CHUNK_BYTES, about["size_bytes"] - offset),
                    crc,
                    name,
                )
            )
    return found + ranges_of(
        snapshot.manifest,
        {
            path: (moved or {}).get(path) or root + path
            for path in snapshot.manifest.working_set
            if path not in coming
        },
    )


def ranges_of(manifest: store.Manifest, where: Mapping[str, str]) -> list[Piece]:
    """The working set of the files in `where` (path at the dump -> path here); the model's last:
    CRIU needs the libraries' pages, the first token the model's."""
    found = []
    for path in sorted(manifest.working_set, key=lambda p: p in manifest.mapped):
        if path in where:
            for offset, length in manifest.working_set[path]:
                for at in range(offset, offset + length, store.CHUNK_BYTES):
                    found.append(
                        Piece(where[path], at, min(store.CHUNK_BYTES, offset + length - at))
                    )
    return found


def piece_bytes(pieces: Sequence[Piece]) -> int:
    return sum(p.length for p in pieces)


@contextmanager
def reading(pieces: Sequence[Piece], threads: int = THREADS) -> Iterator[Ahead]:
    ahead = Ahead(pieces)
    ahead.start(threads)
    try:
        yield ahead
    except BaseException:
        ahead.stop()
        raise


def working_set(pid: int) -> dict[str, list[list[int]]]:
    """Ranges of files that the process has in its page tables: what it touched (and the kernel
    mapped around). Needs root.

    path -> [[offset, length], …], merged over small gaps. Pages that it has a copy of (relocated
    data) count as well: their content is in the CRIU image, but CRIU writes it into a private
    mapping, and the kernel reads the file's page to copy it first."""
    found: dict[str, list[list[int]]] = {}
    with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
        for start, end, offset, path in proc.mapped_ranges(pid):
            if (
                not path.startswith("/")
                or path.startswith(("/dev/", "/memfd:", "/SYSV"))
                or path.endswith(" (deleted)")
            ):
                continue
            raw = os.pread(pagemap.fileno(), (end - start) // PAGE * 8, start // PAGE * 8)
            # bit 63, present; little-endian
            touched = [i for i in range(len(raw) // 8) if raw[i * 8 + 7] & 0x80]
            found.setdefault(path, []).extend([offset + page * PAGE, PAGE] for page in touched)
    return {path: merged for path, ranges in found.items() if (merged := merge(ranges))}


def merge(ranges: Sequence[Sequence[int]], gap: int = GAP_BYTES) -> list[list[int]]:
    """Ranges ([offset, length], bytes) in order, joined where they are at most `gap` apart."""
    merged: list[list[int]] = []
    for offset, length in sorted((r[0], r[1]) for r in ranges):
        if merged and offset <= merged[-1][0] + merged[-1][1] + gap:
            merged[-1][1] = max(merged[-1][1], offset + length - merged[-1][0])
        else:
            merged.append([offset, length])
    return merged

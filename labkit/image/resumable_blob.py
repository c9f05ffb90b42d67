"""A blob on its way into a file: parts land in any order, are read in order, and a journal says
what a killed pull had.

    blob = ResumableBlob(descriptor, folder / "blob", part_bytes=2 << 20)
    parts = blob.missing(url)               # to fetch: what no journal line covers
    for packed in blob.chunks(): …          # waits for what is missing; raises what ended the fetch

Limit: the page cache, which the bytes pass once. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

from labkit.errors import TransferError
from labkit.image import oci
from labkit.net.parts import Into, RangePart

READ_BYTES = 256 << 10


class ResumableBlob:
    """A blob on its way into a file: which parts are there, and how far it can be read from its
    beginning."""

    def __init__(self, descriptor: oci.Descriptor, path: Path, part_bytes: int):
        self.descriptor, self.path, self.part_bytes = descriptor, path, part_bytes
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._journal = os.open(
            f"{path}.parts", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600
        )
        # start of a part that is not yet joined on -> how far it got
        self._ends: dict[int, int] = {}
        self._reached = 0
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self.resumed_bytes = self._read_journal()

    def _read_journal(self) -> int:
        """A part's line is written after its bytes; a torn last line counts for nothing."""
        size, found = os.fstat(self.fd).st_size, 0
        for line in os.pread(self._journal, 16 << 20, 0).split(b"\n")[:-1]:
            with contextlib.suppress(ValueError):
                start, end = map(int, line.split())
                if 0 <= start < end <= min(size, self.descriptor.size_bytes):
                    found += end - start
                    self._grown(start, end)
        return found

    def _grown(self, start: int, at: int) -> None:
        self._ends[start] = max(at, self._ends.get(start, 0))
        while (at := self._next()) > self._reached:
            self._reached = at

    def _next(self) -> int:
        # Parts start at multiples of part_bytes, but a journal may hold another run's: look for the
        # one that covers.
        if self._reached in self._ends:
            return self._ends[self._reached]
        return max(
            (end for start, end in self._ends.items() if start <= self._reached < end),
            default=self._reached,
        )

    def missing(self, url: str) -> list[RangePart]:
        """The parts that no journal line covers."""
        have, parts = sorted(self._ends.items()), []
        for start in range(0, self.descriptor.size_bytes, self.part_bytes):
            size = min(self.part_bytes, self.descriptor.size_bytes - start)
            if not any(s <= start and start + size <= e for s, e in have):
                parts.append(RangePart(url, start, size, self, Into.file(self.fd)))
        return parts

    def progressed(self, start: int, at: int) -> None:
        with self._changed:
            self._grown(start, at)
            self._changed.notify_all()

    def done(self, part: RangePart) -> None:
        os.write(self._journal, b"%d %d\n" % (part.start, part.start + part.size_bytes))
        self.progressed(part.start, part.start + part.size_bytes)

    def fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def chunks(self) -> Iterator[bytes]:
        """The blob from its beginning, as it arrives. Raises what ended the fetch."""
        at = 0
        while at < self.descriptor.size_bytes:
            with self._changed:
                while self._reached <= at and self._error is None:
                    self._changed.wait(1.0)
                if self._reached <= at:
                    assert self._error is not None
                    raise self._error
                end = self._reached
            while at < end:
                block = os.pread(self.fd, min(READ_BYTES, end - at), at)
                if not block:
                    raise TransferError(
                        f"{self.path}: shorter than its journal says",
                        why="the file was changed meanwhile",
                        fix="pull again",
                    )
                at += len(block)
                yield block

    def forget(self) -> None:
        """Its bytes were wrong: nothing of it is to be resumed."""
        for path in (self.path, Path(f"{self.path}.parts")):
            path.unlink(missing_ok=True)

    def close(self) -> None:
        os.close(self.fd)
        os.close(self._journal)

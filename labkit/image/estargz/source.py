"""Any tar layer as a list of members and a file to read their bytes from: reordering needs random
access.

A layer is decompressed once into a spool (a file without a name in the output's directory), as
prioritised files go first. Limit: one thread of decompression, then the spool's disk. Sparse
members are read in full; an expansion over `limit_bytes` is refused.

    with spool(chunks, directory) as layer:
        layer.members[0].member.name ; layer.read(layer.members[0], at, size)

Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import BadInput
from labkit.image import sparse
from labkit.image.tar import TarReader
from labkit.image.tar_header import Member

LIMIT_BYTES = 64 << 30


@dataclass(frozen=True)
class Placed:
    """A member and where its stored bytes are in the spool."""

    member: Member
    offset: int


@dataclass
class Spool:
    fd: int
    members: list[Placed]
    size_bytes: int

    def read(self, placed: Placed, at: int, size: int) -> bytes:
        """Bytes of a member, from `at` of it on."""
        if placed.member.extents is None:
            return os.pread(self.fd, size, placed.offset + at)
        return sparse.read(
            placed.member.extents,
            at,
            size,
            lambda start, length: os.pread(self.fd, length, placed.offset + start),
        )


@contextmanager
def spool(
    chunks: Iterable[bytes], directory: str | Path, limit_bytes: int = LIMIT_BYTES
) -> Iterator[Spool]:
    """Raises BadInput for what is no sound tar stream or expands beyond the limit."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        written = 0

        def spooled() -> Iterator[bytes]:
            nonlocal written
            for chunk in chunks:
                written += len(chunk)
                _bound(written, limit_bytes)
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
                yield chunk

        reader = TarReader(spooled())
        members, unstored = [], 0
        for member in reader:
            members.append(Placed(member, reader.offset))
            if member.extents is not None:
                unstored += member.size_bytes
                _bound(unstored, limit_bytes)
        yield Spool(file.fileno(), members, written)


def _bound(size_bytes: int, limit_bytes: int) -> None:
    if size_bytes > limit_bytes:
        raise BadInput(
            f"the layer expands to more than {limit_bytes} bytes",
            why="a decompression bomb, or a layer for another host",
        )

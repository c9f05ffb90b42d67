"""The TOC of an eStargz blob, and its chunks, by ranges: footer, TOC, then only the chunks that are
asked for, each verified.

    toc = read_toc(read_at, size_bytes, toc_digest=annotation)
    chunk = toc.entries[3].chunks[0]
    data = verify(chunk, read_at(chunk.start, chunk.end - chunk.start))

Trust comes from above: the manifest was verified by its digest, it names the TOC's digest in an
annotation, the TOC names each chunk's. Limit: two round trips to open, one for each range that is
not here. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from labkit.errors import BadInput
from labkit.image.estargz import layout, toc
from labkit.image.estargz.codec import decompress, decompress_bounded
from labkit.image.oci import digest_of
from labkit.image.tar import TarReader
from labkit.image.tar_header import FILE

ReadAt = Callable[[int, int], bytes]  # (start, size) -> exactly those bytes of the blob


def read_toc(read_at: ReadAt, size_bytes: int, toc_digest: str) -> toc.Toc:
    """The TOC of a blob of `size_bytes`, checked against the manifest's annotation. Raises
    BadInput."""
    if size_bytes < layout.FOOTER_BYTES:
        raise BadInput(
            f"a blob of {size_bytes} bytes is no eStargz layer",
            fix="labkit image convert LAYOUT OUT",
        )
    offset = layout.unpack_footer(read_at(size_bytes - layout.FOOTER_BYTES, layout.FOOTER_BYTES))
    end = size_bytes - layout.FOOTER_BYTES
    if not 0 <= offset < end or end - offset > toc.TOC_LIMIT_BYTES:
        raise BadInput(
            f"the eStargz footer points at {offset} of {size_bytes} bytes",
            why="a corrupt or forged layer",
        )
    archive = decompress_bounded(read_at(offset, end - offset), toc.TOC_LIMIT_BYTES)
    reader = TarReader([archive])
    for member in reader:
        if member.name != layout.TOC_NAME or member.type != FILE:
            break
        raw = b"".join(reader.data())
        if digest_of(raw) != toc_digest:
            raise BadInput(
                "the layer's TOC is not the one its manifest names",
                why=f"expected {toc_digest}; corrupt or forged, nothing was mounted",
            )
        return toc.parse(raw, offset)
    raise BadInput("the member the footer points at is no TOC", why="a corrupt or forged layer")


def read_toc_of_file(path: Path, toc_digest: str) -> toc.Toc:
    """The TOC of a blob on this disk. Raises BadInput."""
    with open(path, "rb") as file:
        fd = file.fileno()
        return read_toc(
            lambda start, size: os.pread(fd, size, start), os.fstat(fd).st_size, toc_digest
        )


def verify(chunk: toc.Chunk, member: bytes) -> bytes:
    """The chunk's bytes. Raises BadInput unless they are what the TOC says."""
    data = decompress(member, chunk.size)
    if digest_of(data) != chunk.digest:
        raise BadInput(
            f"a chunk is not what its TOC says ({chunk.digest[:19]}…)",
            why="corrupt on the way, or forged; it was not used",
        )
    return data

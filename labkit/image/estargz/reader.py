"""Files out of an eStargz blob by ranges: footer, TOC, then only the chunks that are asked for,
each verified.

    layer = open_bytes(blob, toc_digest=annotation)
    data = read(layer, "usr/bin/python3.11", 0, 4096)

Trust comes from above: the manifest was verified by its digest, it names the TOC's digest in an
annotation, the TOC names each chunk's. Without the annotation a layer is refused unless
`toc_digest=None` says so aloud. Limit: two round trips to open, one for each range that is not
here. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from labkit.errors import BadInput
from labkit.image.estargz import layout, toc
from labkit.image.estargz.codec import decompress, decompress_bounded
from labkit.image.tar import FILE, TarReader

ReadAt = Callable[[int, int], bytes]  # (start, size) -> exactly those bytes of the blob


@dataclass(frozen=True)
class Layer:
    read_at: ReadAt
    size_bytes: int
    toc: toc.Toc


def fetch_toc(read_at: ReadAt, size_bytes: int, toc_digest: str | None) -> tuple[bytes, int]:
    """(the TOC's JSON, its member's offset), checked against the manifest's annotation. Raises
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
        if toc_digest is not None and "sha256:" + hashlib.sha256(raw).hexdigest() != toc_digest:
            raise BadInput(
                "the layer's TOC is not the one its manifest names",
                why=f"expected {toc_digest}; corrupt or forged, nothing was mounted",
            )
        return raw, offset
    raise BadInput("the member the footer points at is no TOC", why="a corrupt or forged layer")


def open_layer(read_at: ReadAt, size_bytes: int, toc_digest: str | None) -> Layer:
    raw, offset = fetch_toc(read_at, size_bytes, toc_digest)
    return Layer(read_at, size_bytes, toc.parse(raw, offset))


def open_bytes(raw: bytes, toc_digest: str | None) -> Layer:
    """A blob that is in memory."""
    return open_layer(lambda start, size: raw[start : start + size], len(raw), toc_digest)


def verify(chunk: toc.Chunk, member: bytes) -> bytes:
    """The chunk's bytes. Raises BadInput unless they are what the TOC says."""
    data = decompress(member, chunk.size)
    if "sha256:" + hashlib.sha256(data).hexdigest() != chunk.digest:
        raise BadInput(
            f"a chunk is not what its TOC says ({chunk.digest[:19]}…)",
            why="corrupt on the way, or forged; it was not used",
        )
    return data


def read(layer: Layer, name: str, offset: int = 0, size: int = -1) -> bytes:
    """Bytes of a file, through hard links. Raises BadInput for a name that is no file."""
    files = {e.name: e for e in layer.toc.entries}
    entry = files.get(name)
    while entry is not None and entry.kind == "hardlink":
        entry = files.get(entry.link)
    if entry is None or entry.kind != "reg":
        raise BadInput(f"no file {name!r} in this layer")
    end = entry.size if size < 0 else min(entry.size, offset + size)
    parts = []
    for chunk in entry.chunks:
        low, high = max(offset, chunk.file_offset), min(end, chunk.file_offset + chunk.size)
        if low < high:
            data = verify(chunk, layer.read_at(chunk.start, chunk.end - chunk.start))
            parts.append(data[low - chunk.file_offset : high - chunk.file_offset])
    return b"".join(parts)

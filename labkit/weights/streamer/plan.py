"""All reads of a load, planned from the headers before the first one starts.

    files = open_files(source)                      # headers only
    chunks = plan_chunks(files, 4 << 20)            # Chunk(file, offset, length), in file order,
        aligned

Neighbouring tensors are one read: a chunk cares for bytes, not for tensors, because a disk and a
link have a cost a request. Chunks start at multiples of 4 KiB (what O_DIRECT wants); the header's
own page comes along for free. Limit: bytes ÷ bandwidth + requests × latency ÷ requests in flight.
Lesson: notebooks/05_streaming."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

from labkit.errors import BadInput
from labkit.formats.layout import Layout
from labkit.formats.safetensors_header import header_length, parse, read
from labkit.weights.source import CheckpointSource

if TYPE_CHECKING:
    from labkit.net.client import Client

PAGE_BYTES = 4096
#: Of a bucket: a part pays for a round trip. Of a disk a request costs little, and smaller chunks
#: end closer together: 5 % of a load of 2.2 GB.
PART_BYTES, CHUNK_BYTES = 8 << 20, 4 << 20
#: For a GPU: what is done a chunk in Python (a slot, a copy, an event: some 0.1 ms) would hold the
#: others up at the bus's rate.
DEVICE_CHUNK_BYTES = 16 << 20
#: One small request brings a shard's size and, below some 600 tensors, its whole header.
HEAD_BYTES = 64 << 10
#: So many chunks at the end are split: smaller parts would spend more time waiting for a first byte
#: than the even end saves.
TAIL_CHUNKS = 8


class File(NamedTuple):
    """One shard. `stamp`: (size, mtime_ns) of a local file, or the object's ETag: what must not
    change during the load."""

    name: str
    layout: Layout
    stamp: Any = None

    @property
    def size_bytes(self) -> int:
        return self.layout.size_bytes


class Chunk(NamedTuple):
    """`length` bytes of file number `file` from `offset`; the last one of a file ends with it."""

    file: int
    offset: int
    length: int


def stamp_of(fd: int) -> tuple[int, int]:
    about = os.fstat(fd)
    return about.st_size, about.st_mtime_ns


def open_files(source: CheckpointSource, client: Client | None = None) -> list[File]:
    """The headers of all shards; of a bucket by `client`, in parallel. Raises BadInput,
    TransferError."""
    names = source.shards("safetensors")
    if client is not None:
        with ThreadPoolExecutor(min(16, len(names))) as askers:
            return list(askers.map(lambda name: _remote_header(source, name, client), names))
    files = []
    for name in names:
        path = source.path(name)
        try:
            about = path.stat()
            files.append(File(name, read(path), (about.st_size, about.st_mtime_ns)))
        except OSError as error:
            raise BadInput(
                f"{path}: {error.strerror}",
                why="a shard of the index is missing",
                fix="labkit model verify DIR",
            ) from None
    return files


def _remote_header(source: CheckpointSource, name: str, client: Client) -> File:
    from labkit.net.content_range import sent_range
    from labkit.net.parts import Into, RangePart
    from labkit.net.ranges import fetch_parts

    url = source.url(name)
    asked = {"Range": f"bytes=0-{HEAD_BYTES - 1}"}
    answer = client.ask("GET", url, asked, ok=(200, 206), limit_bytes=HEAD_BYTES, whole=False)
    sent = sent_range(answer)
    if answer.status != 206 or sent is None or sent[0] != 0 or sent[2] is None:
        raise BadInput(
            f"{url}: the store has no ranges",
            why="a streamer reads parts",
            fix="--loader labkit.weights.loaders.safe:load downloads first",
        )
    size_bytes, head = sent[2], answer.body
    length = header_length(head[:8], size_bytes)
    if 8 + length > len(head):
        rest = bytearray(8 + length - len(head))
        fetch_parts(client, [RangePart(url, len(head), len(rest))], Into.buffer(rest, -len(head)))
        head += bytes(rest)
    return File(name, parse(head[8 : 8 + length], size_bytes, url), answer.headers.get("etag", ""))


def cut(begin: int, end: int, step: int) -> list[tuple[int, int]]:
    """[begin, end) as (offset, length) of `step` each; the last is what is left."""
    return [(at, min(step, end - at)) for at in range(begin, end, step)]


def plan_chunks(files: Sequence[File], chunk_bytes: int, tail_bytes: int = 0) -> list[Chunk]:
    """Every byte that holds a tensor, once. `tail_bytes`: the last chunks are split to this size,
    so that all connections of a slow link end together."""
    chunks = []
    for number, file in enumerate(files):
        begin = file.layout.header_bytes // PAGE_BYTES * PAGE_BYTES
        chunks += [Chunk(number, *piece) for piece in cut(begin, file.size_bytes, chunk_bytes)]
    if tail_bytes:
        last = chunks[-TAIL_CHUNKS:]
        chunks[-TAIL_CHUNKS:] = [
            Chunk(c.file, *piece)
            for c in last
            for piece in cut(c.offset, c.offset + c.length, tail_bytes)
        ]
    return chunks

"""Tar members in, an eStargz blob out: prioritised files first, a member a chunk, the TOC, the
footer.

    with spool(chunks, out.parent) as layer:
        blob = write(layer, out, prioritised=["usr/bin/python3.11", …], threads=2)
    blob.digest, blob.diff_id, blob.toc_digest, blob.size_bytes

Limit: the codec (100 MB/s a core at level 6); hashing adds 10 %. The same input gives the same
bytes, whatever the number of threads. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.changeset import clean
from labkit.image.estargz import layout
from labkit.image.estargz.codec import LEVEL, compress
from labkit.image.estargz.members import header, toc_entry
from labkit.image.estargz.settle import Settled, settle
from labkit.image.estargz.source import Placed, Spool
from labkit.image.oci import digest_of
from labkit.image.tar_header import BLOCK, FILE, HARDLINK, Member

_BATCH_BYTES = 512 << 10  # one task of the pool: a large chunk, or many small files
_AHEAD = 8


@dataclass(frozen=True)
class Written:
    digest: str
    size_bytes: int
    diff_id: str
    toc_digest: str
    toc_offset: int
    uncompressed_bytes: int
    prefetch_bytes: int  # compressed bytes in front of the landmark
    chunk_count: int
    missing: tuple[str, ...] = ()  # prioritised names that the layer does not hold


def order(
    layer: Settled, prioritised: Iterable[str]
) -> tuple[list[Placed], list[Placed], list[str]]:
    """(first, rest, names not here). A file brings its directories and the target of its hard
    link."""
    first: dict[str, Placed] = {}
    missing = []

    def move(name: str) -> None:
        parent = name.rpartition("/")[0]
        if parent and parent not in first:
            move(parent)
        placed = layer.own.get(name)
        if placed is None or name in first:
            return
        if placed.member.type == HARDLINK:
            move(placed.member.link)
        first[name] = placed

    for raw in prioritised:
        name = clean(raw)
        if name in layer.own:
            move(name)
        elif name:
            missing.append(name)
    rest = [placed for name, placed in layer.own.items() if name not in first]
    if layer.lower_first and first:
        return [*layer.lower, *first.values()], rest, missing
    return list(first.values()), [*layer.lower, *rest], missing


@dataclass(frozen=True)
class _Piece:
    """One gzip member to be: headers (`raw`), or `size` bytes at `offset` of a file in the
    spool."""

    raw: bytes = b""
    placed: Placed | None = None
    offset: int = 0
    size: int = 0
    entry: JsonObject | None = None
    last: bool = False


def _pieces(
    groups: list[tuple[Placed, JsonObject]], chunk_bytes: int, entries: list[JsonObject]
) -> Iterator[_Piece]:
    pending = b""  # padding of the last file and headers that wait for the next payload
    for placed, entry in groups:
        member, size = placed.member, placed.member.size_bytes if placed.member.type == FILE else 0
        pending += header(member, size)
        entries.append(entry)
        if not size:
            if len(pending) > 1 << 20:  # thousands of directories in a row
                yield _Piece(raw=pending)
                pending = b""
            continue
        yield _Piece(raw=pending)
        for at in range(0, size, chunk_bytes):
            step = min(chunk_bytes, size - at)
            if at:
                entry = {"name": entry["name"], "type": "chunk", "chunkOffset": at, "NumLink": 0}
                entries.append(entry)
            last = at + step == size
            if not last:
                entry["chunkSize"] = step
            yield _Piece(placed=placed, offset=at, size=step, entry=entry, last=last)
        pending = bytes(-size % BLOCK)
    if pending:
        yield _Piece(raw=pending)


def _batches(pieces: Iterable[_Piece]) -> Iterator[list[_Piece]]:
    batch: list[_Piece] = []
    held = 0
    for piece in pieces:
        batch.append(piece)
        held += piece.size + len(piece.raw)
        if held >= _BATCH_BYTES:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


class _Output:
    """The blob so far: members go to the file, they and what they hold into the digests."""

    def __init__(self, file: IO[bytes]):
        self.file, self.blob, self.plain = file, hashlib.sha256(), hashlib.sha256()
        self.size_bytes = self.plain_bytes = 0

    def append(self, plain: bytes, member: bytes | bytearray) -> None:
        self.plain.update(plain)
        self.blob.update(member)
        self.file.write(member)
        self.size_bytes += len(member)
        self.plain_bytes += len(plain)


def write(
    layer: Spool,
    path: str | Path,
    *,
    prioritised: Iterable[str] = (),
    chunk_bytes: int = layout.CHUNK_BYTES,
    level: int = LEVEL,
    threads: int | None = None,
) -> Written:
    """Write the blob to `path`. Raises BadInput for names that leave the root or a truncated
    spool."""
    first, rest, missing = order(settle(layer.members), prioritised)
    landmark = Member(
        name=layout.PREFETCH if first else layout.NO_PREFETCH, type=FILE, mode=0o644, size_bytes=1
    )
    mark = Placed(landmark, -1)  # its one byte is not in the spool
    groups = [(p, toc_entry(p.member)) for p in (*first, mark, *rest)]
    entries: list[JsonObject] = []
    threads = threads or os.cpu_count() or 1

    def pack(batch: list[_Piece]) -> list[tuple[bytes, bytes | bytearray, str]]:
        packed = []
        for piece in batch:
            if piece.placed is None:
                packed.append((piece.raw, compress(piece.raw, level), ""))
                continue
            data = (
                layout.LANDMARK_BYTE
                if piece.placed is mark
                else layer.read(piece.placed, piece.offset, piece.size)
            )
            if len(data) != piece.size:
                raise BadInput(
                    "the spooled layer ended early", why="the disk is full, or the spool was cut"
                )
            packed.append((data, compress(data, level), digest_of(data)))
        return packed

    chunks = prefetch_end = 0
    whole: hashlib._Hash | None = None
    head: JsonObject = {}
    with open(path, "wb") as file, ThreadPoolExecutor(threads) as pool:
        out = _Output(file)
        waiting: deque[tuple[list[_Piece], Future[list[tuple[bytes, bytes | bytearray, str]]]]]
        waiting = deque()
        source = _batches(_pieces(groups, chunk_bytes, entries))
        while True:
            while len(waiting) < threads + _AHEAD and (batch := next(source, None)) is not None:
                waiting.append((batch, pool.submit(pack, batch)))
            if not waiting:
                break
            batch, future = waiting.popleft()
            for piece, (data, member, digest) in zip(batch, future.result(), strict=True):
                if piece.entry is not None:
                    chunks += 1
                    piece.entry.update(offset=out.size_bytes, chunkDigest=digest)
                    if piece.entry["type"] == "reg":
                        head = piece.entry
                        whole = None if piece.last else hashlib.sha256()
                        if piece.last:
                            head["digest"] = digest
                        if head["name"] == layout.PREFETCH:
                            prefetch_end = out.size_bytes
                    if whole is not None:
                        whole.update(data)
                        if piece.last:
                            head["digest"] = "sha256:" + whole.hexdigest()
                out.append(data, member)
        toc_offset = out.size_bytes
        raw = json.dumps({"version": 1, "entries": entries}, separators=(",", ":")).encode()
        toc = Member(name=layout.TOC_NAME, type=FILE, mode=0o444)
        tail = header(toc, len(raw)) + raw + bytes(-len(raw) % BLOCK) + bytes(2 * BLOCK)
        out.append(tail, compress(tail, level))
        out.append(b"", layout.pack_footer(toc_offset))
    return Written(
        "sha256:" + out.blob.hexdigest(),
        out.size_bytes,
        "sha256:" + out.plain.hexdigest(),
        digest_of(raw),
        toc_offset,
        out.plain_bytes,
        prefetch_end,
        chunks,
        tuple(missing),
    )

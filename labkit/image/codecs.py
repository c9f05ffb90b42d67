"""Codecs of image layers: gzip, zstd and none, as streams of chunks, with the stock library and
with the fast one.

gunzip is one thread: 200–350 MB/s of output with zlib, 2–3 × that with ISA-L's igzip, and a disk
that writes faster than that makes decompression the limit of a pull. Output chunks are bounded (1
MiB) however much the input expands.

    for chunk in decompress(file_chunks(path), fast=True): …

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import hashlib
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain

from labkit.errors import BadInput

IN_BYTES = 1 << 18
OUT_BYTES = 1 << 20
#: Of a gzip member: no name, no time, "unknown" system, as Go's and pigz's reproducible output, so
#: that nothing of the building host leaks.
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
_TAR = re.compile(r"\.tar(?:[+.](gzip|zstd))?\Z")


def codec_of(media_type: str) -> str:
    """`gzip`, `zstd` or `none`, as an OCI or Docker layer media type has it. Raises BadInput for
    what is no tar."""
    if known := _TAR.search(media_type):
        return known[1] or "none"
    raise BadInput(
        f"layer of unknown media type {media_type!r}",
        why="only tar, tar+gzip and tar+zstd layers can be unpacked",
    )


def file_chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(IN_BYTES):
            yield chunk


def decompress(
    chunks: Iterable[bytes], *, fast: bool = False, name: str = "layer"
) -> Iterator[bytes]:
    """Bounded chunks of the plain stream. `fast`: ISA-L in place of zlib (zstd has one library).
    Raises BadInput, which calls the layer by its `name`.

    The first bytes say what it is, as for containerd and containers/storage: builders label gzip as
    tar and zstd as gzip. A blob of no bytes is an empty layer there, too."""
    packed, head = iter(chunks), b""
    while len(head) < 4 and (chunk := next(packed, b"")):
        head += chunk
    whole = chain((head,), packed) if head else iter(())
    if head.startswith(b"\x1f\x8b\x08"):
        if fast:
            from isal import isal_zlib

            # the stubs: a decompressor of its own, and the class `error` as an instance
            yield from _gunzip(whole, name, isal_zlib.decompressobj, isal_zlib.error)  # type: ignore[arg-type]
        else:
            yield from _gunzip(whole, name, zlib.decompressobj, zlib.error)
    elif head.startswith(b"\x28\xb5\x2f\xfd") or (
        head[1:4] == b"\x2a\x4d\x18" and head[0] & 0xF0 == 0x50
    ):
        yield from _unzstd(whole, name)
    else:
        yield from whole


def _gunzip(
    chunks: Iterable[bytes],
    name: str,
    make: Callable[..., zlib._Decompress],
    error: type[Exception],
) -> Iterator[bytes]:
    """All members of a gzip stream: eStargz and parallel compressors write many. Zeros behind the
    last one are padding, as for gzip itself and libarchive; anything else there is refused."""
    engine = make(wbits=31)
    between = False  # two members
    try:
        for chunk in chunks:
            while chunk:
                if engine.eof:
                    engine, between = make(wbits=31), True
                if between and not (chunk := chunk.lstrip(b"\0")):
                    break
                between = False
                out = engine.decompress(chunk, OUT_BYTES)
                if out:
                    yield out
                chunk = engine.unused_data if engine.eof else engine.unconsumed_tail
                if not chunk and not engine.eof and len(out) == OUT_BYTES:
                    # Output was cut at the bound and the rest sits inside the engine.
                    while len(out := engine.decompress(b"", OUT_BYTES)):
                        yield out
                    chunk = engine.unused_data if engine.eof else b""
    except error as bad:
        raise BadInput(
            f"{name} is not sound gzip: {bad}",
            why="a corrupt or forged layer; nothing of it was kept",
        ) from None
    if not engine.eof and not between:
        raise _cut(name, "gzip")


def _cut(name: str, codec: str) -> BadInput:
    return BadInput(
        f"{name}: its {codec} stream ends too early",
        why="a truncated layer; nothing of it was kept",
    )


def _unzstd(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """All frames of a zstd stream, skippable ones among them.

    zstandard's reader takes the end of its input in mid-frame for the end of the stream. So one
    more frame is fed behind the last byte: it comes out whole only where the one before it was."""
    import zstandard

    class ChunkFile:
        """The chunks, and the last frame, as the file that zstandard reads from."""

        rest = b""
        ended = False

        def read(self, size: int = -1) -> bytes:
            if not self.rest and not self.ended:
                self.rest = next(packed, b"")
                self.ended = not self.rest
            if not self.rest:
                self.rest = next(last, b"")
            piece, self.rest = self.rest[:size], self.rest[size:]
            return piece

    mark = b"labkit: the end of a zstd stream"
    # with its checksum, so that a cut frame that swallows it does not end in the mark
    frame = zstandard.ZstdCompressor(write_checksum=True).compress(mark)
    # in two pieces: libzstd decodes a frame that it sees whole at once, even behind a cut header
    last = iter((frame[:-1], frame[-1:]))
    packed, file, tail = iter(chunks), ChunkFile(), b""
    try:
        # 128 MiB: the window that decoders must accept for zstd layers is 8 MiB; --long=27 is the
        # largest in use.
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            file,  # type: ignore[arg-type]  # only read() is called
            read_across_frames=True,
        ) as reader:
            while out := reader.read(OUT_BYTES):
                if not file.ended:
                    yield out
                    continue
                tail += out
                if len(tail) > OUT_BYTES:
                    yield tail[: -len(mark)]
                    tail = tail[-len(mark) :]
    except zstandard.ZstdError as bad:
        if file.ended:
            raise _cut(name, "zstd") from None
        raise BadInput(
            f"{name} is not sound zstd: {bad}",
            why="a corrupt or forged layer; nothing of it was kept",
        ) from None
    if not tail.endswith(mark):
        raise _cut(name, "zstd")
    if plain := tail[: -len(mark)]:
        yield plain


class Hashed:
    """Chunks passed through with their sha256 and count: `digest` is valid once the stream was read
    to its end."""

    def __init__(self, chunks: Iterable[bytes]):
        self._chunks, self._sha, self.size_bytes = chunks, hashlib.sha256(), 0

    def __iter__(self) -> Iterator[bytes]:
        for chunk in self._chunks:
            self._sha.update(chunk)
            self.size_bytes += len(chunk)
            yield chunk

    @property
    def digest(self) -> str:
        return "sha256:" + self._sha.hexdigest()


def verified(
    chunks: Iterable[bytes], digest: str, wrong: Callable[[str], Exception]
) -> Iterator[bytes]:
    """Pass chunks on; after the last one, raise `wrong(their digest)` unless it is `digest`."""
    hashed = Hashed(chunks)
    yield from hashed
    if hashed.digest != digest:
        raise wrong(hashed.digest)

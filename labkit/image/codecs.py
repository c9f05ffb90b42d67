"""Codecs of image layers: gzip, zstd and none, as streams of chunks, with the stock library and
with the fast one.

gunzip is one thread: 200–350 MB/s of output with zlib, 2–3 × that with ISA-L's igzip, and a disk
that writes faster than that makes decompression the limit of a pull. Output chunks are bounded (1
MiB) however much the input expands.

    for chunk in decompress(file_chunks(path), codec_of(descriptor.media_type), fast=True): …

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator

from labkit.errors import BadInput

IN_BYTES = 1 << 18
OUT_BYTES = 1 << 20
#: Of a gzip member: no name, no time, "unknown" system, as Go's and pigz's reproducible output, so
#: that nothing of the building host leaks.
GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"


def codec_of(media_type: str) -> str:
    """`gzip`, `zstd` or `none`, from an OCI or Docker layer media type."""
    if media_type.endswith((".tar+gzip", ".tar.gzip")):
        return "gzip"
    if media_type.endswith(".tar+zstd"):
        return "zstd"
    if media_type.endswith(".tar"):
        return "none"
    raise BadInput(
        f"layer of unknown media type {media_type!r}",
        why="only tar, tar+gzip and tar+zstd layers can be unpacked",
    )


def file_chunks(path: str | os.PathLike[str]) -> Iterator[bytes]:
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(IN_BYTES):
            yield chunk


def decompress(chunks: Iterable[bytes], codec: str, *, fast: bool = False) -> Iterator[bytes]:
    """Bounded chunks of the plain stream. `fast`: ISA-L in place of zlib (zstd has one library).
    Raises BadInput."""
    if codec == "none":
        return iter(chunks)
    if codec == "gzip":
        if fast:
            from isal import isal_zlib

            # the stubs: a decompressor of its own, and the class `error` as an instance
            return _gunzip(chunks, isal_zlib.decompressobj, isal_zlib.error)  # type: ignore[arg-type]
        return _gunzip(chunks, zlib.decompressobj, zlib.error)
    if codec == "zstd":
        return _unzstd(chunks)
    raise BadInput(f"no codec called {codec!r}", fix="gzip, zstd or none")


def _gunzip(
    chunks: Iterable[bytes], make: Callable[..., zlib._Decompress], error: type[Exception]
) -> Iterator[bytes]:
    """All members of a gzip stream: eStargz and parallel compressors write many."""
    engine, started = make(wbits=31), False
    try:
        for chunk in chunks:
            while chunk:
                if engine.eof:
                    engine, started = make(wbits=31), False
                out = engine.decompress(chunk, OUT_BYTES)
                started = True
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
            f"layer is not sound gzip: {bad}",
            why="a corrupt or forged layer; nothing of it was kept",
        ) from None
    if started and not engine.eof:
        raise BadInput(
            "layer's gzip stream ends too early", why="a truncated layer; nothing of it was kept"
        )


def _unzstd(chunks: Iterable[bytes]) -> Iterator[bytes]:
    import zstandard

    class ChunkFile:
        """The chunks as the file that zstandard reads from."""

        rest = b""

        def read(self, size: int = -1) -> bytes:
            if not self.rest:
                self.rest = next(packed, b"")
            piece, self.rest = self.rest[:size], self.rest[size:]
            return piece

    packed = iter(chunks)
    try:
        # 128 MiB: the window that decoders must accept for zstd layers is 8 MiB; --long=27 is the
        # largest in use.
        with zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(
            ChunkFile(),  # type: ignore[arg-type]  # only read() is called
            read_across_frames=True,
        ) as reader:
            while out := reader.read(OUT_BYTES):
                yield out
    except zstandard.ZstdError as bad:
        raise BadInput(
            f"layer is not sound zstd: {bad}",
            why="a corrupt or forged layer; nothing of it was kept",
        ) from None


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

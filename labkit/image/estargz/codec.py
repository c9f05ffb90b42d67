"""One gzip member in, one out: libdeflate where the wheel `deflate` is installed, zlib where not.

Members here are at most one chunk, so a whole-buffer codec fits, and it is the limit of both
conversion and mount. Measured on libtorch and torch's Python files, one thread: libdeflate level 6
writes 102 MB/s at 1.004 × zlib level 9's size (zlib 9: 11.5 MB/s, zlib 6: 34, ISA-L 3: 253 at 1.13
×) and reads 1180 MB/s (zlib 445, ISA-L 661).

    compress(data) ; decompress(member, size_bytes=len(data)) == data

Output is bounded by `size_bytes`, whatever the member holds or claims. Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

import zlib

from labkit.errors import BadInput
from labkit.image.codecs import GZIP_HEADER

_BAD: tuple[type[Exception], ...] = (ValueError, zlib.error)
try:
    import deflate

    _BAD += (deflate.DeflateError,)
    _LIBDEFLATE = True
except ImportError:
    # the wheel is missing on rare platforms; sizes and digests of what is written differ then
    _LIBDEFLATE = False

LEVEL = 6
_HEADERS_BYTES = 8192


def compress(data: bytes, level: int = LEVEL) -> bytes | bytearray:
    """One gzip member without name or time."""
    if _LIBDEFLATE:
        return deflate.gzip_compress(data, level)
    engine = zlib.compressobj(min(level, 9), zlib.DEFLATED, -15, 9)
    body = engine.compress(data) + engine.flush()
    return (
        GZIP_HEADER
        + body
        + zlib.crc32(data).to_bytes(4, "little")
        + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    )


def decompress(member: bytes, size_bytes: int) -> bytes:
    """The first `size_bytes` of the first member; there may be more in it, and more behind it.

    The reference writer puts a file's padding and the next file's tar header into the member of its
    last chunk."""
    if size_bytes <= 0:
        raise BadInput(f"a chunk of {size_bytes} bytes", why="corrupt or forged")
    try:
        data = _whole(member, size_bytes)
        if data is None:
            data = zlib.decompressobj(31).decompress(member, size_bytes)
    except _BAD as bad:
        raise BadInput(
            f"a chunk is not a gzip member of {size_bytes} bytes: {bad}",
            why="corrupt on the way, or forged",
        ) from None
    if len(data) < size_bytes:
        raise BadInput(
            f"a chunk holds {len(data)} bytes, its TOC says {size_bytes}",
            why="corrupt on the way, or forged",
        )
    return data if len(data) == size_bytes else data[:size_bytes]


def _whole(member: bytes, size_bytes: int) -> bytes | None:
    """By libdeflate, which only knows whole members: None for one that holds more than the chunk
    and some headers."""
    if not _LIBDEFLATE:
        return None
    try:
        return bytes(deflate.gzip_decompress(member, size_bytes + _HEADERS_BYTES))
    except deflate.DeflateError:
        return None


def decompress_bounded(member: bytes, limit_bytes: int) -> bytes:
    """A member of unknown size, at most `limit_bytes` of it."""
    engine = zlib.decompressobj(31)
    try:
        data = engine.decompress(member, limit_bytes)
    except zlib.error as bad:
        raise BadInput(f"not a gzip member: {bad}", why="corrupt on the way, or forged") from None
    if not engine.eof:
        raise BadInput(
            f"a gzip member that is cut off or holds more than {limit_bytes} bytes",
            why="a truncated layer, or one made to fill this machine's memory",
        )
    return data

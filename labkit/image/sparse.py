"""GNU tar's sparse files: which bytes of a file the archive holds, in each of the four ways to say
so.

    member          map                                                         size
    type "S"        in its header, and blocks behind it                         in its header
    PAX 0.0, 0.1    records GNU.sparse.offset and .numbytes, or GNU.sparse.map  GNU.sparse.size
    PAX 1.0         decimal lines in front of the stored bytes                  GNU.sparse.realsize

    extents([0, 4, 1 << 20, 4], real_size=(1 << 20) + 4, stored_bytes=8)
    # (Extent(0, 4, stored_at=0), Extent(1 << 20, 4, stored_at=4))

A map is hostile input: it has to be in order, inside of the file, and of as many bytes as are
stored; one of more than 1 MiB is refused. Source: GNU tar's manual, "Storing Sparse Files". Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Extent(NamedTuple):
    """Bytes of a file that are stored, and where among the stored ones they start."""

    offset: int
    size: int
    stored_at: int


Extents = tuple[Extent, ...]
MAP = "GNU.sparse.map"
PAIRS = frozenset(("GNU.sparse.offset", "GNU.sparse.numbytes"))
_MAP_LIMIT_BYTES = 1 << 20
_ZEROS = memoryview(bytes(1 << 18))


def is_pax(pax: dict[str, bytes]) -> bool:
    """Whether PAX records make a member sparse. Raises ValueError for a version nobody knows."""
    version = (pax.get("GNU.sparse.major", b""), pax.get("GNU.sparse.minor", b""))
    if version not in ((b"", b""), (b"0", b"0"), (b"0", b"1"), (b"1", b"0")):
        raise ValueError(f"a sparse format of version {version[0][:8]!r}.{version[1][:8]!r}")
    return version != (b"", b"") or MAP in pax


def old_gnu(head: bytes, next_block: Callable[[], bytes]) -> tuple[list[bytes], bytes]:
    """Number fields of the map and of the real size, from the header and the blocks behind it."""
    fields = [head[at : at + 12] for at in range(386, 482, 12)]
    more = head[482]
    while more:
        block = next_block()
        if len(block) < 512 or 12 * len(fields) > _MAP_LIMIT_BYTES:
            raise ValueError("a sparse map that is cut off or too long")
        fields += [block[at : at + 12] for at in range(0, 504, 12)]
        more = block[504]
    pairs = list(zip(fields[::2], fields[1::2], strict=True))
    kept = [pair for pair in pairs if pair[0].strip(b" \0") or pair[1].strip(b" \0")]
    return [field for pair in kept for field in pair], head[483:495]


def pax_numbers(pax: dict[str, bytes], next_block: Callable[[], bytes]) -> list[int]:
    """The map's numbers, offset and size in turns. `next_block`: the member's bytes (version 1.0
    starts with the map)."""
    if pax.get("GNU.sparse.major") != b"1":
        text = pax.get(MAP, b"")
        return [_number(one) for one in text.split(b",")] if text else []
    lines: list[bytes] = []
    wanted, rest, read_bytes = 1, b"", 0
    while len(lines) < wanted:
        rest += next_block()
        read_bytes += 512
        if read_bytes > _MAP_LIMIT_BYTES:
            raise ValueError("a sparse map that is too long")
        *whole, rest = rest.split(b"\n")
        lines += whole
        if lines:
            wanted = 1 + 2 * _number(lines[0])
    return [_number(line) for line in lines[1:wanted]]


def _number(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19:
        raise ValueError(f"a sparse map with {text[:20]!r} in it")
    return int(text)


def extents(numbers: list[int], real_size: int, stored_bytes: int) -> Extents:
    """Checked extents. Raises ValueError."""
    pieces: list[Extent] = []
    end = stored = 0
    for offset, size in zip(numbers[::2], numbers[1::2], strict=False):
        if not end <= offset <= offset + size <= real_size:
            raise ValueError("a sparse map out of order or beyond the file's end")
        pieces.append(Extent(offset, size, stored))
        end, stored = offset + size, stored + size
    if len(numbers) % 2 or stored != stored_bytes:
        raise ValueError("a sparse map that is not of the bytes stored")
    return tuple(pieces)


def expanded(
    pieces: Extents, real_size: int, stored: Callable[[int], Iterator[memoryview]]
) -> Iterator[memoryview]:
    """The file's bytes in order; `stored(n)` yields the archive's next n."""
    at = 0
    for offset, size, _ in pieces:
        yield from _zeros(offset - at)
        yield from stored(size)
        at = offset + size
    yield from _zeros(real_size - at)


def _zeros(size: int) -> Iterator[memoryview]:
    while size > 0:
        yield _ZEROS[:size]
        size -= len(_ZEROS)


def read(
    pieces: Extents, offset: int, size: int, read_stored: Callable[[int, int], bytes]
) -> bytes:
    """[offset, offset + size) of the file; `read_stored(at, n)` reads n of the stored bytes."""
    data = bytearray(size)
    first = bisect_right(pieces, offset, key=lambda piece: piece.offset) - 1
    for piece in pieces[max(0, first) :]:
        low, high = max(piece.offset, offset), min(piece.offset + piece.size, offset + size)
        if piece.offset >= offset + size:
            break
        if low < high:
            stored = read_stored(piece.stored_at + low - piece.offset, high - low)
            data[low - offset : high - offset] = stored
    return bytes(data)

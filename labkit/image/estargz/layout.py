"""The shape of an eStargz blob: gzip members, then the TOC's member, then a footer of 51 bytes that
says where the TOC starts.

    | headers | chunk | chunk | headers | chunk | … | stargz.index.json | footer |
    unpack_footer(pack_footer(353_000_000)) == 353_000_000

What it costs: one member per chunk restarts the dictionary and adds 18 bytes and a tar header, 1–2
% of a layer of Python files. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import struct

from labkit.errors import BadInput

TOC_NAME = "stargz.index.json"
PREFETCH, NO_PREFETCH = ".prefetch.landmark", ".no.prefetch.landmark"
LANDMARK_BYTE = b"\x0f"
OWN_NAMES = frozenset((TOC_NAME, PREFETCH, NO_PREFETCH))

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
#: Ours: blob ranges that a recorded start touched ("0-81919,409600-…"); others skip it and use the
#: landmark.
TOUCHED_RANGES = "org.coldstartlab.estargz.touched-ranges"

CHUNK_BYTES = 4 << 20  # the reference converter's; `convert` takes another one
FOOTER_BYTES = 51
_HEAD = struct.Struct("<2sBBIBB")  # magic, method, flags, mtime, extra flags, os
# a final stored block of nothing, CRC 0, length 0
_EMPTY_BLOCK = b"\x01\x00\x00\xff\xff" + bytes(8)


def pack_footer(toc_offset: int) -> bytes:
    extra = b"SG" + struct.pack("<H", 22) + b"%016xSTARGZ" % toc_offset
    return (
        _HEAD.pack(b"\x1f\x8b", 8, 4, 0, 0, 255)
        + struct.pack("<H", len(extra))
        + extra
        + _EMPTY_BLOCK
    )


def unpack_footer(raw: bytes) -> int:
    """Offset of the TOC's gzip member. Raises BadInput for anything that is not exactly a
    footer."""
    if (
        len(raw) != FOOTER_BYTES
        or raw[:4] != b"\x1f\x8b\x08\x04"
        or raw[10:16] != b"\x1a\0SG\x16\0"
        or raw[32:38] != b"STARGZ"
    ):
        raise BadInput(
            "the layer does not end in an eStargz footer",
            why="it has no table of contents, so it cannot be read lazily",
            fix="labkit image convert LAYOUT OUT makes an eStargz image of it",
        )
    try:
        text = raw[16:32].decode("ascii")
        if text.strip("0123456789abcdefABCDEF"):
            raise ValueError(text)
        return int(text, 16)
    except ValueError:
        raise BadInput(
            "the eStargz footer names no offset", why="a corrupt or forged layer"
        ) from None


def format_ranges(ranges: list[tuple[int, int]]) -> str:
    """[(0, 10), (20, 30)] (ends exclusive) -> "0-10,20-30"."""
    return ",".join(f"{a}-{b}" for a, b in ranges)


def parse_ranges(text: str, limit: int) -> list[tuple[int, int]]:
    """Sorted, not overlapping, within [0, limit). Raises BadInput."""
    ranges: list[tuple[int, int]] = []
    try:
        for one in text.split(",") if text else ():
            start, end = (int(x) for x in one.split("-"))
            if not (ranges[-1][1] if ranges else 0) <= start < end <= limit:
                raise ValueError(one)
            ranges.append((start, end))
    except ValueError:
        raise BadInput(
            "the layer's touched ranges are not sorted ranges of it",
            why="a forged or outdated annotation",
            fix="convert the image again, or drop the annotation " + TOUCHED_RANGES,
        ) from None
    return ranges

"""Where the members of a zip lie, by its central directory, which is hostile input.

    members(file, size_bytes)["archive/data/0"]    # (data offset, stored bytes, compression method)

By hand, because a listing must see what PyTorch's own reader sees: that takes the directory to be
where its record says, while `zipfile` moves it to just before the record, and a file can hold one
at each place. `zipfile` also reads a directory of any length before a caller can count its
members. Limits: 64 MiB and 200 000 members. Source: APPNOTE.TXT 6.3. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import struct
from typing import BinaryIO

from labkit.errors import BadInput

MAX_DIRECTORY_BYTES = 64 << 20
MAX_MEMBERS = 200_000


def members(file: BinaryIO, size_bytes: int) -> dict[str, tuple[int, int, int]]:
    """Zip directory: name -> (data offset, stored bytes, compression method). Raises BadInput."""
    tail_at = max(0, size_bytes - 65_557)
    file.seek(tail_at)
    tail = file.read(65_557)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or len(tail) - end < 22:
        raise BadInput(
            "the zip has no directory",
            why="a truncated checkpoint; nothing was loaded",
            fix="fetch the file again",
        )
    count, length, at = struct.unpack("<HII", tail[end + 10 : end + 20])
    if 0xFFFF in (count,) or 0xFFFFFFFF in (length, at):
        locator = tail.rfind(b"PK\x06\x07", 0, end)
        if locator < 0:
            raise BadInput("a zip64 without its locator")
        position = struct.unpack("<Q", tail[locator + 8 : locator + 16])[0]
        if position > size_bytes - 56:
            raise BadInput("the zip64 directory lies past the end")
        file.seek(position)
        record = file.read(56)
        if record[:4] != b"PK\x06\x06":
            raise BadInput("a zip64 without its record")
        count, length, at = struct.unpack("<QQQ", record[32:56])
    if at + length > size_bytes or length > MAX_DIRECTORY_BYTES or count > MAX_MEMBERS:
        raise BadInput(
            f"a zip directory of {count} members and {length} bytes at {at}",
            why="it does not fit the file, or no checkpoint is like it",
        )
    file.seek(at)
    return _directory(file, file.read(length), count, size_bytes)


def _directory(
    file: BinaryIO, raw: bytes, count: int, size_bytes: int
) -> dict[str, tuple[int, int, int]]:
    found: dict[str, tuple[int, int, int]] = {}
    at = 0
    for _ in range(count):
        if raw[at : at + 4] != b"PK\x01\x02" or len(raw) - at < 46:
            raise BadInput(
                "the zip directory is broken", why="truncated or forged; nothing was loaded"
            )
        method, stored, size = struct.unpack("<H8xII", raw[at + 10 : at + 28])
        name_length, extra_length, comment_length = struct.unpack("<HHH", raw[at + 28 : at + 34])
        local = struct.unpack("<I", raw[at + 42 : at + 46])[0]
        name = raw[at + 46 : at + 46 + name_length].decode("utf-8", "replace")
        extra = raw[at + 46 + name_length : at + 46 + name_length + extra_length]
        stored, local = _wide(extra, stored, size, local)
        at += 46 + name_length + extra_length + comment_length
        file.seek(min(local, size_bytes))
        head = file.read(30)
        if head[:4] != b"PK\x03\x04":
            raise BadInput(f"the zip member {name[:80]} is not where the directory says")
        begin = local + 30 + sum(struct.unpack("<HH", head[26:30]))
        if begin + stored > size_bytes or name in found:
            raise BadInput(f"the zip member {name[:80]} lies past the end, or occurs twice")
        found[name] = (begin, stored, method)
    return found


def _wide(extra: bytes, stored: int, size: int, local: int) -> tuple[int, int]:
    """The zip64 extra field: 64-bit values for those that say 0xFFFFFFFF, in the order size,
    stored, offset."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack("<HH", extra[at : at + 4])
        if tag == 1:
            values = list(
                struct.unpack(
                    f"<{length // 8}Q",
                    extra[at + 4 : at + 4 + length // 8 * 8].ljust(length // 8 * 8, b"\0"),
                )
            )
            if size == 0xFFFFFFFF and values:
                values.pop(0)
            if stored == 0xFFFFFFFF and values:
                stored = values.pop(0)
            if local == 0xFFFFFFFF and values:
                local = values.pop(0)
        at += 4 + length
    return stored, local

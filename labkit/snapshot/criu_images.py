"""CRIU's image files, read and edited: what is in a snapshot, and moving it to another port or
path.

Such a file is a magic number (for most kinds preceded by a common one) and then entries: a 32-bit
length and a protobuf message. Two things are done with that here, with 60 lines of protobuf instead
of a dependency:

  * what takes the bytes – anonymous memory by mapping, changed pages of libraries – so that a
    reader sees why a CRIU image is as large as it is (its floor is bytes ÷ read rate);
  * a restored server listens where the trial wants it and maps the model where this node has it,
    although both were other at the dump: the port is a field of its listening socket, the path a
    field of its open file.

    contents(Path("snap/images"))["anonymous"]           # bytes
    move(images, port=8000, paths={"/old/model": "/new/model"})

These files may come from elsewhere, so lengths are checked against the file. Limit: bytes ÷ read
rate. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from labkit.errors import BadInput

PAGE = 4096
#: First words of CRIU's image files: the common one is followed by the kind's own, the inventory
#: has only its own.
IMG_COMMON, IMG_SERVICE = 0x54564319, 0x55105940

#: (field number, wire type, value): value is an int (wire 0) or bytes.
Field = tuple[int, int, "int | bytes"]

# Field numbers of CRIU's .proto files (stable: CRIU reads those of older versions).
ENTRY_REG, ENTRY_INET = 3, 4  # file_entry: reg_file_entry, inet_sk_entry
REG_ID, REG_NAME, REG_MODE = 1, 6, 10
INET_STATE, INET_SRC_PORT = 6, 7
TCP_LISTEN = 10
MM_VMAS = 14
VMA_START, VMA_END, VMA_FILE, VMA_FLAGS, VMA_STATUS = 1, 2, 4, 6, 7
MAP_ANONYMOUS, STATUS_HEAP = 0x20, 1 << 3
PAGEMAP_ADDRESS, PAGEMAP_PAGES_32, PAGEMAP_FLAGS, PAGEMAP_PAGES = 1, 2, 4, 5
PAGEMAP_PRESENT = 1 << 2


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise BadInput(
                "a truncated number in a CRIU image file",
                fix="labkit snapshot dump makes a new snapshot",
            )
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _varint_bytes(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def decode(message: bytes) -> list[Field]:
    """A protobuf message as its fields, in order. Raises BadInput for anything that runs over its
    end."""
    fields: list[Field] = []
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(message, at)
            fields.append((number, wire, value))
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise BadInput(
                f"wire type {wire} in a CRIU image file",
                fix="labkit snapshot dump makes a new snapshot",
            )
        if size > len(message) - at:
            raise BadInput(
                "a field of a CRIU image file runs over its end",
                fix="labkit snapshot dump makes a new snapshot",
            )
        fields.append((number, wire, message[at : at + size]))
        at += size
    return fields


def encode(fields: list[Field]) -> bytes:
    """The reverse of `decode`, byte for byte for what CRIU writes."""
    out = bytearray()
    for number, wire, value in fields:
        out += _varint_bytes(number << 3 | wire)
        if isinstance(value, int):
            out += _varint_bytes(value)
        else:
            out += (_varint_bytes(len(value)) if wire == 2 else b"") + value
    return bytes(out)


def _split(data: bytes, name: str) -> tuple[bytes, list[bytes]]:
    """Magic and entries of a CRIU image file."""
    if len(data) < 4:
        raise BadInput(
            f"{name}: not a CRIU image file ({len(data)} bytes)",
            fix="labkit snapshot dump makes a new snapshot",
        )
    at = 8 if struct.unpack_from("<I", data)[0] in (IMG_COMMON, IMG_SERVICE) else 4
    head, entries = data[:at], []
    while at < len(data):
        if (
            at + 4 > len(data)
            or (size := struct.unpack_from("<I", data, at)[0]) > len(data) - at - 4
        ):
            raise BadInput(
                f"{name}: an entry runs over the end of the file",
                why="a truncated or damaged snapshot",
                fix="labkit snapshot dump makes a new one",
            )
        entries.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return head, entries


def entries(path: Path) -> Iterator[list[Field]]:
    for entry in _split(path.read_bytes(), path.name)[1]:
        yield decode(entry)


def get(fields: list[Field], number: int, default: int | bytes = 0) -> int | bytes:
    return next((v for n, _, v in fields if n == number), default)


def rewrite(path: Path, edit: Callable[[list[Field]], list[Field]]) -> None:
    """Edit every entry; the file is replaced, not written in place (other snapshots may be hard
    links to it)."""
    head, found = _split(path.read_bytes(), path.name)
    edited = bytearray(head)
    for entry in found:
        new = encode(edit(decode(entry)))
        edited += struct.pack("<I", len(new)) + new
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "wb") as out:
        out.write(edited)
    os.replace(temporary, path)


def listening_ports(directory: Path) -> list[int]:
    found = []
    for entry in entries(directory / "files.img"):
        socket = get(entry, ENTRY_INET, b"")
        if socket:
            inner = decode(bytes(socket))
            if get(inner, INET_STATE) == TCP_LISTEN:
                found.append(int(get(inner, INET_SRC_PORT)))
    return found


def mapped_files(directory: Path) -> dict[int, str]:
    """Every regular file the snapshot refers to: id -> path."""
    found = {}
    for entry in entries(directory / "files.img"):
        inner = decode(bytes(get(entry, ENTRY_REG, b"")))
        if inner:
            found[int(get(inner, REG_ID))] = bytes(get(inner, REG_NAME, b"")).decode(
                errors="replace"
            )
    return found


def file_modes(directory: Path) -> dict[str, int]:
    """Permission bits of each regular file at the dump: path -> mode. CRIU restores onto no file
    whose mode differs."""
    found = {}
    for entry in entries(directory / "files.img"):
        inner = decode(bytes(get(entry, ENTRY_REG, b"")))
        if mode := int(get(inner, REG_MODE)):
            found[bytes(get(inner, REG_NAME, b"")).decode(errors="replace")] = mode & 0o777
    return found


def move(
    directory: Path, *, port: int | None = None, paths: Mapping[str, str] | None = None
) -> dict[str, int]:
    """Give the snapshot in `directory` another listening port and other paths. Counts of what was
    changed.

    `paths`: file or directory -> its new place; the longest match wins. `files.img` is replaced."""
    changed = {"ports": 0, "paths": 0}
    renames = sorted((paths or {}).items(), key=lambda pair: -len(pair[0]))

    def inet(fields: list[Field]) -> list[Field]:
        if port is None or get(fields, INET_STATE) != TCP_LISTEN:
            return fields
        changed["ports"] += 1
        return [(n, w, port if n == INET_SRC_PORT else v) for n, w, v in fields]

    def regular(fields: list[Field]) -> list[Field]:
        name = bytes(get(fields, REG_NAME, b"")).decode(errors="surrogateescape")
        for old, new in renames:
            if name == old or name.startswith(old.rstrip("/") + "/"):
                changed["paths"] += 1
                moved = (new + name[len(old) :]).encode(errors="surrogateescape")
                return [(n, w, moved if n == REG_NAME else v) for n, w, v in fields]
        return fields

    def edit(entry: list[Field]) -> list[Field]:
        for number, change in ((ENTRY_INET, inet), (ENTRY_REG, regular)):
            entry = [
                (n, w, encode(change(decode(v))) if n == number and isinstance(v, bytes) else v)
                for n, w, v in entry
            ]
        return entry

    rewrite(directory / "files.img", edit)
    return changed


def contents(directory: Path) -> dict[str, int]:
    """Bytes of pages by what they are: `heap`, `anonymous` (torch's tensors, thread stacks), and
    the path of each file of which changed pages are kept. Their sum is the size of pages-*.img."""
    found: dict[str, int] = {}
    files = mapped_files(directory)
    for mm in sorted(directory.glob("mm-*.img")):
        areas = []
        for fields in entries(mm):
            areas += [decode(bytes(v)) for n, _, v in fields if n == MM_VMAS]
        spans = sorted(
            (int(get(a, VMA_START)), int(get(a, VMA_END)), _kind(a, files)) for a in areas
        )
        at = 0
        for fields in list(entries(directory / mm.name.replace("mm-", "pagemap-")))[1:]:
            if not int(get(fields, PAGEMAP_FLAGS, PAGEMAP_PRESENT)) & PAGEMAP_PRESENT:
                continue
            start = int(get(fields, PAGEMAP_ADDRESS))
            end = start + PAGE * (
                int(get(fields, PAGEMAP_PAGES)) or int(get(fields, PAGEMAP_PAGES_32))
            )
            while at < len(spans) and spans[at][1] <= start:
                at += 1
            for low, high, kind in spans[at:]:
                if low >= end:
                    break
                found[kind] = found.get(kind, 0) + min(high, end) - max(low, start)
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def _kind(area: list[Field], files: Mapping[int, str]) -> str:
    if int(get(area, VMA_STATUS)) & STATUS_HEAP:
        return "heap"
    if int(get(area, VMA_FLAGS)) & MAP_ANONYMOUS:
        return "anonymous"
    return files.get(int(get(area, VMA_FILE)), "other")

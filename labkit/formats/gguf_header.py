"""GGUF: magic, version, typed key-values (the tokenizer is among them), tensor table, then aligned
tensors.

    layout = read(Path("model.gguf"))
    layout.metadata["llama.block_count"], layout.metadata["tokenizer.ggml.tokens"]   # 2,
        Items('string', 32000, first…)

Everything is counted and prefixed by lengths, so every one of them can lie. Arrays are walked, not
kept: of each the count and its first items. Limits: 64 MiB of key-values, 4 million strings (the
largest vocabulary in use has 0.26 million), nesting of two. Source: ggml's docs/gguf.md and the
type table of ggml. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.formats.layout import (
    MAX_TENSORS,
    Layout,
    TensorEntry,
    check_places,
    common_alignment,
    element_count,
)

MAX_KEY_VALUES = 65_536
MAX_VALUES_BYTES = 64 << 20
MAX_STRINGS = 4_000_000
KEPT = 4

#: number -> (name, elements a block, bytes a block)
TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
#: value types: number -> (name, struct code)
SCALARS = {
    0: ("uint8", "B"),
    1: ("int8", "b"),
    2: ("uint16", "H"),
    3: ("int16", "h"),
    4: ("uint32", "I"),
    5: ("int32", "i"),
    6: ("float32", "f"),
    7: ("bool", "?"),
    10: ("uint64", "Q"),
    11: ("int64", "q"),
    12: ("float64", "d"),
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Items:
    """An array of the file: what it is made of, how many, and the first few."""

    of: str
    count: int
    first: tuple[Value, ...]


Value = int | float | str | Items


class _Cursor:
    """Reads forward and never past the file's end: a length is checked against what is left before
    it is used."""

    def __init__(self, file: BinaryIO, size_bytes: int):
        self.file, self.size_bytes, self.at, self.strings = file, size_bytes, 0, 0

    def take(self, length: int, name: str) -> bytes:
        if length > self.size_bytes - self.at:
            raise BadInput(
                f"{name} says {length} bytes, {self.size_bytes - self.at} are left",
                why="a truncated or forged file; nothing was loaded",
                fix="fetch the file again",
            )
        if length > MAX_VALUES_BYTES or self.at > MAX_VALUES_BYTES:
            raise BadInput(
                f"{name}: more than {MAX_VALUES_BYTES} bytes of key-values",
                why="real headers stay far below",
            )
        data = self.file.read(length)
        if len(data) != length:
            raise BadInput(f"{name}: the file ended while it was read")
        self.at += length
        return data

    def skip(self, length: int, name: str) -> None:
        if length > self.size_bytes - self.at or length > MAX_VALUES_BYTES:
            raise BadInput(
                f"{name} says {length} bytes, {self.size_bytes - self.at} are left",
                why="a truncated or forged file; nothing was loaded",
            )
        self.file.seek(length, os.SEEK_CUR)
        self.at += length

    def scalar(self, code: str, name: str) -> int | float:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), name))[0]

    def number(self, code: str, name: str) -> int:
        return int(self.scalar(code, name))

    def string(self, name: str) -> str:
        self.strings += 1
        if self.strings > MAX_STRINGS:
            raise BadInput(
                f"more than {MAX_STRINGS} strings",
                why="the largest vocabulary in use has 0.26 million",
            )
        return self.take(self.number("Q", name), name).decode("utf-8", "replace")


def _value(cursor: _Cursor, kind: int, name: str, depth: int = 0) -> Value:
    if kind in SCALARS:
        return cursor.scalar(SCALARS[kind][1], name)
    if kind == STRING:
        return cursor.string(name)
    if kind != ARRAY:
        raise BadInput(f"{name}: unknown value type {kind}")
    if depth >= 2:
        raise BadInput(f"{name}: arrays nest too deeply")
    of, count = cursor.number("I", name), cursor.number("Q", name)
    if of in SCALARS:
        kind_name, code = SCALARS[of]
        width = struct.calcsize("<" + code)
        if count * width > cursor.size_bytes - cursor.at:
            raise BadInput(
                f"{name}: an array of {count} items does not fit the file",
                why="a truncated or forged file; nothing was loaded",
            )
        kept = min(count, KEPT)
        first = struct.unpack(f"<{kept}{code}", cursor.take(kept * width, name))
        cursor.skip((count - kept) * width, name)
        return Items(kind_name, count, first)
    if (
        of not in (STRING, ARRAY)
        or count * (8 if of == STRING else 12) > cursor.size_bytes - cursor.at
    ):
        raise BadInput(
            f"{name}: an array of {count} items of type {of} does not fit the file",
            why="a truncated or forged file; nothing was loaded",
        )
    items: list[Value] = []
    for _ in range(count):
        item = _value(cursor, of, name, depth + 1)
        if of == ARRAY:
            cursor.strings += 1
            if cursor.strings > MAX_STRINGS:
                raise BadInput(f"{name}: too many items")
        if len(items) < KEPT:
            items.append(item)
    return Items("string" if of == STRING else "array", count, tuple(items))


def read(path: Path) -> Layout:
    """Raises BadInput for anything that is not a little-endian GGUF of version 2 or 3."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        return parse(file, size_bytes, str(path))


def parse(file: BinaryIO, size_bytes: int, path: str = "") -> Layout:
    cursor = _Cursor(file, size_bytes)
    if cursor.take(4, "the magic") != b"GGUF":
        raise BadInput("not a GGUF file")
    version = cursor.number("I", "the version")
    if version not in (2, 3):
        big = int.from_bytes(version.to_bytes(4, "little"), "big")
        raise BadInput(
            f"GGUF version {big}, big-endian" if big < 1 << 16 else f"GGUF version {version}",
            why="2 and 3 are read, little-endian, as llama.cpp does on this kind of machine",
            fix="gguf-convert-endian FILE little (pip install gguf)"
            if big < 1 << 16
            else "convert the model again with a current convert_hf_to_gguf.py",
        )
    tensor_count, pair_count = (
        cursor.number("Q", "the tensor count"),
        cursor.number("Q", "the key-value count"),
    )
    if tensor_count > MAX_TENSORS or pair_count > MAX_KEY_VALUES:
        raise BadInput(
            f"{tensor_count} tensors and {pair_count} key-values",
            why=f"real files stay below {MAX_TENSORS} and {MAX_KEY_VALUES}",
        )
    metadata: JsonObject = {}
    for _ in range(pair_count):
        key = cursor.string("a key")
        if key in metadata:
            raise BadInput(f"the key {key[:80]} occurs twice")
        metadata[key] = _value(cursor, cursor.number("I", key[:80]), key[:80])
    alignment = metadata.get("general.alignment", 32)
    if (
        not isinstance(alignment, int)
        or alignment <= 0
        or alignment & (alignment - 1)
        or alignment > 1 << 20
    ):
        raise BadInput(
            f"general.alignment is {str(alignment)[:40]}", why="a power of two is needed"
        )
    entries = _table(cursor, tensor_count, alignment)
    begin = -(-cursor.at // alignment) * alignment
    placed = tuple(
        TensorEntry(e.name, e.dtype, e.shape, begin + e.offset, e.size_bytes) for e in entries
    )
    check_places(placed, begin, size_bytes, exact=False)
    return Layout(
        "gguf",
        path,
        size_bytes,
        begin,
        placed,
        metadata,
        (),
        common_alignment([e.offset for e in placed]),
    )


def _table(cursor: _Cursor, count: int, alignment: int) -> list[TensorEntry]:
    """The tensor table, offsets relative to the data. Shapes come fastest dimension first and are
    turned round."""
    entries: list[TensorEntry] = []
    names: set[str] = set()
    for _ in range(count):
        name = cursor.string("a tensor's name")
        if name in names:
            raise BadInput(f"the tensor {name[:80]} occurs twice")
        names.add(name)
        dimensions = cursor.number("I", name[:80])
        if dimensions > 4:
            raise BadInput(f"{name[:80]}: {dimensions} dimensions", why="GGUF has at most 4")
        shape = tuple(
            reversed(struct.unpack(f"<{dimensions}Q", cursor.take(8 * dimensions, name[:80])))
        )
        kind, offset = cursor.number("I", name[:80]), cursor.number("Q", name[:80])
        if kind not in TYPES:
            raise BadInput(f"{name[:80]}: unknown tensor type {kind}")
        dtype, block, block_bytes = TYPES[kind]
        elements = element_count(shape, name)
        if (shape and shape[-1] % block) or offset % alignment or offset >= 1 << 63:
            raise BadInput(
                f"{name[:80]}: a row of {shape[-1] if shape else 0} does not divide into blocks of"
                f" {block}, or offset {offset} is not aligned to {alignment}"
            )
        entries.append(TensorEntry(name, dtype, shape, offset, elements // block * block_bytes))
    return entries

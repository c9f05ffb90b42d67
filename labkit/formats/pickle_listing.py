"""pickle: a program for a small stack machine. Listed here, never run.

    layout = read(Path("pytorch_model.bin"))
    layout.findings          # ("byte 27: would call os.system('curl …')", …)
    layout.tensors[0]        # found by following the program symbolically

A PyTorch checkpoint is a zip of one pickle (`data.pkl`: a dict of calls to `_rebuild_tensor_v2`)
and one uncompressed file a storage. Loading runs the program, and a program may call anything
importable: that is what `weights_only=True` refuses. `Follow` steps through the opcodes with
symbols in place of objects: a GLOBAL becomes a `Name`, a REDUCE a `Call`.

Limits: 8 MiB and 2 million opcodes of program, 64 MiB of zip directory. Source: Lib/pickletools.py,
APPNOTE.TXT 6.3. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import io
import os
import pickletools
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from labkit.errors import BadInput
from labkit.formats.layout import (
    MAX_HEADER_BYTES,
    MAX_TENSORS,
    Layout,
    TensorEntry,
    check_places,
    common_alignment,
    element_count,
)

MAX_OPCODES = 2_000_000
MAX_DIRECTORY_BYTES = 64 << 20
MAX_MEMBERS = 200_000

#: What a checkpoint of plain tensors names. Everything else is a finding.
STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
    "UntypedStorage": 1,
}
HARMLESS = {
    ("collections", "OrderedDict"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
} | {("torch", s) for s in STORAGES}


@dataclass(frozen=True)
class Name:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(frozen=True, eq=False)
class Call:
    """What REDUCE, NEWOBJ, INST or OBJ would do at byte `at`."""

    what: Any
    arguments: Any
    at: int


@dataclass(frozen=True, eq=False)
class Stored:
    """A persistent id: in a checkpoint ('storage', type, key, location, count)."""

    about: Any


class Mark:
    pass


class Unknown:
    """A value that the listing does not follow."""


_UNKNOWN = Unknown()
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT",
    "BININT",
    "BININT1",
    "BININT2",
    "LONG",
    "LONG1",
    "LONG4",
    "STRING",
    "BINSTRING",
    "SHORT_BINSTRING",
    "BINBYTES",
    "SHORT_BINBYTES",
    "BINBYTES8",
    "BYTEARRAY8",
    "UNICODE",
    "SHORT_BINUNICODE",
    "BINUNICODE",
    "BINUNICODE8",
    "FLOAT",
    "BINFLOAT",
}


class Follow:
    """The pickle machine with symbols. After `run`, `names` holds every import, `calls` every call,
    `result` the object."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.names: list[tuple[int, Name]] = []
        self.calls: list[Call] = []
        self.builds: list[tuple[int, Any]] = []
        self.opcodes = 0
        self.result: Any = None

    def run(self, program: bytes) -> int:
        """Follow one pickle; gives the position after its STOP. Raises BadInput."""
        if len(program) > MAX_HEADER_BYTES:
            raise BadInput(
                f"a pickle program of {len(program)} bytes",
                why=f"a checkpoint's own stays far below {MAX_HEADER_BYTES}",
            )
        try:
            for opcode, argument, position in pickletools.genops(program):
                self.opcodes += 1
                if self.opcodes > MAX_OPCODES:
                    raise BadInput(f"more than {MAX_OPCODES} opcodes")
                if opcode.name == "STOP":
                    self.result = self.stack.pop()
                    return (position or 0) + 1
                self._step(opcode.name, argument, position or 0)
        except (
            ValueError,
            IndexError,
            KeyError,
            TypeError,
            AttributeError,
            OverflowError,
            struct.error,
            UnicodeDecodeError,
            EOFError,
        ) as error:
            raise BadInput(
                f"the pickle program is broken at opcode {self.opcodes}: {str(error)[:120]}",
                why="truncated or forged; nothing was run",
            ) from None
        raise BadInput("the pickle program has no end", why="truncated or forged; nothing was run")

    def _to_mark(self) -> list[Any]:
        items: list[Any] = []
        while True:
            top = self.stack.pop()
            if isinstance(top, Mark):
                return items[::-1]
            items.append(top)

    def _call(self, what: Any, arguments: Any, at: int) -> None:
        made = Call(what, arguments, at)
        self.calls.append(made)
        self.stack.append(made)

    def _step(self, name: str, argument: Any, at: int) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name == "MARK":
            stack.append(Mark())
        elif name in ("EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "EMPTY_SET"):
            stack.append(
                {"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": list}[
                    name
                ]()
            )
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            count = int(name[-1])
            if len(stack) < count:
                raise IndexError("stack underflow")
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            items = self._to_mark()
            stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("SETITEM", "SETITEMS", "DICT"):
            pairs = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._to_mark()
            into = {} if name == "DICT" else stack[-1]
            if isinstance(into, Call):  # an OrderedDict made by a call: keep its items beside it
                into = into.__dict__.setdefault("items", {})
            for key, value in zip(pairs[::2], pairs[1::2], strict=False):
                if isinstance(into, dict) and isinstance(key, str):
                    into[key] = value
            if name == "DICT":
                stack.append(into)
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self._to_mark()
            if isinstance(stack[-1], list):
                stack[-1].extend(items)
        elif name in ("GLOBAL", "STACK_GLOBAL", "INST"):
            self._import(name, argument, at)
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = stack.pop()
            self._call(stack.pop(), arguments, at)
        elif name == "NEWOBJ_EX":
            stack.pop()
            arguments = stack.pop()
            self._call(stack.pop(), arguments, at)
        elif name == "OBJ":
            items = self._to_mark()
            self._call(items[0], tuple(items[1:]), at)
        elif name == "BUILD":
            stack.pop()
            self.builds.append((at, stack[-1]))
        elif name in ("BINPERSID", "PERSID"):
            stack.append(Stored(stack.pop() if name == "BINPERSID" else argument))
        elif name in ("EXT1", "EXT2", "EXT4"):
            made = Name("copyreg.extension", str(argument))
            self.names.append((at, made))
            stack.append(made)
        elif name == "POP":
            stack.pop()
        elif name == "POP_MARK":
            self._to_mark()
        elif name == "DUP":
            stack.append(stack[-1])
        elif name == "NEXT_BUFFER":
            stack.append(_UNKNOWN)

    def _import(self, name: str, argument: Any, at: int) -> None:
        if name == "STACK_GLOBAL":
            last, first = self.stack.pop(), self.stack.pop()
            made = Name(
                first if isinstance(first, str) else "?", last if isinstance(last, str) else "?"
            )
            self.stack.append(made)
        else:
            module, _, attribute = argument.partition(" ")
            made = Name(module, attribute)
            if name == "INST":
                self._call(made, tuple(self._to_mark()), at)
            else:
                self.stack.append(made)
        self.names.append((at, made))

    def findings(self) -> list[str]:
        """What would happen on loading beyond rebuilding tensors, by position."""
        found: list[tuple[int, str]] = []
        for at, name in self.names:
            if (name.module, name.name) not in HARMLESS:
                found.append((at, f"byte {at}: would import {name}"))
        for call in self.calls:
            if (
                not isinstance(call.what, Name)
                or (call.what.module, call.what.name) not in HARMLESS
            ):
                called = call.what if isinstance(call.what, Name) else "a computed object"
                shown = f"byte {call.at}: would call {called}({_shown(call.arguments)})"
                found.append((call.at, shown))
        for at, target in self.builds:
            if (
                not isinstance(target, Call)
                or not isinstance(target.what, Name)
                or (target.what.module, target.what.name) not in HARMLESS
            ):
                found.append((at, f"byte {at}: would set the state of an object"))
        return [text for _, text in sorted(found)[:100]]


def _shown(arguments: Any) -> str:
    """Arguments without recursion: one level, each cut."""
    items = arguments if isinstance(arguments, tuple) else (arguments,)
    return ", ".join(
        (
            repr(i)[:80]
            if isinstance(i, (str, bytes, int, float, bool, type(None)))
            and not (isinstance(i, int) and abs(i) >> 64)
            else type(i).__name__
        )
        for i in items[:8]
    )


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


def read(path: Path) -> Layout:
    """Raises BadInput. Findings are in `layout.findings`, tensors of plain state dicts in
    `layout.tensors`."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        return parse(file, size_bytes, str(path))


def parse(file: BinaryIO, size_bytes: int, path: str = "") -> Layout:
    file.seek(0)
    if file.read(2) != b"PK":
        return _bare(file, size_bytes, path)
    inside = members(file, size_bytes)
    program_name = next((n for n in inside if n == "data.pkl" or n.endswith("/data.pkl")), "")
    if not program_name:
        raise BadInput("a zip without data.pkl", why="not a PyTorch checkpoint")
    begin, length, method = inside[program_name]
    if method != 0:
        raise BadInput(
            "data.pkl is compressed", why="PyTorch stores it plainly; this file is not one of its"
        )
    if length > MAX_HEADER_BYTES:
        raise BadInput(
            f"a pickle program of {length} bytes",
            why=f"a checkpoint's own stays far below {MAX_HEADER_BYTES}",
        )
    file.seek(begin)
    follow = Follow()
    follow.run(file.read(length))
    entries = _tensors(follow, inside, program_name.removesuffix("data.pkl"))
    (
        check_places([e for e in entries if e.offset >= 0], 0, size_bytes, exact=False)
        if not _shares(entries)
        else None
    )
    return Layout(
        "pickle",
        path,
        size_bytes,
        length,
        tuple(entries),
        {"opcodes": follow.opcodes, "imports": sorted({str(n) for _, n in follow.names})[:100]},
        tuple(follow.findings()),
        common_alignment([e.offset for e in entries if e.offset >= 0]),
    )


def _shares(entries: list[TensorEntry]) -> bool:
    """Tied tensors of one storage lie over each other; that is no forgery in a pickle."""
    return len({e.offset for e in entries}) != len(entries)


def _bare(file: BinaryIO, size_bytes: int, path: str) -> Layout:
    """A pickle without a zip (torch before 1.6 wrote several in a row): the first programs, without
    tensors."""
    file.seek(0)
    data = io.BytesIO(file.read(MAX_HEADER_BYTES)).getvalue()
    follow, at = Follow(), 0
    while at < len(data) and data[at : at + 1] == b"\x80" and follow.opcodes < MAX_OPCODES:
        try:
            at += follow.run(data[at:])
        except BadInput:
            if at == 0:
                raise
            break
    return Layout(
        "pickle",
        path,
        size_bytes,
        at,
        (),
        {"opcodes": follow.opcodes, "imports": sorted({str(n) for _, n in follow.names})[:100]},
        tuple(follow.findings()),
    )


def _tensors(
    follow: Follow, inside: dict[str, tuple[int, int, int]], prefix: str
) -> list[TensorEntry]:
    top = follow.result
    state = (
        top
        if isinstance(top, dict)
        else getattr(top, "__dict__", {}).get("items", {})
        if isinstance(top, Call)
        else {}
    )
    entries = []
    for name, value in list(state.items())[:MAX_TENSORS]:
        if (
            isinstance(value, Call)
            and value.what == Name("torch._utils", "_rebuild_parameter")
            and isinstance(value.arguments, tuple)
            and value.arguments
        ):
            value = value.arguments[0]
        if not (
            isinstance(value, Call)
            and value.what == Name("torch._utils", "_rebuild_tensor_v2")
            and isinstance(value.arguments, tuple)
            and len(value.arguments) >= 4
        ):
            continue
        stored, offset, shape = value.arguments[:3]
        about = stored.about if isinstance(stored, Stored) else None
        if not (
            isinstance(about, tuple)
            and len(about) == 5
            and isinstance(about[1], Name)
            and about[1].name in STORAGES
            and isinstance(about[2], str)
            and isinstance(offset, int)
            and 0 <= offset < 1 << 62
        ):
            raise BadInput(f"{name[:80]}: its storage is not one of PyTorch's")
        width = STORAGES[about[1].name]
        place = inside.get(f"{prefix}data/{about[2]}")
        size = element_count(shape, name) * width
        if place is None or offset * width + size > place[1]:
            raise BadInput(
                f"{name[:80]} lies outside its storage",
                why="truncated or forged; nothing was loaded",
            )
        entries.append(
            TensorEntry(
                name,
                about[1].name.removesuffix("Storage"),
                tuple(shape),
                place[0] + offset * width,
                size,
            )
        )
    return sorted(entries, key=lambda e: e.offset)

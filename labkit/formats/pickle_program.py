"""A pickle's program followed with symbols, never run: a GLOBAL becomes a `Name`, a REDUCE a
`Call`.

    follow = Follow()
    follow.run(program)
    follow.findings()        # ("byte 27: would call os.system('curl …')", …)

Loading a pickle runs its program, and a program may call anything importable: that is what
`weights_only=True` refuses. Limits: 8 MiB and 2 million opcodes. Source: Lib/pickletools.py.
Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import pickletools
import struct
from dataclasses import dataclass
from typing import Any

from labkit.errors import BadInput
from labkit.formats.layout import MAX_HEADER_BYTES

MAX_OPCODES = 2_000_000

#: Storages by name, with the bytes of an element.
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
#: dtypes by torch's name, with the bytes of an element: an untyped storage's tensor names one.
DTYPES = {
    **dict.fromkeys(("float64", "int64", "uint64", "complex64"), 8),
    **dict.fromkeys(("float32", "int32", "uint32", "complex32"), 4),
    **dict.fromkeys(("float16", "bfloat16", "int16", "uint16"), 2),
    **dict.fromkeys(("int8", "uint8", "bool", "float4_e2m1fn_x2", "float8_e8m0fnu"), 1),
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"), 1),
    "complex128": 16,
}
#: What torch.load(weights_only=True) lets a checkpoint name. Everything else is a finding.
HARMLESS = (
    {
        ("collections", "OrderedDict"),
        ("collections", "Counter"),
        ("_codecs", "encode"),
        ("torch", "Size"),
        ("torch", "Tensor"),
        ("torch", "device"),
        ("torch.nn.parameter", "Parameter"),
        ("torch.serialization", "_get_layout"),
        ("torch.storage", "UntypedStorage"),
        ("torch.storage", "TypedStorage"),
    }
    | {(module, name) for module in ("builtins", "__builtin__") for name in ("set", "bytearray")}
    | {("torch", name) for name in (*STORAGES, *DTYPES)}
    | {
        ("torch._utils", "_rebuild_" + what)
        for what in (
            "tensor",
            "tensor_v2",
            "tensor_v3",
            "parameter",
            "parameter_with_state",
            "qtensor",
            "sparse_tensor",
            "nested_tensor",
            "meta_tensor_no_storage",
        )
    }
)


@dataclass(frozen=True)
class Name:
    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:120]


@dataclass(frozen=True, eq=False)
class Call:
    """What REDUCE, NEWOBJ, INST or OBJ would do at byte `at`."""

    function: object
    arguments: object
    at: int


@dataclass(frozen=True, eq=False)
class PersistentId:
    """A persistent id: in a checkpoint ('storage', type, key, location, count)."""

    about: object


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
        self.stack: list[object] = []
        self.memo: dict[int, object] = {}
        self.names: list[tuple[int, Name]] = []
        self.calls: list[Call] = []
        self.builds: list[tuple[int, object]] = []
        self.persistent: list[PersistentId] = []
        self.opcodes = 0
        self.result: object = None

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

    def _to_mark(self) -> list[object]:
        items: list[object] = []
        while True:
            top = self.stack.pop()
            if isinstance(top, Mark):
                return items[::-1]
            items.append(top)

    def _call(self, function: object, arguments: object, at: int) -> None:
        entry = Call(function, arguments, at)
        self.calls.append(entry)
        self.stack.append(entry)

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
            if isinstance(into, Call):  # an OrderedDict from a call: keep its items beside it
                into = into.__dict__.setdefault("items", {})
            for key, value in zip(pairs[::2], pairs[1::2], strict=False):
                small = isinstance(key, int) and not abs(key) >> 64
                if isinstance(into, dict) and (isinstance(key, str) or small):
                    into[str(key)] = value
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
            self.persistent.append(PersistentId(stack.pop() if name == "BINPERSID" else argument))
            stack.append(self.persistent[-1])
        elif name in ("EXT1", "EXT2", "EXT4"):
            entry = Name("copyreg.extension", str(argument))
            self.names.append((at, entry))
            stack.append(entry)
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
            entry = Name(
                first if isinstance(first, str) else "?", last if isinstance(last, str) else "?"
            )
            self.stack.append(entry)
        else:
            module, _, attribute = argument.partition(" ")
            entry = Name(module, attribute)
            if name == "INST":
                self._call(entry, tuple(self._to_mark()), at)
            else:
                self.stack.append(entry)
        self.names.append((at, entry))

    def findings(self) -> list[str]:
        """What would happen on loading beyond rebuilding tensors, by position."""
        found: list[tuple[int, str]] = []
        for at, name in self.names:
            if not _harmless(name):
                found.append((at, f"byte {at}: would import {name}"))
        for call in self.calls:
            if not _harmless(call.function):
                called = call.function if isinstance(call.function, Name) else "a computed object"
                shown = f"byte {call.at}: would call {called}({_shown(call.arguments)})"
                found.append((call.at, shown))
        for at, target in self.builds:
            if not (isinstance(target, Call) and _harmless(target.function)):
                found.append((at, f"byte {at}: would set the state of an object"))
        return [text for _, text in sorted(found)[:100]]


def _harmless(symbol: object) -> bool:
    return isinstance(symbol, Name) and (symbol.module, symbol.name) in HARMLESS


def _shown(arguments: object) -> str:
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

"""S3's checksums: of bytes as they come, and of an object from those of its parts.

    check = CHECKSUMS["crc64nvme"](); check.update(b"…"); check.digest()
    whole("crc32c", [("yZRlqg==", 5 << 20), …], "FULL_OBJECT")      # base64, as on the wire

CRC-32C and CRC-64/NVME are not in the standard library: many short stretches are run side by side
with numpy (about 150 MB/s here) and folded into one, by the same arithmetic that makes the CRC of
an object from the CRCs of its parts. Source: S3 user guide, "Checking object integrity"; Mark
Adler's crc32_combine (zlib). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import base64
import functools
import hashlib
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy

FULL_OBJECT, COMPOSITE = "FULL_OBJECT", "COMPOSITE"
#: Bits and reversed polynomial of each.
CRCS = {
    "crc32": (32, 0xEDB88320),
    "crc32c": (32, 0x82F63B78),
    "crc64nvme": (64, 0x9A6C9329AC4BC9B5),
}
#: Bytes of one stretch, and how many stretches are run side by side at most.
STRETCH, SIDE_BY_SIDE = 256, 4096

#: What a register becomes, for each of its bits alone: every step of a CRC is a sum of these.
Step = tuple[int, ...]


class Checksum(Protocol):
    def update(self, block: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


@functools.cache
def _table(name: str) -> list[int]:
    _, polynomial = CRCS[name]
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (polynomial if value & 1 else 0)
        table.append(value)
    return table


def _apply(step: Step, register: int) -> int:
    out = 0
    for image in step:
        if register & 1:
            out ^= image
        register >>= 1
    return out


@functools.cache
def _zeros(name: str, exponent: int) -> Step:
    """The step over 2**exponent bytes of zeros."""
    if not exponent:
        table = _table(name)
        return tuple(bit >> 8 ^ table[bit & 255] for bit in (1 << i for i in range(CRCS[name][0])))
    half = _zeros(name, exponent - 1)
    return tuple(_apply(half, image) for image in half)


def combined(name: str, first: int, second: int, second_bytes: int) -> int:
    """The CRC of two stretches from the CRC of each."""
    exponent = 0
    while second_bytes:
        if second_bytes & 1:
            first = _apply(_zeros(name, exponent), first)
        second_bytes >>= 1
        exponent += 1
    return first ^ second


@functools.cache
def _by_bytes(name: str, exponent: int) -> list[numpy.ndarray]:
    """`_zeros` as a table for each byte of the register."""
    import numpy

    step = _zeros(name, exponent)
    return [
        numpy.array([_apply(step, value << shift) for value in range(256)], numpy.uint64)
        for shift in range(0, CRCS[name][0], 8)
    ]


@functools.cache
def _array(name: str) -> numpy.ndarray:
    import numpy

    return numpy.array(_table(name), numpy.uint64)


class Crc:
    """One that the standard library does not have."""

    def __init__(self, name: str):
        self._name, self._bits = name, CRCS[name][0]
        self._register, self._waiting = (1 << self._bits) - 1, bytearray()

    def update(self, block: bytes, /) -> None:
        self._waiting += block
        if len(self._waiting) >= STRETCH * SIDE_BY_SIDE:
            self._run(STRETCH)

    def digest(self) -> bytes:
        self._run(STRETCH)
        table, register = _table(self._name), self._register
        for byte in self._waiting:
            register = register >> 8 ^ table[(register ^ byte) & 255]
        return (register ^ (1 << self._bits) - 1).to_bytes(self._bits // 8, "big")

    def _run(self, least: int) -> None:
        """Take what waits, down to less than `least` bytes."""
        at, have = 0, len(self._waiting)
        with memoryview(self._waiting) as waiting:
            while have - at >= least:
                side_by_side = min(SIDE_BY_SIDE, 1 << ((have - at) // STRETCH).bit_length() - 1)
                end = at + STRETCH * side_by_side
                self._register = self._side_by_side(waiting[at:end], side_by_side)
                at = end
        del self._waiting[:at]

    def _side_by_side(self, block: memoryview, side_by_side: int) -> int:
        import numpy

        columns = numpy.frombuffer(block, numpy.uint8).reshape(side_by_side, STRETCH)
        registers = numpy.zeros(side_by_side, numpy.uint64)
        registers[0] = self._register
        table, low, byte = _array(self._name), numpy.uint64(255), numpy.uint64(8)
        for column in columns.T.astype(numpy.uint64):
            registers = registers >> byte ^ table[(registers ^ column) & low]
        exponent = STRETCH.bit_length() - 1
        while len(registers) > 1:
            first, second = registers[0::2], registers[1::2]
            for number, images in enumerate(_by_bytes(self._name, exponent)):
                second = second ^ images[first >> numpy.uint64(8 * number) & low]
            registers, exponent = second, exponent + 1
        return int(registers[0])


class Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, block: bytes, /) -> None:
        self._value = zlib.crc32(block, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


CHECKSUMS: dict[str, Callable[[], Checksum]] = {
    "crc32": Crc32,
    "crc32c": lambda: Crc("crc32c"),
    "crc64nvme": lambda: Crc("crc64nvme"),
    "sha1": hashlib.sha1,
    "sha256": hashlib.sha256,
}


def text(digest: bytes) -> str:
    """As it goes over the wire."""
    return base64.b64encode(digest).decode()


def type_of(name: str, asked: str = "") -> str:
    """FULL_OBJECT or COMPOSITE, as an upload in parts asks or by default. Raises ValueError for a
    pair that S3 does not have."""
    kind = asked.upper() or (FULL_OBJECT if name == "crc64nvme" else COMPOSITE)
    if kind not in (FULL_OBJECT, COMPOSITE):
        raise ValueError(f"no checksum type {asked[:40]!r}")
    if (kind == FULL_OBJECT and name not in CRCS) or (kind == COMPOSITE and name == "crc64nvme"):
        raise ValueError(f"{name.upper()} of an upload in parts is not {kind}")
    return kind


def whole(name: str, parts: list[tuple[str, int]], kind: str) -> str:
    """The checksum of an object from those of its parts (base64, bytes of the part)."""
    digests = [base64.b64decode(value) for value, _ in parts]
    if kind == COMPOSITE:
        check = CHECKSUMS[name]()
        check.update(b"".join(digests))
        return f"{text(check.digest())}-{len(parts)}"
    register = 0
    for digest, (_, size_bytes) in zip(digests, parts, strict=True):
        register = combined(name, register, int.from_bytes(digest, "big"), size_bytes)
    return text(register.to_bytes(CRCS[name][0] // 8, "big"))

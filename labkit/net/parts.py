"""Parts of one object or of many: which bytes, and where they go.

    plan(url, size_bytes, part_bytes=4 << 20)                # equal parts, in order
    RangePart(url, start, size, into=Into.buffer(view, -start))

Larger parts pay fewer round trips, smaller ones end closer together. They are fetched by
`labkit.net.ranges`. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any, Protocol

PART_BYTES = 4 << 20


@dataclass(frozen=True)
class Into:
    """Where the bytes go: offset `at` of a writable buffer, or of a file. `shift`: added to a
    part's offset."""

    view: memoryview | None = None
    fd: int = -1
    shift: int = 0

    @staticmethod
    def buffer(view: memoryview | bytearray | mmap.mmap, shift: int = 0) -> Into:
        return Into(memoryview(view).cast("B"), -1, shift)

    @staticmethod
    def file(fd: int, shift: int = 0) -> Into:
        return Into(None, fd, shift)


class Target(Protocol):
    """Where the bytes of one part go: `Into`, or what finds its place when the first byte comes."""

    @property
    def view(self) -> memoryview | None: ...
    @property
    def fd(self) -> int: ...
    @property
    def shift(self) -> int: ...


@dataclass(frozen=True)
class RangePart:
    """`size_bytes` of `url` from `start`. `into` overrides the fetch's own; `key` is for the
    caller."""

    url: str
    start: int
    size_bytes: int
    key: Any = None
    into: Target | None = None


def plan(
    url: str, size_bytes: int, part_bytes: int = PART_BYTES, into: Target | None = None
) -> list[RangePart]:
    """Equal parts in order, the last one shorter."""
    return [
        RangePart(url, at, min(part_bytes, size_bytes - at), into=into)
        for at in range(0, size_bytes, part_bytes)
    ]


def pwrite(fd: int, view: memoryview, at: int) -> None:
    """All of `view` at byte `at` of the file, whatever one call writes. Raises OSError."""
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done

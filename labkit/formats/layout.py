"""What is in a checkpoint file, as its header tells it: tensors with dtype, shape and place,
metadata, findings.

    layout = read_layout("model.safetensors")      # the format is told by the first bytes, not by
        the name
    layout.tensors[0]                  # TensorEntry(name, dtype, shape, offset, size_bytes)

Named tuples, because a loader pays for this import and for every entry: a frozen dataclass costs
four times as much.

A header is hostile input. Every reader keeps the same limits: nothing is allocated from a length
that the file itself does not hold, counts and nesting are bounded, nothing is executed, and
whatever is wrong is a BadInput with the reason. Limit: the header's bytes; the tensors are never
touched. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

#: A real header spends about 100 bytes a tensor; 8 MiB of forged JSON expands to below 512 MiB of
#: Python objects.
MAX_HEADER_BYTES = 8 << 20
MAX_TENSORS = 250_000
MAX_DIMENSIONS = 64  # torch's own


class TensorEntry(NamedTuple):
    """One tensor: `offset` from the start of the file, -1 if its bytes are not contiguous in it."""

    name: str
    dtype: str  # the format's own word: BF16, Q8_0, BFloat16Storage
    shape: tuple[int, ...]
    offset: int
    size_bytes: int

    @property
    def end(self) -> int:
        return self.offset + self.size_bytes


class Layout(NamedTuple):
    """A file's contents. `findings`: what a reader should know (unaligned tensors, code that a
    pickle would run)."""

    format: str
    path: str
    size_bytes: int
    header_bytes: int
    tensors: tuple[TensorEntry, ...]
    metadata: JsonObject
    findings: tuple[str, ...] = ()
    alignment: int = 1  # the largest power of two that divides every tensor's offset, at most 4096


def common_alignment(offsets: Sequence[int]) -> int:
    together = 4096
    for offset in offsets:
        together |= offset
    return together & -together


def element_count(shape: object, name: str) -> int:
    """Product of a shape that a file claims. Raises BadInput for what is not a shape, or does not
    fit 63 bits."""
    if not isinstance(shape, (list, tuple)) or len(shape) > MAX_DIMENSIONS:
        raise BadInput(f"{name[:80]}: not a shape")
    count = 1
    for n in shape:
        if not isinstance(n, int) or isinstance(n, bool) or n < 0:
            raise BadInput(f"{name[:80]}: a dimension is {str(n)[:40]}")
        count *= n
        if count >= 1 << 63:
            raise BadInput(
                f"{name[:80]}: a shape of more than 2^63 elements",
                why="a forged header; nothing was allocated",
            )
    return count


def check_places(
    entries: Sequence[TensorEntry], begin: int, size_bytes: int, *, exact: bool
) -> None:
    """Tensors lie in [begin, size_bytes), none over another. `exact`: without holes and to the end.
    Raises BadInput."""
    reached = begin
    for entry in sorted(entries, key=attrgetter("offset", "size_bytes")):
        end = entry.offset + entry.size_bytes
        if end > size_bytes or entry.offset < begin:
            raise BadInput(
                f"{entry.name[:80]} is said to lie at {entry.offset}–{end}, the file has"
                f" {size_bytes} bytes",
                why="a truncated or forged file; nothing was loaded",
                fix="fetch the file again, then labkit model verify DIR",
            )
        if entry.offset < reached and entry.size_bytes:
            raise BadInput(
                f"{entry.name[:80]} overlaps the tensor before it",
                why="two tensors of one file never share bytes; the header is forged",
            )
        if exact and entry.offset != reached:
            raise BadInput(
                f"{reached - entry.offset:+d} bytes between tensors before {entry.name[:80]}",
                why="the format allows no holes: bytes could hide there",
            )
        reached = max(reached, end)
    if exact and reached != size_bytes:
        raise BadInput(
            f"{size_bytes - reached} bytes after the last tensor",
            why="the format ends with its last tensor; the file is damaged or carries something",
        )

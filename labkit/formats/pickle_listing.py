"""A PyTorch checkpoint's pickle: its tensors, and what loading it would run. Listed, never run.

    layout = read(Path("pytorch_model.bin"))
    layout.findings          # ("byte 27: would call os.system('curl …')", …)
    layout.tensors[0]        # found by following the program symbolically

A checkpoint is a zip (`labkit.formats.zip_directory`) of one pickle (`data.pkl`: a dict of calls to
`_rebuild_tensor_v2`, followed by `labkit.formats.pickle_program`) and one uncompressed file a
storage. Limits: theirs. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import BinaryIO

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
from labkit.formats.pickle_program import MAX_OPCODES, STORAGES, Call, Follow, Name, PersistentId
from labkit.formats.zip_directory import members


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
    if not _shares(entries):
        check_places([e for e in entries if e.offset >= 0], 0, size_bytes, exact=False)
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
    state: dict[str, object] = {}
    if isinstance(top, dict):
        state = top
    elif isinstance(top, Call):  # an OrderedDict: its items stand beside the call
        state = getattr(top, "__dict__", {}).get("items", {})
    entries = []
    for name, value in list(state.items())[:MAX_TENSORS]:
        if (
            isinstance(value, Call)
            and value.function == Name("torch._utils", "_rebuild_parameter")
            and isinstance(value.arguments, tuple)
            and value.arguments
        ):
            value = value.arguments[0]
        if not (
            isinstance(value, Call)
            and value.function == Name("torch._utils", "_rebuild_tensor_v2")
            and isinstance(value.arguments, tuple)
            and len(value.arguments) >= 4
        ):
            continue
        stored, offset, shape = value.arguments[:3]
        about = stored.about if isinstance(stored, PersistentId) else None
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
        stored_at = inside.get(f"{prefix}data/{about[2]}")
        size = element_count(shape, name) * width
        if stored_at is None or offset * width + size > stored_at[1]:
            raise BadInput(
                f"{name[:80]} lies outside its storage",
                why="truncated or forged; nothing was loaded",
            )
        entries.append(
            TensorEntry(
                name,
                about[1].name.removesuffix("Storage"),
                tuple(shape),
                stored_at[0] + offset * width,
                size,
            )
        )
    return sorted(entries, key=lambda e: e.offset)

"""A PyTorch checkpoint's pickle: its tensors, and what loading it would run. Listed, never run.

    layout = read(Path("pytorch_model.bin"))
    layout.findings          # ("byte 27: would call os.system('curl …')", …)
    layout.tensors[0]        # found by following the program symbolically

A checkpoint is a zip (`labkit.formats.zip_directory`) of one pickle (`data.pkl`: a dict of calls to
`_rebuild_tensor_v2`, followed by `labkit.formats.pickle_program`) and one uncompressed file a
storage; before PyTorch 1.6, pickles and storages in a row. Limits: theirs. Source:
torch/serialization.py. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
from collections.abc import Iterator
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
from labkit.formats.pickle_program import (
    DTYPES,
    MAX_OPCODES,
    STORAGES,
    Call,
    Follow,
    Name,
    PersistentId,
)
from labkit.formats.weight_files import NESTED_UNDER
from labkit.formats.zip_directory import members

#: Storage key -> (offset in the file, bytes).
Storages = dict[str, tuple[int, int]]
#: Calls that make a tensor of one storage -> how many arguments they have at least.
_PLACED = {"_rebuild_tensor": 3, "_rebuild_tensor_v2": 4, "_rebuild_tensor_v3": 7}
#: What torch before 1.6 begins a file with, and how many pickles stand there in a row.
_MAGIC, _PROGRAMS = 0x1950A86A20F9469CFC6C, 5


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
    folder = program_name.removesuffix("data.pkl") + "data/"
    storages = {
        name.removeprefix(folder): (offset, stored)
        for name, (offset, stored, _) in inside.items()
        if name.startswith(folder)
    }
    return _layout(follow, storages, size_bytes, length, path)


def _layout(
    follow: Follow, storages: Storages, size_bytes: int, header_bytes: int, path: str
) -> Layout:
    entries = sorted(_tensors(follow.result, storages), key=lambda entry: entry.offset)
    placed = [entry for entry in entries if entry.offset >= 0]
    # tied tensors of one storage lie over each other; that is no forgery in a pickle
    if len({entry.offset for entry in placed}) == len(placed):
        check_places(placed, 0, size_bytes, exact=False)
    return Layout(
        "pickle",
        path,
        size_bytes,
        header_bytes,
        tuple(entries),
        {"opcodes": follow.opcodes, "imports": sorted({str(n) for _, n in follow.names})[:100]},
        tuple(follow.findings()),
        common_alignment([entry.offset for entry in placed]),
    )


def _bare(file: BinaryIO, size_bytes: int, path: str) -> Layout:
    """Pickles without a zip. torch before 1.6 wrote five in a row – a magic number, the version,
    the host's facts, the checkpoint, the keys of its storages – and then these storages, each after
    its length."""
    file.seek(0)
    data = file.read(MAX_HEADER_BYTES)
    follow, at = Follow(), 0
    results: list[object] = []
    while (
        data[at : at + 1] == b"\x80"
        and follow.opcodes < MAX_OPCODES
        and (len(results) < _PROGRAMS or results[0] != _MAGIC)
    ):
        try:
            at += follow.run(data[at:])
        except BadInput:
            if at == 0:
                raise
            break
        results.append(follow.result)
    storages: Storages = {}
    if len(results) == _PROGRAMS and results[0] == _MAGIC and isinstance(results[4], list):
        follow.result = results[3]
        storages = _in_a_row(file, at, results[4], _sizes(follow.persistent), size_bytes)
    return _layout(follow, storages, size_bytes, at, path)


def _sizes(persistent: list[PersistentId]) -> dict[str, int]:
    """Storage key -> its bytes, as the program's references to it say."""
    found = {}
    for reference in persistent:
        about = reference.about
        if isinstance(about, tuple) and len(about) >= 5 and isinstance(about[1], Name):
            width, count = STORAGES.get(about[1].name, 0), about[4]
            if isinstance(about[2], str) and isinstance(count, int) and 0 <= count < 1 << 62:
                found[about[2]] = width * count
    return found


def _in_a_row(
    file: BinaryIO, at: int, keys: list[object], sizes: dict[str, int], size_bytes: int
) -> Storages:
    found: Storages = {}
    for key in keys[:MAX_TENSORS]:
        if not isinstance(key, str) or key not in sizes:
            raise BadInput(
                f"a storage {str(key)[:80]!r} that no tensor has",
                why="truncated or forged; nothing was loaded",
            )
        file.seek(at)
        if len(file.read(8)) < 8 or at + 8 + sizes[key] > size_bytes:
            raise BadInput(
                f"the storage {key[:80]} lies past the end",
                why="truncated or forged; nothing was loaded",
                fix="fetch the file again",
            )
        found[key] = (at + 8, sizes[key])
        at += 8 + sizes[key]
    return found


def _items(value: object) -> dict[str, object]:
    """Of a dict, or of an OrderedDict: its items stand beside the call."""
    if isinstance(value, Call):
        value = value.__dict__.get("items")
    return value if isinstance(value, dict) else {}


def _tensors(top: object, storages: Storages) -> Iterator[TensorEntry]:
    """Of a state dict, or of the one that a training framework's checkpoint holds."""
    state = _items(top)
    tensors = {name: call for name, value in state.items() if (call := _rebuilt(value))}
    for key in NESTED_UNDER if not tensors else ():
        nested = _items(state.get(key))
        tensors = tensors or {n: call for n, value in nested.items() if (call := _rebuilt(value))}
    for name, call in list(tensors.items())[:MAX_TENSORS]:
        assert isinstance(call.function, Name) and isinstance(call.arguments, tuple)
        if call.function.name in _PLACED:
            yield _entry(name, call, storages)
        else:  # of several tensors, or of none in this file
            yield TensorEntry(name, call.function.name.removeprefix("_rebuild_"), (), -1, 0)


def _rebuilt(value: object) -> Call | None:
    """The call that makes a tensor, if the value is one; a parameter's is inside its own."""
    while isinstance(value, Call) and isinstance(value.function, Name):
        name, arguments = value.function, value.arguments
        if name.module != "torch._utils" or not isinstance(arguments, tuple):
            return None
        if name.name in ("_rebuild_parameter", "_rebuild_parameter_with_state") and arguments:
            value = arguments[0]
        elif name.name in _PLACED and len(arguments) < _PLACED[name.name]:
            return None
        else:
            return value if name.name.startswith("_rebuild_") else None
    return None


def _entry(name: str, call: Call, storages: Storages) -> TensorEntry:
    arguments = call.arguments
    assert isinstance(arguments, tuple) and isinstance(call.function, Name)
    stored, offset, shape = arguments[:3]
    about = stored.about if isinstance(stored, PersistentId) else None
    if not (
        isinstance(about, tuple)
        and len(about) >= 5
        and isinstance(about[1], Name)
        and about[1].name in STORAGES
        and isinstance(about[2], str)
        and isinstance(offset, int)
        and 0 <= offset < 1 << 62
    ):
        raise BadInput(f"{name[:80]}: its storage is not one of PyTorch's")
    dtype, width = about[1].name.removesuffix("Storage"), STORAGES[about[1].name]
    if call.function.name == "_rebuild_tensor_v3":
        of = arguments[6]
        if not isinstance(of, Name) or of.module != "torch" or of.name not in DTYPES:
            raise BadInput(f"{name[:80]}: its dtype is not one of PyTorch's")
        dtype, width = of.name, DTYPES[of.name]
    place = storages.get(about[2])
    size = element_count(shape, name) * width
    if place is None or offset * width + size > place[1]:
        raise BadInput(
            f"{name[:80]} lies outside its storage",
            why="truncated or forged; nothing was loaded",
        )
    assert isinstance(shape, tuple)
    return TensorEntry(name, dtype, shape, place[0] + offset * width, size)

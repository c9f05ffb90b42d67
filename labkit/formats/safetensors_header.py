"""safetensors: eight bytes of length, that much JSON, then the tensors without a hole. The whole
format.

    layout = read(Path("model.safetensors"))
    parse(header_json, data_begin=…, size_bytes=…)      # the same from bytes that came out of a
        bucket

Nothing in it runs, which is why it exists. Still hostile: a length that lies, offsets over each
other or past the end, nesting, numbers without end. Limits are in `layout`. Source: the safetensors
README (format section); its own limit for the header is 100 MB, ours is 32 MiB because Python
objects are larger. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import json
import os
from operator import attrgetter
from pathlib import Path
from typing import Any, NoReturn

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
from labkit.formats.not_weights import instead_of_weights

#: Some 200 000 tensors; forged JSON of this size expands to below 2 GiB of Python objects.
MAX_HEADER_BYTES = 32 << 20
_KEYS = {"dtype", "shape", "data_offsets"}
#: dtype -> bits an element
BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}
#: safetensors dtype -> torch attribute
TORCH = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "F8_E5M2": "float8_e5m2",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E8M0": "float8_e8m0fnu",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "I16": "int16",
    "U16": "uint16",
    "F16": "float16",
    "BF16": "bfloat16",
    "I32": "int32",
    "U32": "uint32",
    "F32": "float32",
    "C64": "complex64",
    "F64": "float64",
    "I64": "int64",
    "U64": "uint64",
}


def header_length(first_eight: bytes, size_bytes: int) -> int:
    """The length of the JSON. Raises BadInput if the file cannot hold it."""
    if len(first_eight) < 8:
        raise BadInput(
            f"{size_bytes} bytes are too few for a safetensors file",
            why="it begins with eight bytes of length",
        )
    length = int.from_bytes(first_eight, "little")
    if length > size_bytes - 8:
        raise BadInput(
            f"the header says {length} bytes, the file has {size_bytes}",
            why="a truncated or forged file; nothing was loaded",
            fix="fetch the file again, then labkit model verify DIR",
        )
    if length > MAX_HEADER_BYTES:
        raise BadInput(
            f"a header of {length} bytes",
            why=f"real ones stay below {MAX_HEADER_BYTES}; this one could exhaust memory",
        )
    return length


def _once(pairs: list[tuple[str, Any]]) -> JsonObject:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise BadInput(
            "a name occurs twice in the header",
            why="readers would disagree on which tensor it means",
        )
    return entries


def _entry(name: str, about: object, begin: int) -> TensorEntry:
    if not isinstance(about, dict) or not about.keys() >= _KEYS:
        raise BadInput(
            f"{name[:80]}: a tensor has dtype, shape and data_offsets, this one has"
            f" {str(list(about))[:80] if isinstance(about, dict) else 'none'}"
        )
    if not isinstance(about["dtype"], str) or about["dtype"] not in BITS:
        raise BadInput(f"{name[:80]}: unknown dtype {str(about['dtype'])[:40]}")
    bits = element_count(about["shape"], name) * BITS[about["dtype"]]
    offsets = about["data_offsets"]
    if (
        not isinstance(offsets, list)
        or len(offsets) != 2
        or any(
            not isinstance(o, int) or isinstance(o, bool) or o < 0 or o >= 1 << 63 for o in offsets
        )
    ):
        raise BadInput(f"{name[:80]}: data_offsets are not two positions")
    if bits % 8 or offsets[1] - offsets[0] != bits // 8:
        raise BadInput(
            f"{name[:80]}: {offsets[1] - offsets[0]} bytes for a shape that needs {bits / 8:.10g}",
            why="shape and offsets contradict each other",
        )
    return TensorEntry(name, about["dtype"], tuple(about["shape"]), begin + offsets[0], bits // 8)


def parse(header: bytes, size_bytes: int, path: str = "") -> Layout:
    """`header`: the JSON without its length. `size_bytes`: of the whole file. Raises BadInput."""
    begin = 8 + len(header)
    try:
        doc = json.loads(header.decode("utf-8"), object_pairs_hook=_once, parse_constant=_refuse)
        if b"\\u" in header:  # half a character: no text that could be written or shown
            json.dumps(doc, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise BadInput("the header nests too deeply", why="a real one has two levels") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(
            f"the header is not JSON: {str(error)[:120]}",
            why="a truncated or forged file; nothing was loaded",
        ) from None
    if not isinstance(doc, dict):
        raise BadInput("the header is not a JSON object")
    metadata = doc.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or any(not isinstance(v, str) for v in metadata.values()):
        raise BadInput("__metadata__ is not a map of text to text")
    if len(doc) > MAX_TENSORS:
        raise BadInput(f"{len(doc)} tensors in one file", why=f"real ones stay below {MAX_TENSORS}")
    entries = sorted(
        (_entry(name, about, begin) for name, about in doc.items()),
        key=attrgetter("offset", "size_bytes"),
    )
    check_places(entries, begin, size_bytes, exact=True)
    together = common_alignment([e.offset for e in entries])
    findings = (
        ()
        if together >= 4096 or not entries
        else (
            (
                f"tensors are aligned to {together} bytes: a direct read needs a wider one and"
                " shifts them into place"
            ),
        )
    )
    return Layout(
        "safetensors", path, size_bytes, begin, tuple(entries), dict(metadata), findings, together
    )


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON")


def read(path: Path) -> Layout:
    """The layout of a file. Raises BadInput that names it, OSError."""
    with open(path, "rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        try:
            length = header_length(file.read(8), size_bytes)
            return parse(file.read(length), size_bytes, str(path))
        except BadInput as error:
            raise instead_of_weights(path) or BadInput(
                f"{path}: {error.what}",
                why=error.why or "nothing was loaded from it",
                fix=error.fix or "labkit model verify DIR, then fetch this file again",
            ) from None

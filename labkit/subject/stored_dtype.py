"""The dtype of a checkpoint whose config.json names none: its own, as transformers takes it.

    stored_dtype("/models/old")          # "float16": of its first floating tensor, by name

Limit: one header; of a pickle its program. Source: transformers, `get_state_dict_dtype`. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import BadInput
from labkit.formats import pickle_listing, safetensors_header, weight_files
from labkit.formats.layout import Layout
from labkit.subject.source import is_remote, read_optional, read_start

DTYPES = {
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F64": "float64",
    "Float": "float32",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Double": "float64",
}
#: Where no tensor tells: packed formats hold what they were given.
OTHERWISE = "bfloat16"


def stored_dtype(source: str | os.PathLike[str]) -> str:
    """Of a local directory or a bucket's prefix. Raises BadInput."""
    layout = _remote_layout(str(source)) if is_remote(source) else _local_layout(Path(source))
    if layout is None:
        return OTHERWISE
    tensors = layout.tensors
    if layout.format == "safetensors":
        tensors = tuple(sorted(tensors, key=lambda entry: entry.name))
    return next((DTYPES[entry.dtype] for entry in tensors if entry.dtype in DTYPES), OTHERWISE)


def _local_layout(directory: Path) -> Layout | None:
    weights = weight_files.local(directory)
    if weights.format == "safetensors":
        return safetensors_header.read(weights.paths[0])
    return pickle_listing.read(weights.paths[0]) if weights.format == "pickle" else None


def _remote_layout(source: str) -> Layout:
    single, index = weight_files.LAYOUT["safetensors"]
    raw = read_optional(source, index)
    name = sorted(weight_files.parse_index(raw, f"{source}/{index}").values())[0] if raw else single
    try:
        head, size_bytes = read_start(source, name, 8)
        length = safetensors_header.header_length(head, size_bytes)
        head, _ = read_start(source, name, 8 + length)
        return safetensors_header.parse(head[8:], size_bytes)
    except BadInput as error:
        raise BadInput(
            f"{source}/config.json names no dtype, and {name} does not tell: {error.what}",
            why="the model would be computed in another dtype than it was saved in",
            fix='add "torch_dtype" to config.json',
        ) from None

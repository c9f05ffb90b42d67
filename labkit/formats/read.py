"""The layout of a checkpoint file of any format, told by its first bytes and not by its name.

    layout = read_layout("model.safetensors")
    layout.tensors[0]                      # TensorEntry(name, dtype, shape, offset, size_bytes)

Limit: the header only; the tensors are never touched. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import BadInput
from labkit.formats import gguf_header, pickle_listing, safetensors_header
from labkit.formats.layout import Layout
from labkit.formats.not_weights import instead_of_weights


def sniff(path: str | os.PathLike[str]) -> str:
    """safetensors, gguf or pickle, by the first bytes. Raises BadInput."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise BadInput(f"{path}: {error.strerror}", fix="give a checkpoint file") from None
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:4] in (b"PK\x03\x04", b"PK\x05\x06") or (
        head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")
    ):
        return "pickle"
    if len(head) >= 9 and head[8:9] == b"{":
        return "safetensors"
    raise instead_of_weights(path) or BadInput(
        f"{path}: neither safetensors, GGUF nor pickle",
        why=f"it begins with {head[:9].hex(' ') or 'nothing'}",
        fix="labkit model inspect reads those three",
    )


def read_layout(path: str | os.PathLike[str]) -> Layout:
    """The layout of a file of any of the three formats. Raises BadInput."""
    readers = {
        "safetensors": safetensors_header.read,
        "gguf": gguf_header.read,
        "pickle": pickle_listing.read,
    }
    return readers[sniff(path)](Path(path))

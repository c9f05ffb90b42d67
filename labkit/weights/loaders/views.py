"""Tensors as views of memory that holds a file's bytes: no copy, the dtype of the header, the shape
of the header.

Limit: a view needs its address to be a multiple of its element size. Writers pad the header so that
it is; a tensor of a file that does not is copied. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import mmap
from typing import TYPE_CHECKING

from labkit.errors import BadInput
from labkit.formats.layout import TensorEntry
from labkit.formats.safetensors_header import TORCH

if TYPE_CHECKING:
    import torch


def torch_dtype(entry: TensorEntry) -> torch.dtype:
    import torch

    if entry.dtype not in TORCH or not hasattr(torch, TORCH[entry.dtype]):
        raise BadInput(f"{entry.name}: torch has no dtype for {entry.dtype}")
    dtype: torch.dtype = getattr(torch, TORCH[entry.dtype])
    return dtype


def view(memory: mmap.mmap | memoryview, entry: TensorEntry, at: int) -> torch.Tensor:
    """The tensor at byte `at` of a writable buffer (mmap, memoryview, …) that begins at an aligned
    address. The tensor keeps it alive."""
    import torch

    dtype = torch_dtype(entry)
    if not entry.size_bytes:
        return torch.empty(entry.shape, dtype=dtype)
    if at % dtype.itemsize:
        return (
            torch.frombuffer(memory, dtype=torch.uint8, count=entry.size_bytes, offset=at)
            .clone()
            .view(dtype)
            .view(entry.shape)
        )
    return torch.frombuffer(
        memory, dtype=dtype, count=entry.size_bytes // dtype.itemsize, offset=at
    ).view(entry.shape)

"""The loader that is there when none is named: simple, correct, no library but torch. The yardstick
of the real ones.

    load(model, DIR, "cpu")     # `--loader labkit.subject.plain:load`

One pread per tensor into a fresh tensor, then assigned; pickles through
`torch.load(weights_only=True)`. For what loading can be, see `labkit.weights`. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import os
from typing import Any

import torch

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.formats.safetensors_header import TORCH
from labkit.subject.directory import check, open_directory
from labkit.subject.llama import Llama
from labkit.subject.source import is_remote
from labkit.subject.state_dict import read_state_dict


def load(model: Llama, source: str, device: str, **options: Any) -> JsonObject:
    """Fill the model's parameters from a local directory. Returns facts. Raises BadInput."""
    if options:
        raise BadInput(
            f"the plain loader takes no options, got {', '.join(options)}",
            fix="name a loader: --loader MODULE:FUNCTION",
        )
    if is_remote(source):
        raise BadInput(
            f"{source}: the plain loader reads local directories",
            fix="name a loader that fetches: --loader labkit.weights.loaders.…",
        )
    where = open_directory(source, model.config)
    read_bytes = 0
    wanted = dict(model.named_parameters())
    if where.format == "safetensors":
        for file in where.files:
            descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            try:
                for name, at in where.tensors.items():
                    if at.file != file or name not in wanted:
                        continue
                    dtype = getattr(torch, TORCH.get(at.dtype, ""), None)
                    if dtype is None or not dtype.is_floating_point:
                        raise BadInput(
                            f"{file}: tensor {name} is {at.dtype}",
                            why="the reference server computes in floating point",
                            fix="use the unquantised model",
                        )
                    raw = torch.empty(at.end - at.start, dtype=torch.uint8)
                    read_bytes += _read(descriptor, raw, at.start, f"{file}: tensor {name}")
                    put(model, name, raw.view(dtype).reshape(at.shape), device)
            finally:
                os.close(descriptor)
    else:
        seen: dict[str, tuple[int, ...]] = {}
        for file in where.files:
            tensors = read_state_dict(file)
            for name, tensor in tensors.items():
                seen[name] = tuple(tensor.shape)
                if name in wanted and wanted[name].shape == tensor.shape:
                    read_bytes += tensor.numel() * tensor.element_size()
                    put(model, name, tensor, device)
        check(model.config, seen, where.path)
    return {"bytes_read": read_bytes, "files": len(where.files), "format": where.format}


def put(model: Llama, name: str, tensor: torch.Tensor, device: str) -> None:
    """Give the parameter `name` this data, in the parameter's dtype, on `device`."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    have = getattr(module, leaf)
    setattr(
        module,
        leaf,
        torch.nn.Parameter(tensor.to(device=device, dtype=have.dtype), requires_grad=False),
    )


def _read(descriptor: int, into: torch.Tensor, offset: int, name: str) -> int:
    view, done = into.numpy().data, 0
    while done < len(view):
        got = os.preadv(descriptor, [view[done : done + (1 << 30)]], offset + done)
        if not got:
            raise BadInput(
                f"{name}: the file ended {len(view) - done} bytes early",
                why="it was cut while it was read",
                fix="fetch the shard again",
            )
        done += got
    return done

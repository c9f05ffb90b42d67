"""safetensors, four ways. The file is the same; who reads it, when, and through which memory is
not.

    load         `load_file`: maps the file, tensors are views of the mapping; on CPU the bytes come
        at first touch
    load_pread   the whole shard read into one buffer of our own, tensors are views of it: loaded
        means loaded
    load_lazy    `safe_open`, one `get_tensor` a parameter: the way to read part of a checkpoint
    load_device  `load_file(device="cuda")`: through pageable memory, one tensor after the other

Limit: one pass over the bytes at the disk's rate, cold; at memory bandwidth or the cost of mapping
pages, warm. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.errors import BadInput
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer, with_index


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    from safetensors.torch import load_file

    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with span("load.read", file=path.name), refusing(path):
                tensors = load_file(path, device="cpu")
            with span("load.copy", file=path.name):
                placer.put_state(tensors)
        return placer.finish() | here.facts("safetensors")


def load_pread(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with span("load.read", file=path.name):
                tensors = _read_whole(path)
            with span("load.copy", file=path.name):
                placer.put_state(tensors)
        return placer.finish() | here.facts("safetensors-pread")


def _read_whole(path: Path) -> JsonObject:
    import torch

    from labkit.formats.safetensors_header import read
    from labkit.weights.loaders.views import view

    layout = read(path)
    into, at = torch.empty(layout.size_bytes, dtype=torch.uint8).numpy().data, 0
    with open(path, "rb", buffering=0) as file:
        while at < layout.size_bytes:
            got = file.readinto(into[at : at + (1 << 30)])
            if not got:
                raise BadInput(
                    f"{path.name} ended at {at} of {layout.size_bytes} bytes",
                    why="it changed while it was read; nothing was loaded",
                )
            at += got
        if os.fstat(file.fileno()).st_size != layout.size_bytes:
            raise BadInput(
                f"{path.name} changed its size while it was read",
                fix="load it again once nobody writes to it",
            )
    return {entry.name: view(into, entry, entry.offset) for entry in layout.tensors}


def load_lazy(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    from safetensors import safe_open

    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with (
                span("load.read", file=path.name),
                refusing(path),
                safe_open(path, framework="pt", device="cpu") as file,
            ):
                for name in file.keys():  # noqa: SIM118 - not a dict
                    placer.put(name, file.get_tensor(name))
        return placer.finish() | here.facts("safetensors-lazy")


def load_device(model: Model, source: str, device: str = "cuda", **_: Any) -> JsonObject:
    from safetensors.torch import load_file

    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with span("load.read", file=path.name), refusing(path):
                tensors = load_file(path, device=with_index(device))
            placer.put_state(tensors)
        return placer.finish() | here.facts("safetensors-device")

"""`gguf`: one file, read tensor by tensor, each dequantised to the model's dtype on the way in.

Limit: fewer bytes to read (Q8_0 half of BF16, Q4_0 a quarter), more work a byte: unpacking runs at
numpy's speed on one core, and F16 is converted too when the model is BF16. llama.cpp does not do
this – it computes on the packed blocks. Header reader: ours (the `gguf` package's spends 1.2 s on a
32k vocabulary). Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.errors import BadInput
from labkit.formats.gguf_header import read
from labkit.formats.gguf_names import heads_of, to_halves, to_public
from labkit.formats.layout import Layout
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer

if TYPE_CHECKING:
    import torch


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    with local_shards(source, "gguf") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with span("load.read", file=path.name):
                layout = read(path)
                with refusing(path):
                    for name, tensor in tensors(path, layout):
                        placer.put(name, tensor)
        return placer.finish() | here.facts("gguf")


def tensors(path: Path, layout: Layout) -> Iterator[tuple[str, torch.Tensor]]:
    """(public name, tensor) in file order: dequantised to float32, plain types as they are, rows in
    the public order."""
    import gguf
    import numpy as np
    import torch

    architecture = layout.metadata.get("general.architecture", "llama")
    heads = int(layout.metadata.get(f"{architecture}.attention.head_count", 1))
    kv_heads = int(layout.metadata.get(f"{architecture}.attention.head_count_kv", heads))
    for entry in layout.tensors:
        public = to_public(entry.name)
        if public is None:
            if entry.name == "rope_freqs.weight":
                continue
            public = entry.name
        raw = np.fromfile(path, dtype=np.uint8, count=entry.size_bytes, offset=entry.offset)
        if raw.nbytes != entry.size_bytes:
            raise BadInput(
                f"{path} ended within {entry.name}",
                why="it was truncated while it was read; nothing was loaded",
            )
        if entry.dtype in ("F32", "F16"):
            tensor = torch.from_numpy(
                raw.view(entry.dtype.replace("F", "float")).reshape(entry.shape)
            )
        elif entry.dtype == "BF16":
            tensor = torch.from_numpy(raw).view(torch.bfloat16).reshape(entry.shape)
        else:
            tensor = torch.from_numpy(
                gguf.quants.dequantize(
                    raw, getattr(gguf.GGMLQuantizationType, entry.dtype)
                ).reshape(entry.shape)
            )
        turned = heads_of(public, heads, kv_heads) if architecture == "llama" else 0
        yield public, to_halves(tensor, turned).contiguous() if turned else tensor

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
        placer, first = Placer(model, device), None
        for number, path in enumerate(here.paths):
            with span("load.read", file=path.name):
                layout = read(path)
                _check_part(path, layout, number, len(here.paths))
                first = first or layout
                with refusing(path):
                    for name, tensor in tensors(path, layout, first):
                        placer.put(name, tensor)
        return placer.finish() | here.facts("gguf")


def _check_part(path: Path, layout: Layout, number: int, count: int) -> None:
    """A file by itself, or the part of one that its name says. Raises BadInput."""
    says = layout.metadata.get("split.no", 0), layout.metadata.get("split.count", 0) or 1
    if says != (number, count):
        raise BadInput(
            f"{path}: file {number} of {count}, counted from 0; its header says {says[0]} of"
            f" {says[1]}",
            why="parts are missing, or of two models; nothing was loaded",
            fix="fetch all parts again, under the names that llama-gguf-split gave them",
        )


def _reordered(path: Path, layout: Layout) -> tuple[int, int]:
    """(heads, key/value heads) whose rows llama.cpp keeps in another order; (0, 0) where it does
    not. Raises BadInput for an architecture that stores other values under these names."""
    architecture = layout.metadata.get("general.architecture")
    if architecture == "qwen2":
        return 0, 0
    heads = layout.metadata.get("llama.attention.head_count")
    kv_heads = layout.metadata.get("llama.attention.head_count_kv", heads)
    if architecture != "llama" or not isinstance(heads, int) or not isinstance(kv_heads, int):
        raise BadInput(
            f"{path}: general.architecture {str(architecture)[:40]!r} with {str(heads)[:40]} heads",
            why="llama and qwen2 are loaded: others keep norms, biases or rows in another form",
            fix="serve it with llama.cpp: labkit run --command …",
        )
    return heads, kv_heads


def tensors(
    path: Path, layout: Layout, first: Layout | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """(public name, tensor) in file order: dequantised to float32, plain types as they are, rows in
    the public order. `first`: of a file in parts, the one with the model's keys."""
    import gguf
    import numpy as np
    import torch

    heads, kv_heads = _reordered(path, first or layout)
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
        if entry.dtype in ("F64", "F32", "F16"):
            tensor = torch.from_numpy(
                raw.view(entry.dtype.replace("F", "float")).reshape(entry.shape)
            )
        elif entry.dtype == "BF16":
            tensor = torch.from_numpy(raw).view(torch.bfloat16).reshape(entry.shape)
        else:
            try:
                plain = gguf.quants.dequantize(raw, getattr(gguf.GGMLQuantizationType, entry.dtype))
            except NotImplementedError:
                raise BadInput(
                    f"{path}: {entry.name} is {entry.dtype}",
                    why="the gguf package does not unpack this type",
                    fix="llama-quantize --allow-requantize FILE OUT Q8_0",
                ) from None
            tensor = torch.from_numpy(plain.reshape(entry.shape))
        turned = heads_of(public, heads, kv_heads)
        yield public, to_halves(tensor, turned).contiguous() if turned else tensor

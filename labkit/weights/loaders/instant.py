"""`instanttensor`: safetensors straight into GPU memory through a ring of device buffers. CUDA
only.

Limit: the slower of storage and PCIe. Its default copies each tensor out of the ring (`copy=True`),
so that none is overwritten. Source: the package's own documentation of `safe_open`. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer, with_index


def load(model: Model, source: str, device: str = "cuda", **_: Any) -> JsonObject:
    with span("load.library"):
        from instanttensor import safe_open

    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        with (
            span("load.stream"),
            refusing(*here.paths),
            safe_open(
                [str(p) for p in here.paths], framework="pt", device=with_index(device)
            ) as files,
        ):
            for name, tensor in files.tensors():
                placer.put(name, tensor)
        return placer.finish() | here.facts("instanttensor")

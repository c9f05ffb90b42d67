"""`fastsafetensors`: IBM's loader. Whole files into one device buffer by several threads, then tensors as views of it.

Limit: one pass over the bytes, plus – where a view is copied out – device memory for both. With a GPU and GPUDirect
Storage the host's memory is left out; without, a bounce buffer (`nogds=True`), which is also its way on a CPU.
Source: foundation-model-stack/fastsafetensors. Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

from typing import Any

from labkit.core.timeline import span
from labkit.weights.loaders.nearby import local_shards, refusing
from labkit.weights.loaders.placing import Placer, with_index


def load(model: Any, source: str, device: str = "cpu", **_: Any) -> dict[str, Any]:
    with span("load.library"):
        from fastsafetensors import fastsafe_open

    with local_shards(source, "safetensors") as here:
        placer = Placer(model, device)
        with span("load.read"), refusing(here.paths[0].parent), fastsafe_open([str(p) for p in here.paths], device=with_index(device), nogds=True) as files:
            for name in files.keys():  # noqa: SIM118 - not a dict
                placer.put(name, files.get_tensor(name))
        return placer.finish() | here.facts("fastsafetensors")

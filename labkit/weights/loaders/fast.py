"""`fastsafetensors`: IBM's loader. Whole files into one device buffer by several threads, then
tensors as views of it.

Limit: one pass over the bytes, plus – where a view is copied out – device memory for both. With a
GPU and GPUDirect Storage the host's memory is left out; without, a bounce buffer (`nogds=True`),
which is also its way on a CPU. Source: foundation-model-stack/fastsafetensors. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

from typing import Any

from labkit.core import proc
from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer, with_index


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    with span("load.library"):
        from fastsafetensors import fastsafe_open

        if device.startswith("cuda"):
            runtime_of_torch()
    with local_shards(source, "safetensors") as checkpoint:
        placer = Placer(model, device)
        with (
            span("load.read"),
            refusing(*checkpoint.paths),
            fastsafe_open(
                [str(p) for p in checkpoint.paths], device=with_index(device), nogds=True
            ) as files,
        ):
            for name in files.keys():  # noqa: SIM118 - not a dict
                placer.put(name, files.get_tensor(name))
        return placer.finish() | checkpoint.facts("fastsafetensors")


def runtime_of_torch() -> str:
    """It asks the linker for libcudart.so, which a CUDA toolkit has; a torch with the runtime in a
    package of its own has libcudart.so.N only, and the load would end with "no GPU". Then it is
    told where that is, and the path given back; "" where nothing was needed."""
    import ctypes

    try:
        ctypes.CDLL("libcudart.so")
        return ""
    except OSError:
        pass
    library = next((path for path in proc.mapped_files() if "libcudart.so" in path), "")
    if library:
        from fastsafetensors import cpp
        from fastsafetensors.copier import nogds

        cpp.load_library_functions(library)
        nogds._loaded_library = True
    return library

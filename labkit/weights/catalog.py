"""Every way of loading the lab knows, as data: what to call, which format it reads, what it needs,
how it shows itself.

    LOADERS["safetensors"].call      # "labkit.weights.loaders.safe:load"
    LOADERS["tensorizer"].missing()  # "" where the package is installed

All loaders keep one contract – `load(model, source, device, **options) -> facts` into a model built
on the meta device, bit-identical parameters, no tensor that a later read overwrites – and one test
runs it over all of them (tests/contract/test_loaders.py). Lesson: notebooks/05_streaming."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Loader:
    """`reads`: how it takes local files – "map" (weight files stay mapped), "read" (calls), "any"
    (depends on the cache).

    `init`: how the model is built for it where the stack says nothing of that ("meta", "random").

    `library`: part of a path in /proc/PID/maps that shows its own library is loaded. `module`:
    importable package it needs."""

    name: str
    title: str
    call: str
    format: str
    reads: str
    lesson: str = "notebooks/05_streaming"
    init: str = "meta"
    module: str = ""
    fix: str = ""
    library: str = ""
    remote: bool = False  # reads s3:// itself
    needs_gpu: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)

    def missing(self, gpu: bool | None = None) -> str:
        """What it lacks here, or "". Looks for packages without importing them."""
        if self.module and importlib.util.find_spec(self.module) is None:
            return f"the package {self.module.replace('_', '-')}"
        if self.needs_gpu and not (_gpu() if gpu is None else gpu):
            return "a CUDA GPU"
        return ""


def _gpu() -> bool:
    from labkit.core.capabilities import capability

    return bool(capability("gpu").ok)


_04 = "notebooks/04_model_formats"

_05 = "notebooks/05_streaming"
_HERE = "labkit.weights.loaders."

LOADERS: dict[str, Loader] = {
    loader.name: loader
    for loader in (
        Loader(
            "pickle",
            "torch.load a shard, load_state_dict: read, unpickle, copy",
            _HERE + "pickled:load",
            "pickle",
            "read",
            _04,
            init="random",
        ),
        Loader(
            "pickle-mmap",
            "torch.load(mmap=True): tensors are views of the mapped file",
            _HERE + "pickled:load_mmap",
            "pickle",
            "map",
            _04,
        ),
        Loader(
            "safetensors",
            "load_file: tensors are views of the mapped file",
            _HERE + "safe:load",
            "safetensors",
            "map",
            _04,
        ),
        Loader(
            "safetensors-pread",
            "each shard read into one buffer, tensors are views of it",
            _HERE + "safe:load_pread",
            "safetensors",
            "read",
            _04,
        ),
        Loader(
            "safetensors-lazy",
            "safe_open, one tensor at a time",
            _HERE + "safe:load_lazy",
            "safetensors",
            "map",
            _04,
        ),
        Loader(
            "safetensors-device",
            "load_file(device='cuda')",
            _HERE + "safe:load_device",
            "safetensors",
            "any",
            _04,
            needs_gpu=True,
            fix="run it on a host with an NVIDIA GPU and its driver",
        ),
        Loader(
            "gguf",
            "one file with its tokenizer, in F16",
            _HERE + "ggufs:load",
            "gguf:F16",
            "read",
            _04,
            module="gguf",
            fix="pip install gguf",
        ),
        Loader(
            "runai-streamer",
            "Run:ai's streamer at its defaults, from disk or bucket",
            _HERE + "runai:load",
            "safetensors",
            "read",
            _05,
            module="runai_model_streamer",
            fix="pip install 'runai-model-streamer[s3,gcs]'",
            library="libstreamer",
            remote=True,
        ),
        Loader(
            "fastsafetensors",
            "whole files by several threads, tensors as views",
            _HERE + "fast:load",
            "safetensors",
            "read",
            _05,
            module="fastsafetensors",
            fix="pip install 'labkit[rivals]'",
            library="fastsafetensors",
        ),
        Loader(
            "tensorizer",
            "CoreWeave's own format and deserializer",
            _HERE + "tensorized:load",
            "tensorizer",
            "read",
            _05,
            module="tensorizer",
            fix="pip install 'labkit[rivals]'",
        ),
        Loader(
            "instanttensor",
            "through a ring of GPU buffers",
            _HERE + "instant:load",
            "safetensors",
            "any",
            _05,
            module="instanttensor",
            fix="pip install 'labkit[gpu]' on a GPU host",
            library="instanttensor",
            needs_gpu=True,
        ),
        Loader(
            "sdk-download",
            "boto3's transfer manager to disk, then load_file",
            _HERE + "sdk:load",
            "safetensors",
            "map",
            _05,
            module="boto3",
            fix="pip install 'labkit[rivals]'",
            remote=True,
        ),
        Loader(
            "labkit-streamer",
            "the lab's own: planned, parallel, mapped or direct by cache and disk",
            "labkit.weights.streamer:load",
            "safetensors",
            "any",
            _05,
            remote=True,
        ),
    )
}

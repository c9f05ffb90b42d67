"""`tensorizer`: CoreWeave's format and deserializer, its settings at their defaults.

Limit: one pass over the bytes in file order, several readers. Its own format: the checkpoint is
converted first, and that is part of the trade. Source: coreweave/tensorizer. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    with span("load.library"):
        from tensorizer import TensorDeserializer

    with local_shards(source, "tensorizer") as here:
        placer = Placer(model, device)
        for path in here.paths:
            with (
                span("load.read", file=path.name),
                refusing(path),
                TensorDeserializer(str(path), device=device) as tensors,
            ):
                for name in tensors.keys():  # noqa: SIM118 - not a dict
                    placer.put(name, tensors[name].detach())
        return placer.finish() | here.facts("tensorizer")

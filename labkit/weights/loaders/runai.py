"""`runai-streamer`: NVIDIA Run:ai's C++ streamer, its settings at their defaults. Files, `s3://`,
`gs://`.

Limit: as ours – one pass over the bytes. By default it reads local files past the page cache
(io_uring, direct), so a warm cache gains nothing, and allocates numpy buffers, which ask for huge
pages: on a fragmented host the kernel compacts memory at every fault. `NUMPY_MADVISE_HUGEPAGE=0`
removes that; it is left out here on purpose, as an exercise.

    load(model, "s3://lab/models/small", "cpu")       # AWS_ENDPOINT_URL and credentials from the
        environment

Source: run-ai/runai-model-streamer, docs/src/usage.md. Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.placing import Model, Placer, with_index
from labkit.weights.source import open_source


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    with span("load.library"):
        from runai_model_streamer import SafetensorsStreamer

    opened = open_source(source)
    names = opened.shards("safetensors")
    placer = Placer(model, device)
    with (
        span("load.stream", shards=len(names)),
        refusing(*map(opened.address, names)),
        SafetensorsStreamer() as streamer,
    ):
        streamer.stream_files([opened.address(name) for name in names], device=with_index(device))
        for name, tensor in streamer.get_tensors():
            placer.put(name, tensor)
    return placer.finish() | {
        "loader": "runai-streamer",
        "shards": len(names),
        "remote": opened.remote,
    }

"""`sdk-download`: the cloud SDK's transfer manager (boto3, s3transfer at its defaults) to local
disk, then `load_file`.

Parallel parts fill the link, but the first byte is looked at after the last has been written to
disk. Source: boto3 guide, "File transfer configuration". Lesson: notebooks/05_streaming."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.errors import BadInput
from labkit.formats.not_weights import refusing
from labkit.weights.loaders.placing import Model, Placer
from labkit.weights.source import open_source


def load(model: Model, source: str, device: str = "cpu", **_: Any) -> JsonObject:
    opened = open_source(source)
    names = opened.shards("safetensors")
    if opened.remote and not opened.root.startswith("s3://"):
        raise BadInput(
            f"{opened.root}: the SDK takes s3://", fix="labkit-streamer reads http:// too"
        )
    placer = Placer(model, device)
    with tempfile.TemporaryDirectory(prefix="labkit-model-") as scratch:
        if opened.remote:
            with span("load.library"):
                import boto3
                from botocore.config import Config
            with span("load.download", shards=len(names)), refusing(opened.root):
                client = boto3.client("s3", config=Config(s3={"addressing_style": "path"}))
                bucket, _slash, prefix = opened.root.removeprefix("s3://").partition("/")
                for name in names:
                    client.download_file(bucket, f"{prefix}/{name}", f"{scratch}/{name}")
        from safetensors.torch import load_file

        for name in names:
            path = Path(scratch) / name if opened.remote else opened.path(name)
            with span("load.read", file=name), refusing(path):
                placer.put_state(load_file(path))
        return placer.finish() | {"loader": "sdk-download", "shards": len(names)}

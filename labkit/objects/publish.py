"""A model directory as a prefix in the embedded store, by hard link: 16 GB are published in
milliseconds.

    publish_model("/srv/bucket", "models/small", "models/small-safetensors")   #
        s3://lab/models/small-safetensors

    upload_model("s3://my-bucket/lab", "models/small", "models/small-safetensors")   # a real
        bucket: the bytes cross the network

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.objects.access import BUCKET
from labkit.objects.disk import Disk
from labkit.objects.hardlink import link_or_copy


def publish_model(
    root: str | os.PathLike[str],
    model_dir: str | os.PathLike[str],
    key: str,
    *,
    bucket: str = BUCKET,
) -> JsonObject:
    """Every file below `model_dir` as `bucket/key/…`, linked where the file system can. Safe to
    repeat, also while serving.

    Hard-linked files share their bytes: convert into a new directory, never edit a published file
    in place."""
    source = Path(model_dir)
    if not source.is_dir():
        raise BadInput(f"no model directory {source}", fix="labkit model make --preset small DIR")
    disk = Disk(root)
    disk.make_bucket(bucket)
    facts: JsonObject = {
        "url": f"s3://{bucket}/{key.strip('/')}",
        "objects": 0,
        "size_bytes": 0,
    }
    for path in sorted(source.rglob("*")):
        if not path.is_file():
            continue
        target = disk.path(bucket, f"{key.strip('/')}/{path.relative_to(source).as_posix()}")
        how = link_or_copy(path, target)
        facts[how] = facts.get(how, 0) + 1
        facts["objects"] += 1
        facts["size_bytes"] += path.stat().st_size
    if not facts["objects"]:
        raise BadInput(
            f"no file in {source}",
            why="nothing was published, and nothing would be read from there",
            fix="labkit model make --preset small DIR",
        )
    return facts


def upload_model(
    store: str, model_dir: str | os.PathLike[str], key: str, env: Mapping[str, str] | None = None
) -> JsonObject:
    """The same into a bucket outside of the lab (`s3://bucket/prefix`, `gs://…`), with the
    environment's credentials.

    What is there under its name with the same size is left alone: the key holds a digest of the
    content. Raises TransferError."""
    from labkit.objects.client import open_bucket

    facts: JsonObject = {"url": f"{store}/{key}", "objects": 0, "size_bytes": 0, "kept": 0}
    files = sorted(p for p in Path(model_dir).rglob("*") if p.is_file())
    if not files:
        raise BadInput(
            f"no file in {model_dir}",
            why="nothing would be read from there",
            fix="labkit model make --preset small DIR",
        )
    with open_bucket(store, env) as bucket:
        for path in files:
            name, size = f"{key}/{path.relative_to(model_dir).as_posix()}", path.stat().st_size
            there = bucket.head(name)
            if there is not None and there.size_bytes == size:
                facts["kept"] += 1
            else:
                bucket.put_file(name, path)
            facts["objects"] += 1
            facts["size_bytes"] += size
    return facts

"""Local files for loaders that only read local files: a remote checkpoint is downloaded to disk
first, one stream, and that is part of their load. What it costs is the point of `runai-streamer`
and `labkit-streamer`, which do not.

    with local_shards("s3://lab/models/small", "safetensors") as here:
        for path in here.paths: …

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.errors import TransferError
from labkit.weights.source import CheckpointSource, open_source


class LocalCheckpoint(NamedTuple):
    paths: list[Path]
    downloaded_bytes: int

    def facts(self, loader: str) -> JsonObject:
        return {
            "loader": loader,
            "shards": len(self.paths),
            "downloaded_bytes": self.downloaded_bytes,
        }


@contextmanager
def local_shards(source: str, format: str) -> Iterator[LocalCheckpoint]:
    """The checkpoint's shards as local files; what was downloaded is removed at the end (mappings
    of it stay valid)."""
    opened = open_source(source)
    names = opened.shards(format)
    if not opened.remote:
        yield LocalCheckpoint([opened.path(name) for name in names], 0)
        return
    scratch = Path(tempfile.mkdtemp(prefix="labkit-model-"))
    try:
        with span("load.download", shards=len(names)) as facts:
            facts["bytes"] = sum(download(opened, name, scratch / name) for name in names)
        yield LocalCheckpoint([scratch / name for name in names], facts["bytes"])
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def download(source: CheckpointSource, name: str, target: Path) -> int:
    """One GET, one stream, to disk: what a script does with the first HTTP client at hand. Raises
    TransferError."""
    from labkit.net.client import HTTPStatusError, fix_of
    from labkit.net.http import ConnectionLost

    url, view = source.url(name), memoryview(bytearray(1 << 20))
    try:
        with (
            source.client() as client,
            client.open("GET", url) as (_, connection),
            open(target, "wb") as file,
        ):
            while got := connection.read_into(view):
                file.write(view[:got])
            return file.tell()
    except HTTPStatusError as error:
        raise TransferError(f"{url}: {error}", fix=fix_of(error.answer.status)) from None
    except ConnectionLost as error:
        raise TransferError(
            f"{url}: {error}",
            why="nothing was loaded",
            fix="check AWS_ENDPOINT_URL and that the store is up",
        ) from None

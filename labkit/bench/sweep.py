"""How many at once? Direct reads of a disk, ranges of a bucket: time against requests in flight,
beside the floor.

    disk([path], depths=(1, 4, 16), repeats=3)           # [{"readers": 1, "seconds": […]}, …]
    bucket(directory, "4gbit-bucket", (1, 4, 16))        # ([{"connections": 1, "seconds": […]}, …],
        floor_s, link label)

Limit: latency × requests ÷ in flight, until bandwidth takes over. Rounds are interleaved. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from labkit.bench.engine import rounds
from labkit.core import cold, rates
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.formats.weight_files import local

PART_BYTES = 1 << 20


def disk(
    paths: Sequence[str | os.PathLike[str]],
    depths: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 3,
    block_bytes: int = 1 << 20,
) -> list[JsonObject]:
    """Seconds to read all files past the page cache with so many readers."""

    def read_s(readers: int) -> float:
        cold.evict(paths, caches=False)
        return rates.direct_read(paths, readers, block_bytes=block_bytes)[1]

    return rounds("readers", depths, repeats, read_s)


def bucket(
    directory: str | os.PathLike[str],
    link: str,
    connections: Sequence[int] = (1, 2, 4, 8, 16),
    repeats: int = 1,
    part_bytes: int = PART_BYTES,
) -> tuple[list[JsonObject], float, str]:
    """Seconds to fetch a model's largest shard into memory over so many connections of an emulated
    link; floor; label."""
    from labkit.net.client import Client
    from labkit.net.link import parse
    from labkit.net.parts import Into, plan
    from labkit.net.ranges import RangeOptions, fetch_parts
    from labkit.net.serving import serving
    from labkit.objects.publish import publish_model

    weights = local(directory, "safetensors")
    shards = [weights.directory / name for name in weights.names]
    shard = max(shards, key=lambda p: p.stat().st_size)
    size, link_model = shard.stat().st_size, parse(link)
    with scratch("labkit-bucket-", Path(directory).parent) as root:
        publish_model(root, directory, "models/sweep")
        memory = memoryview(bytearray(size))
        with serving("store", root, link=link) as store:
            parts = plan(f"{store.url}/lab/models/sweep/{shard.name}", size, part_bytes)

            def fetch_s(count: int) -> float:
                with Client() as client:
                    start_s = time.monotonic()
                    fetch_parts(client, parts, Into.buffer(memory), RangeOptions(connections=count))
                    return time.monotonic() - start_s

            rows = rounds("connections", connections, repeats, fetch_s)
    return rows, link_model.floor_s(size, 10**6) if link_model.shaped else 0.0, link_model.label

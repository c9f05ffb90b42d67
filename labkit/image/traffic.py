"""Bytes of image blobs that a registry or a bucket sent, from its counters.

    traffic = blob_traffic(seen.stores.get("registry", {})); traffic.bytes_sent

Limit: none. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class BlobTraffic(NamedTuple):
    bytes_sent: int
    requests: int
    blobs: int


def blob_traffic(stats: Mapping[str, Any]) -> BlobTraffic:
    """`stats`: of the server's /_labkit/stats; manifests are not counted."""
    counts = [c for path, c in stats.get("by_path", {}).items() if "/blobs/" in path]
    return BlobTraffic(
        sum(c.get("bytes_sent", 0) for c in counts),
        sum(c.get("requests", 0) for c in counts),
        len(counts),
    )

"""What a mount did, as counters in a JSON file: bytes by the reason they were fetched, hits,
waiting.

    {"bytes": {"demand": …, "prefetch": …, "background": …, "toc": …},
     "hits": {"memory": …, "disk": …, "network": …},
     "blocked_s": …, "reads": …, "read_bytes": …, "requests": {"LOOKUP": …},
     "errors": …, "corrupt": …, …}

The file is replaced in one step about twice a second while something changes, and at the end.
Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any


class Stats:
    def __init__(self, path: str | os.PathLike[str] | None = None, **about: object):
        self.path, self.about = (Path(path) if path else None), about
        self.bytes: Counter[str] = Counter()
        self.hits: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.blocked_s = 0.0
        self.touched: set[str] = set()  # digests of chunks served
        self.touched_bytes = 0
        self.started_s = time.monotonic()
        self._lock = threading.Lock()
        self._last = ""

    def add(self, counter: Counter[str], key: str, amount: int = 1) -> None:
        with self._lock:
            counter[key] += amount

    def blocked(self, seconds: float) -> None:
        with self._lock:
            self.blocked_s += seconds

    def touch(self, digest: str, size_bytes: int) -> None:
        if digest not in self.touched:
            with self._lock:
                self.touched.add(digest)
                self.touched_bytes += size_bytes

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            fetched = {k: self.bytes[k] for k in ("demand", "prefetch", "background", "toc")}
            return {
                **self.about,
                "bytes": fetched,
                "fetched_bytes": sum(fetched.values()),
                "hits": {k: self.hits[k] for k in ("memory", "disk", "network")},
                "blocked_s": round(self.blocked_s, 4),
                "touched_chunks": len(self.touched),
                "touched_bytes": self.touched_bytes,
                **{
                    k: self.counts[k]
                    for k in (
                        "reads",
                        "read_bytes",
                        "errors",
                        "corrupt",
                        "retries",
                        "hedged",
                        "fetches",
                    )
                },
                "requests": dict(self.requests),
            }

    def write(self) -> None:
        """Replace the file if anything changed."""
        if self.path is None:
            return
        body = json.dumps(self.as_json(), separators=(",", ":"), default=str)
        if body == self._last:
            return
        part = self.path.with_name(f".{self.path.name}-{os.getpid()}")
        part.write_text(
            body[:-1]
            + f',"at_s":{time.monotonic():.3f},"up_s":{time.monotonic() - self.started_s:.3f}}}'
        )
        os.replace(part, self.path)
        self._last = body


def prefetched(path: str | os.PathLike[str]) -> Path:
    """The file that appears beside the counters when a mount has what a recorded start touched."""
    return Path(path).with_suffix(".prefetched")


def read(path: str | os.PathLike[str]) -> dict[str, Any]:
    """{} where there are none yet."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return {}

"""Ranges of blobs on their way from a source to this disk: resumed after breaks, held back while
readers wait.

    transfers = Transfers(layers, source, stats)
    stream = Stream(layer=0, at=0, end=1 << 20, reason="background", moved_s=now)
    transfers.deliver(stream, deadline_s=inf)

Three reasons share the link: `demand` (somebody waits), `prefetch` and `background`; the last two
stop reading while a demand is under way, and the store stops sending once the window is full.
`moved` is the one lock of a mount's transfers: everything below is changed under it, and a change
is announced on it. What a reader gets when a source is gone: labkit.image.lazyfs.feed.
Limit: the link. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from labkit.errors import LabError
from labkit.image.estargz.toc import Chunk
from labkit.image.lazyfs.cache import Blob
from labkit.image.lazyfs.remote import Busy, LayerSource, Refused
from labkit.image.lazyfs.stats import Stats

log = logging.getLogger("labkit.lazyfs")

NEAR_BYTES = 256 << 10
NEAR_S = 0.03


@dataclass
class LayerFeed:
    """One layer: its blob on disk, its chunks by position, the ranges to prefetch (in order)."""

    digest: str
    blob: Blob
    chunks: list[Chunk]
    prefetch: list[tuple[int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chunks = sorted(self.chunks)
        self.starts = [c.start for c in self.chunks]


@dataclass(eq=False)
class Stream:
    """A transfer under way: [start, end) of a layer, delivered up to `at`."""

    layer: int
    at: int
    end: int
    reason: str
    moved_s: float
    rate_bytes_per_s: float = 0.0
    hedged: bool = False
    over: bool = False

    def soon(self, end: int) -> bool:
        return self.at < end <= self.end and end - self.at <= max(
            NEAR_BYTES, self.rate_bytes_per_s * NEAR_S
        )


class Transfers:
    """`on_prefetched(layer, low, high)`: bytes that were fetched ahead of any reader have
    arrived."""

    def __init__(
        self,
        layers: list[LayerFeed],
        source: LayerSource,
        stats: Stats,
    ):
        self.layers, self.source, self.stats = layers, source, stats
        self.on_prefetched: Callable[[int, int, int], None] = lambda *_: None
        self.moved = threading.Condition()
        self.streams: list[Stream] = []
        self.queue: deque[Stream] = deque()  # of demands that no connection has taken up yet
        self.demand = 0  # readers waiting for the network
        self.demand_s = time.monotonic()  # when somebody last asked for anything
        self.problem: dict[int, str] = {}  # layer -> what its last request met
        self.refusals: Counter[int] = Counter()  # layer -> demands refused for good
        self.heard_s = time.monotonic()  # when the last byte came
        self.gone = False
        self.probes = 0  # reads since the source is gone: each has it asked anew
        self.closed = False

    def close(self) -> None:
        self.closed = True
        with self.moved:
            self.moved.notify_all()

    def deliver(self, stream: Stream, deadline_s: float) -> bool:
        """Bring a stream's range to disk, resuming after breaks, until the deadline or a
        refusal."""
        pause_s = 0.05
        try:
            while stream.at < stream.end and not self.closed:
                try:
                    self._pull(stream)
                    self.problem.pop(stream.layer, None)
                except (LabError, OSError, ValueError) as error:
                    if self.closed:
                        return False
                    self.problem[stream.layer] = str(getattr(error, "what", error))
                    if isinstance(error, Refused):
                        log.warning(
                            "blob %s of %s: %s; not asked again for this",
                            self.layers[stream.layer].digest,
                            self.source.name,
                            error.what,
                        )
                        if stream.reason == "demand":
                            with self.moved:
                                self.refusals[stream.layer] += 1
                        return False
                    self.stats.add(self.stats.counts, "retries")
                    wait_s = max(error.retry_after_s, 0.01) if isinstance(error, Busy) else pause_s
                    pause_s = min(pause_s * 2, 2.0)
                    if time.monotonic() + wait_s >= deadline_s:
                        if not self.gone:
                            log.warning(
                                "blob %s of %s: %s; giving this request up",
                                self.layers[stream.layer].digest,
                                self.source.name,
                                error,
                            )
                        return False
                    self._pause(wait_s)
            return True
        finally:
            with self.moved:
                stream.over = True
                if stream in self.streams:
                    self.streams.remove(stream)
                self.moved.notify_all()

    def _pause(self, wait_s: float) -> None:
        """Until the time is over, a reader wants the source probed, or the mount ends."""
        with self.moved:
            probes = self.probes
            self.moved.wait_for(lambda: self.closed or probes != self.probes, wait_s)

    def _pull(self, stream: Stream) -> None:
        feed = self.layers[stream.layer]
        self.stats.add(self.stats.counts, "fetches")
        began_s, began_at = time.monotonic(), stream.at
        for piece in self.source.stream(feed.digest, stream.at, stream.end):
            feed.blob.write(stream.at, piece)
            self.stats.add(self.stats.bytes, stream.reason, len(piece))
            low = stream.at
            with self.moved:
                stream.at += len(piece)
                stream.moved_s = self.heard_s = time.monotonic()
                self.gone = False
                stream.rate_bytes_per_s = (stream.at - began_at) / max(
                    1e-4, stream.moved_s - began_s
                )
                self.moved.notify_all()
            if stream.reason == "prefetch":
                self.on_prefetched(stream.layer, low, stream.at)
            if stream.reason == "demand":
                if feed.blob.own(stream.at, stream.end):
                    stream.at = stream.end  # somebody else delivered the rest (a hedge)
                    return
            elif self.demand:
                self._yield(stream)
            if self.closed:
                return

    def _yield(self, stream: Stream) -> None:
        """Stop reading while a reader waits for something else; the store stops sending once the
        window is full."""

        def free() -> bool:
            return self.closed or not any(s.reason == "demand" for s in self.streams)

        with self.moved:
            self.moved.wait_for(free, 1.0)
            stream.moved_s = time.monotonic()

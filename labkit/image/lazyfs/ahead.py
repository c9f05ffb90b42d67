"""Before anybody asks: what a recorded start touched, decompressed in advance, then the rest of the
image.

    ahead = Ahead(transfers, memory, check, making, connections=4)
    ahead.start(); ahead.prefetched.wait()

Prefetch: one request for each touched range, in blob order, which is access order. Background: 4
MiB at a time, only while nobody has asked for anything for a while. Limit: the link, then
decompression (1 GB/s a core). Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

from labkit.image.estargz.toc import Chunk
from labkit.image.lazyfs.cache import ChunkMemory
from labkit.image.lazyfs.transfers import Stream, Transfers

QUIET_S = 2.0  # an import that computes for a second is still a start
BACKGROUND_BYTES = 4 << 20


class Ahead:
    """`check(layer, chunk)`: the verified chunk from disk, or None. `making`: chunks that somebody
    decompresses just now, by digest; changed under the transfers' lock."""

    def __init__(
        self,
        transfers: Transfers,
        memory: ChunkMemory,
        check: Callable[[int, Chunk], bytes | None],
        making: dict[str, Future[bytes | None]],
        *,
        connections: int = 4,
        background: bool = True,
    ):
        self.transfers, self.memory, self._check, self._making = transfers, memory, check, making
        self.layers, self.stats = transfers.layers, transfers.stats
        self.connections, self.background = connections, background
        transfers.on_prefetched = self.queue
        self._waiting: deque[tuple[int, Chunk]] = deque()
        self._reads = 0
        self.prefetched = threading.Event()
        self.complete = threading.Event()

    def start(self) -> None:
        for target in (self._prefetch_all, self._decompress):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()

    def _prefetch_all(self) -> None:
        by_layer = []
        for index, feed in enumerate(self.layers):
            spans = []
            for a, b in feed.prefetch:
                spans += feed.blob.missing(a, b)
                # what an earlier mount left here is decompressed ahead as well
                self.queue(index, a, b, here=True)
            by_layer.append((index, spans))

        def fetch(item: tuple[int, list[tuple[int, int]]]) -> None:
            for a, b in item[1]:
                self._run("prefetch", item[0], a, b)

        with ThreadPoolExecutor(
            min(self.connections, max(1, len(self.layers))), "prefetch"
        ) as pool:
            list(pool.map(fetch, by_layer))
        self.prefetched.set()
        if self.background:
            self._fill()

    def _run(self, reason: str, layer: int, start: int, end: int) -> bool:
        # a demand may have brought a part of it meanwhile
        for a, b in self.layers[layer].blob.missing(start, end):
            stream = Stream(layer, a, b, reason, time.monotonic())
            with self.transfers.moved:
                self.transfers.streams.append(stream)
            if not self.transfers.deliver(stream, float("inf")):
                return False
        return True

    def queue(self, layer: int, low: int, high: int, *, here: bool = False) -> None:
        """Chunks that end within (low, high] are complete; `here`: those of the range that are on
        disk."""
        feed = self.layers[layer]
        first = max(0, bisect_right(feed.starts, low) - 1)
        done = []
        for chunk in feed.chunks[first : bisect_right(feed.starts, high)]:
            complete = feed.blob.has(chunk.start, chunk.end) if here else low < chunk.end <= high
            if complete:
                done.append((layer, chunk))
        if done:
            with self.transfers.moved:
                self._waiting.extend(done)
                self.transfers.moved.notify_all()

    def _decompress(self) -> None:
        while not self.transfers.closed:
            with self.transfers.moved:
                self.transfers.moved.wait_for(lambda: self.transfers.closed or self._waiting, 1.0)
                if not self._waiting:
                    continue
                layer, chunk = self._waiting.popleft()
                if (
                    chunk.digest in self._making
                    or self.memory.get(chunk.digest) is not None
                    or chunk.digest in self.stats.touched
                    or self.memory.used_bytes + chunk.size > self.memory.limit_bytes
                ):
                    continue
                result: Future[bytes | None] = Future()
                self._making[chunk.digest] = result
            data: bytes | None = None
            try:
                data = self._check(layer, chunk)
                if data is not None:
                    self.memory.put(chunk.digest, data, ahead=True)
            finally:
                with self.transfers.moved:
                    self._making.pop(chunk.digest, None)
                result.set_result(data)

    def _busy(self) -> bool:
        """Whether somebody waits, or the file system was read a moment ago: a start that finds
        everything is still a start."""
        reads, now_s = self.stats.counts["reads"], time.monotonic()
        if reads != self._reads or self.transfers.demand:
            self._reads, self.transfers.demand_s = reads, now_s
        return now_s - self.transfers.demand_s < QUIET_S

    def _fill(self) -> None:
        """The rest of the image, while nobody waits."""
        for layer, feed in enumerate(self.layers):
            for start, end in feed.blob.missing(0, feed.blob.size_bytes):
                for at in range(start, end, BACKGROUND_BYTES):
                    while not self.transfers.closed and self._busy():
                        with self.transfers.moved:
                            self.transfers.moved.wait(QUIET_S / 4)
                    if self.transfers.closed or not self._run(
                        "background", layer, at, min(end, at + BACKGROUND_BYTES)
                    ):
                        return
        self.complete.set()

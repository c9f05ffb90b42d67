"""What somebody waits for: a chunk's bytes from memory, from disk, or over the link at once.

    feed = Feed(layers, source, memory, stats)
    feed.ahead.start()
    data = feed.chunk(layer=0, chunk=node.chunks[3])    # waits; TransferError after `timeout_s`

A source that delivered nothing at all for `timeout_s` counts as gone: from then on a read tries it
anew and gives up after a second, until a byte comes. Kernel and dynamic linker ask several times
for a page they did not get; each would wait the whole time again.

Demand: a missing chunk becomes requests of at most 1 MiB on several connections, extended to 128
KiB forward (a round trip of 20 ms carries more), merged with waiting neighbours; one that a running
stream is about to deliver waits for that stream; one that stalls is asked for again on another
connection. Limit: the link, then decompression (1 GB/s a core). Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import logging
import time
from bisect import bisect_left
from concurrent.futures import Future, ThreadPoolExecutor

from labkit.errors import BadInput, TransferError
from labkit.image.estargz.reader import verify
from labkit.image.estargz.toc import Chunk
from labkit.image.lazyfs.ahead import Ahead
from labkit.image.lazyfs.cache import ChunkMemory
from labkit.image.lazyfs.remote import LayerSource
from labkit.image.lazyfs.stats import Stats
from labkit.image.lazyfs.transfers import LayerFeed, Stream, Transfers

log = logging.getLogger("labkit.lazyfs")

PART_BYTES = 1 << 20
FORWARD_BYTES = 128 << 10
HEDGE_S = 0.5
CORRUPT_TRIES = 3
PROBE_S = 1.0  # for a read while the source is gone


class Feed:
    def __init__(
        self,
        layers: list[LayerFeed],
        source: LayerSource,
        memory: ChunkMemory,
        stats: Stats,
        *,
        connections: int = 4,
        timeout_s: float = 30.0,
        background: bool = True,
    ):
        self.layers, self.source, self.memory, self.stats = layers, source, memory, stats
        self.timeout_s = timeout_s
        self.transfers = Transfers(layers, source, stats)
        self._moved = self.transfers.moved
        self._making: dict[str, Future[bytes | None]] = {}
        self._pool = ThreadPoolExecutor(2 * connections, "fetch")
        self.ahead = Ahead(
            self.transfers,
            memory,
            self._checked,
            self._making,
            connections=connections,
            background=background,
        )

    def close(self) -> None:
        self.transfers.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.source.close()

    # ---- readers

    def chunk(self, layer: int, chunk: Chunk) -> bytes:
        """The chunk's verified bytes. Raises TransferError (did not arrive) or BadInput (arrived
        wrong, several times)."""
        data = self.memory.get(chunk.digest)
        if data is not None:
            self.stats.add(self.stats.hits, "memory")
            return data
        while True:
            with self._moved:
                other = self._making.get(chunk.digest)
                if other is None:
                    result: Future[bytes | None] = Future()
                    self._making[chunk.digest] = result
                    break
            data = other.result(self.timeout_s * 2)
            # None: decompression ahead found it wrong; now it is this reader's to fetch
            if data is not None:
                return data
        try:
            data = self._make(layer, chunk)
            self.memory.put(chunk.digest, data)
            result.set_result(data)
            return data
        except BaseException as error:
            result.set_exception(error)
            result.exception()
            raise
        finally:
            with self._moved:
                self._making.pop(chunk.digest, None)

    def _make(self, layer: int, chunk: Chunk) -> bytes:
        blob = self.layers[layer].blob
        if blob.has(chunk.start, chunk.end):
            data = self._checked(layer, chunk)
            if data is not None:
                self.stats.add(self.stats.hits, "disk")
                return data
        self.stats.add(self.stats.hits, "network")
        started_s = time.monotonic()
        for _ in range(CORRUPT_TRIES):
            self._fetch(layer, chunk, started_s)
            data = self._checked(layer, chunk)
            if data is not None:
                return data
        log.error(
            "blob %s of %s: bytes %d-%d arrived wrong %d times: EIO",
            self.layers[layer].digest,
            self.source.name,
            chunk.start,
            chunk.end,
            CORRUPT_TRIES,
        )
        raise BadInput(
            f"{self.layers[layer].digest}: bytes {chunk.start}-{chunk.end} arrived wrong"
            f" {CORRUPT_TRIES} times",
            why="the store's copy is corrupt or forged",
        )

    def _checked(self, layer: int, chunk: Chunk) -> bytes | None:
        """From the blob on disk; None if it is not what the TOC says, and then it is forgotten."""
        blob = self.layers[layer].blob
        ours = blob.own(chunk.start, chunk.end)
        try:
            return verify(chunk, blob.read(chunk.start, chunk.end - chunk.start))
        except BadInput:
            if ours:
                self.stats.add(self.stats.counts, "corrupt")
                log.warning(
                    "blob %s of %s: bytes %d-%d arrived wrong, fetching them again",
                    self.layers[layer].digest,
                    self.source.name,
                    chunk.start,
                    chunk.end,
                )
            blob.forget(chunk.start, chunk.end)
            return None

    # ---- demand

    def _fetch(self, layer: int, chunk: Chunk, started_s: float) -> None:
        """Wait until the chunk's bytes are on disk, making requests as needed. Raises
        TransferError."""
        blob = self.layers[layer].blob
        with self._moved:
            self.transfers.demand += 1
            self.transfers.probes += self.transfers.gone
            refusals = self.transfers.refusals[layer]
            self._moved.notify_all()
        try:
            while not blob.own(chunk.start, chunk.end):
                now_s = time.monotonic()
                left_s = (
                    started_s
                    + (min(PROBE_S, self.timeout_s) if self.transfers.gone else self.timeout_s)
                    - now_s
                )
                refused = self.transfers.refusals[layer] != refusals
                if self.transfers.closed or refused or left_s <= 0:
                    self.transfers.gone = (
                        self.transfers.gone or now_s - self.transfers.heard_s >= self.timeout_s
                    )
                    why = (
                        self.transfers.problem.get(layer, "no answer")
                        if not self.transfers.closed
                        else "unmounted"
                    )
                    log.error(
                        "blob %s of %s: bytes %d-%d did not arrive in %.1f s (%s): EIO",
                        self.layers[layer].digest,
                        self.source.name,
                        chunk.start,
                        chunk.end,
                        now_s - started_s,
                        why,
                    )
                    raise TransferError(
                        f"{self.layers[layer].digest}: bytes {chunk.start}-{chunk.end} did not"
                        f" arrive in {now_s - started_s:.1f} s",
                        why=why,
                    )
                with self._moved:
                    self._request(layer, chunk, now_s)
                    if not blob.own(chunk.start, chunk.end):
                        self._moved.wait(min(0.1, max(0.001, left_s)))
        finally:
            with self._moved:
                self.transfers.demand -= 1
                self.transfers.demand_s = time.monotonic()
                self._moved.notify_all()

    def _request(self, layer: int, chunk: Chunk, now_s: float) -> None:
        """Under the lock: cover what is missing of the chunk by requests that are not under way
        yet."""
        blob = self.layers[layer].blob
        for start, end in blob.missing(chunk.start, chunk.end, trust_others=False):
            while start < end:
                covered = self._under_way(layer, start, end, now_s)
                if covered is not None:
                    start = covered
                    continue
                stop = min(end, start + PART_BYTES)
                reach = self._forward(layer, start, stop) if stop == end else stop
                stream = Stream(layer, start, reach, "demand", now_s)
                self.transfers.streams.append(stream)
                self.transfers.queue.append(stream)
                self._pool.submit(self._work)
                start = stop

    def _under_way(self, layer: int, start: int, end: int, now_s: float) -> int | None:
        """Up to where a running transfer will deliver from `start`, if it will soon; stalled ones
        get a second request."""
        for stream in self.transfers.streams:
            if stream.layer != layer or not stream.at <= start < stream.end:
                continue
            if stream.reason == "demand":
                if (
                    now_s - stream.moved_s > HEDGE_S
                    and not stream.hedged
                    and stream not in self.transfers.queue
                ):
                    stream.hedged = True
                    self.stats.add(self.stats.counts, "hedged")
                    continue  # ask again on another connection; the first to arrive wins
                return min(end, stream.end)
            if stream.soon(min(end, stream.end)) and now_s - stream.moved_s < HEDGE_S:
                return min(end, stream.end)
        return None

    def _forward(self, layer: int, start: int, end: int) -> int:
        """Extend a small request over the chunks behind it that are neither here nor under way."""
        feed = self.layers[layer]
        if end - start >= FORWARD_BYTES:
            return end
        at = bisect_left(feed.starts, end)
        while (
            at < len(feed.chunks)
            and feed.chunks[at].end - start <= FORWARD_BYTES
            and not feed.blob.own(feed.chunks[at].start, feed.chunks[at].end)
            and not any(
                s.layer == layer and s.at <= feed.chunks[at].start < s.end
                for s in self.transfers.streams
            )
        ):
            end = feed.chunks[at].end
            at += 1
        return end

    def _work(self) -> None:
        """One connection's turn: the oldest waiting request, with its waiting neighbours."""
        with self._moved:
            if not self.transfers.queue:
                return
            stream = self.transfers.queue.popleft()
            for other in sorted(
                (q for q in self.transfers.queue if q.layer == stream.layer), key=lambda q: q.at
            ):
                if (
                    0 <= other.at - stream.end <= FORWARD_BYTES // 2
                    and other.end - stream.at <= PART_BYTES
                ):
                    stream.end = other.end
                    self.transfers.queue.remove(other)
                    self.transfers.streams.remove(other)
        self.transfers.deliver(stream, time.monotonic() + self.timeout_s)

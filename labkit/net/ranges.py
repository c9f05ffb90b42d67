"""Many ranges at once: the way to a link's full rate when one connection has a rate of its own.

Parts are fetched in the order given by a few connections, straight into a buffer or a file. Each
connection's progress is known; when one lags far behind the others (a straggler), an idle
connection fetches the rest of its part as well, and the first to finish wins: the loser is cut off
and has let go of the buffer before the part counts as done.

    parts = plan(url, size_bytes, part_bytes=4 << 20)
    with Client() as client:
        fetch_parts(client, parts, Into.buffer(view), RangeOptions(connections=8))

Physical limit: `Link.floor_s(bytes, connections)`; memory: one block a connection. A failure of any
part, after its retries, ends the whole fetch with a TransferError. Lesson: notebooks/02_image_pull,
notebooks/05_streaming."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice

from labkit.errors import LabError, TransferError
from labkit.net.client import Attempts, Client, HTTPStatusError
from labkit.net.content_range import enclosed
from labkit.net.http import Connection, ConnectionLost
from labkit.net.parts import Into, RangePart, Target, pwrite
from labkit.net.stragglers import Pace

BLOCK = 256 << 10


@dataclass
class Lane:
    """One connection working on one part. `at`: how far it got (absolute)."""

    flight: Flight
    at: int
    began_s: float
    began_at: int
    connection: Connection | None = None
    cut: bool = False
    left: threading.Event = field(default_factory=threading.Event)


@dataclass
class Flight:
    part: RangePart
    lanes: list[Lane] = field(default_factory=list)
    done: bool = False

    @property
    def end(self) -> int:
        return self.part.start + self.part.size_bytes

    @property
    def at(self) -> int:
        """Everything before this byte is in place (lanes start where another one was)."""
        return max((lane.at for lane in self.lanes), default=self.part.start)


@dataclass(frozen=True, kw_only=True)
class RangeOptions:
    """How parts are fetched. `connections`: at most so many at a time. `hedge`: fetch a straggler's
    rest a second time.

    `on_done(part)` comes from a fetching thread, once a part, when nobody writes to it any more;
    `on_progress(part, at)`: bytes of the part before `at` are in place (at least every 256 KiB).
    `may_go()`: asked before each part; while it says no, nothing new is requested (another transfer
    needs the link more)."""

    connections: int = 8
    hedge: bool = True
    on_done: Callable[[RangePart], object] | None = None
    on_progress: Callable[[RangePart, int], object] | None = None
    may_go: Callable[[], bool] = lambda: True


@dataclass(frozen=True)
class Progress:
    """Of a whole `fetch_parts`: what it took, and how uneven the connections were."""

    size_bytes: int
    seconds: float
    parts: int
    retries: int
    hedges: int
    hedges_won: int
    connections: int


class Fetching:
    """The engine: a thread a connection. `run` blocks until all parts are in place."""

    def __init__(
        self,
        client: Client,
        parts: Sequence[RangePart],
        into: Into | None = None,
        options: RangeOptions = RangeOptions(),
    ):
        self.client, self.into, self.options = client, into, options
        self.flights = [Flight(p) for p in parts]
        self.connections = max(1, min(options.connections, len(self.flights)))
        self._next = 0
        self._left = len(self.flights)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._pace = Pace()
        self.hedges = self.hedges_won = 0

    def run(self) -> Progress:
        began_s, retries = time.monotonic(), self.client.retries
        threads = [
            threading.Thread(target=self._work, name=f"fetch-{n}", daemon=True)
            for n in range(self.connections)
        ]
        try:
            for number, thread in enumerate(threads):
                try:
                    thread.start()
                except RuntimeError:
                    # no more threads to be had: fewer connections do the same work
                    del threads[number:]
                    if not number:
                        self._work()
                    break
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except BaseException as error:
            self.stop(error)
            for thread in threads:
                thread.join(5)
            raise
        if self._error is not None:
            if isinstance(self._error, LabError):
                raise self._error
            raise TransferError(
                f"fetching {self.flights[0].part.url}: {self._error!r}",
                why="the fetch was given up",
            ) from self._error
        return Progress(
            sum(f.part.size_bytes for f in self.flights),
            time.monotonic() - began_s,
            len(self.flights),
            self.client.retries - retries,
            self.hedges,
            self.hedges_won,
            self.connections,
        )

    def stop(self, error: BaseException) -> None:
        """End all lanes; the first error is the one that is raised."""
        with self._changed:
            self._error = self._error or error
            for flight in self.flights:
                for lane in flight.lanes:
                    self._cut(lane)
            self._changed.notify_all()

    def _cut(self, lane: Lane) -> None:
        lane.cut = True
        if lane.connection is not None:
            lane.connection.abort()

    # -- which part next ---------------------------------------------------------------------------

    def _work(self) -> None:
        scratch = memoryview(bytearray(BLOCK))
        try:
            while (lane := self._take()) is not None:
                try:
                    self._carry(lane, scratch)
                finally:
                    with self._changed:
                        lane.left.set()
                        if (
                            lane in lane.flight.lanes
                            and not lane.flight.done
                            and self._error is None
                            and lane.cut
                        ):
                            lane.flight.lanes.remove(lane)
                        self._changed.notify_all()
        except BaseException as error:  # raised by run()
            self.stop(error)

    def _take(self) -> Lane | None:
        """The oldest straggler if it holds up the line, the next part in order, or any straggler;
        None at the end."""
        with self._changed:
            while self._left and self._error is None:
                now_s = time.monotonic()
                flight = self._straggler(now_s)
                if flight is not None:
                    self.hedges += 1
                elif self._next < len(self.flights) and self.options.may_go():
                    flight = self.flights[self._next]
                    self._next += 1
                if flight is not None:
                    lane = Lane(flight, flight.at, now_s, flight.at)
                    flight.lanes.append(lane)
                    return lane
                self._changed.wait(0.03)
        return None

    def _straggler(self, now_s: float) -> Flight | None:
        for flight in self.flights[: self._next] if self.options.hedge else ():
            if not flight.done and len(flight.lanes) == 1:
                lane = flight.lanes[0]
                if self._pace.lags(
                    now_s - lane.began_s, lane.at - lane.began_at, flight.end - lane.at
                ):
                    return flight
        return None

    # -- one part ----------------------------------------------------------------------------------

    def _carry(self, lane: Lane, scratch: memoryview) -> None:
        flight, part = lane.flight, lane.flight.part
        into = part.into or self.into
        assert into is not None, "a part has to go somewhere"
        attempts = Attempts(
            self.client,
            f"GET {part.url}",
            stop=lambda: lane.cut or flight.done or self._error is not None,
        )
        while lane.at < flight.end and not lane.cut and self._error is None:
            try:
                self._attempt(lane, into, scratch, attempts)
            except (ConnectionLost, HTTPStatusError) as error:
                if not (lane.cut or flight.done or self._error is not None):
                    attempts.failed(error, lane.at)
            finally:
                lane.connection = None
        if lane.at == flight.end:
            self._finished(lane)

    def _attempt(self, lane: Lane, into: Target, scratch: memoryview, attempts: Attempts) -> None:
        flight, url = lane.flight, lane.flight.part.url
        headers = {"Range": f"bytes={lane.at}-{flight.end - 1}"}
        with self.client.open("GET", url, headers, ok=(200, 206)) as (answer, connection):
            lane.connection = connection
            if lane.cut:
                raise ConnectionLost("aborted")
            try:
                end = enclosed(url, answer, lane.at, flight.end)
            except BaseException:
                connection.close()  # what it still sends is not wanted
                raise
            base = into.shift
            while lane.at < end and not lane.cut:
                size = min(BLOCK, end - lane.at)
                if into.view is not None:
                    got = connection.read_into(into.view[base + lane.at : base + lane.at + size])
                else:
                    got = connection.read_into(scratch[:size])
                    pwrite(into.fd, scratch[:got], base + lane.at)
                if not got:
                    raise ConnectionLost("the body ended early")
                lane.at += got
                attempts.progressed()
                self.client.count(bytes_received=got)
                if self.options.on_progress is not None:
                    self.options.on_progress(flight.part, lane.at)

    def _finished(self, lane: Lane) -> None:
        flight = lane.flight
        with self._changed:
            if flight.done:
                return
            flight.done = True
            others = [other for other in flight.lanes if other is not lane]
            self.hedges_won += bool(others) and flight.lanes[0] is not lane
            for other in others:
                self._cut(other)
            if lane.began_at == flight.part.start:
                self._pace.add(flight.part.size_bytes, time.monotonic() - lane.began_s)
        for other in others:
            # Cut off is not gone: nobody may still be writing when the part is handed over.
            while not other.left.wait(1.0) and self._error is None:
                self._cut(other)
        if self.options.on_done is not None:
            self.options.on_done(flight.part)
        with self._changed:
            self._left -= 1
            self._changed.notify_all()


def fetch_parts(
    client: Client,
    parts: Sequence[RangePart],
    into: Into | None = None,
    options: RangeOptions = RangeOptions(),
) -> Progress:
    """All parts, in parallel. Raises TransferError, NoRanges."""
    if not parts:
        return Progress(0, 0.0, 0, 0, 0, 0, 0)
    return Fetching(client, parts, into, options).run()


def fetch_processed(
    client: Client,
    parts: Iterator[RangePart],
    process: Callable[[RangePart], object],
    *,
    batch: int,
    connections: int = 8,
) -> None:
    """Parts with buffers of their own, each processed in a pool while others are still fetched; at
    most `batch` of them are in memory. Raises TransferError, NoRanges, what `process` raises."""
    processing: list[Future[object]] = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        options = RangeOptions(
            connections=connections,
            on_done=lambda part: processing.append(pool.submit(process, part)),
        )
        while some := list(islice(parts, batch)):
            fetch_parts(client, some, options=options)
            for future in processing:
                future.result()
            processing.clear()
            some.clear()  # their buffers, before the next ones are made

"""Many ranges at once: the way to a link's full rate when one connection has a rate of its own.

Parts are fetched in the order given by a few connections, straight into a buffer or a file. Each
connection's progress is known; when one lags far behind the others (a straggler), an idle
connection fetches the rest of its part as well, and the first to finish wins: the loser is cut off
and has let go of the buffer before the part counts as done.

    parts = plan(url, size_bytes, part_bytes=4 << 20)
    with Client() as client:
        fetch_parts(client, parts, Into.buffer(view), connections=8)
        fetch_ranges(client, url, size_bytes, Into.file(fd), digest="sha256:…")

Physical limit: `Link.floor_s(bytes, connections)`; memory: one block a connection. A failure of any
part, after its retries, ends the whole fetch with a TransferError. Lesson: notebooks/02_image_pull,
notebooks/05_streaming."""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from labkit.errors import LabError, TransferError
from labkit.net.fetch import Attempts, Client, Fetched, HTTPStatusError, fetch, hasher
from labkit.net.http import Connection, ConnectionLost

PART_BYTES = 4 << 20
BLOCK = 256 << 10
#: A lane is a straggler when the rest of its part would take this many times what the others need
#: for it …
LAGS = 3.0
#: … and when it has been given at least this long.
HEDGE_AFTER_S = 0.15


class NoRanges(Exception):
    """The server sends everything whatever is asked."""


@dataclass(frozen=True)
class Into:
    """Where the bytes go: offset `at` of a writable buffer, or of a file. `shift`: added to a
    part's offset."""

    view: memoryview | None = None
    fd: int = -1
    shift: int = 0

    @staticmethod
    def buffer(view: Any, shift: int = 0) -> Into:
        return Into(memoryview(view).cast("B"), -1, shift)

    @staticmethod
    def file(fd: int, shift: int = 0) -> Into:
        return Into(None, fd, shift)


class Target(Protocol):
    """Where the bytes of one part go: `Into`, or what finds its place when the first byte comes."""

    @property
    def view(self) -> memoryview | None: ...
    @property
    def fd(self) -> int: ...
    @property
    def shift(self) -> int: ...


@dataclass(frozen=True)
class RangePart:
    """`size_bytes` of `url` from `start`. `into` overrides the fetch's own; `key` is for the
    caller."""

    url: str
    start: int
    size_bytes: int
    key: Any = None
    into: Target | None = None


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
    number: int
    lanes: list[Lane] = field(default_factory=list)
    done: bool = False

    @property
    def end(self) -> int:
        return self.part.start + self.part.size_bytes

    @property
    def at(self) -> int:
        """Everything before this byte is in place (lanes start where another one was)."""
        return max((lane.at for lane in self.lanes), default=self.part.start)


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


def plan(
    url: str, size_bytes: int, part_bytes: int = PART_BYTES, start: int = 0, key: Any = None
) -> list[RangePart]:
    """Equal parts in order, the last one shorter."""
    return [
        RangePart(url, at, min(part_bytes, start + size_bytes - at), key)
        for at in range(start, start + size_bytes, part_bytes)
    ]


class Fetching:
    """The engine. `run` blocks; `on_done(part)` comes from a fetching thread, once a part, when
    nobody writes to it any more.

    `on_progress(part, at)`: bytes of the part before `at` are in place (at least every 256 KiB).
    `may_go()`: asked before each part; while it says no, nothing new is asked for (somebody else
    needs the link more)."""

    def __init__(
        self,
        client: Client,
        parts: Sequence[RangePart],
        into: Into | None = None,
        *,
        connections: int = 8,
        hedge: bool = True,
        headers: Mapping[str, str] | None = None,
        on_done: Callable[[RangePart], Any] | None = None,
        on_progress: Callable[[RangePart, int], Any] | None = None,
        may_go: Callable[[], bool] = lambda: True,
    ):
        self.client, self.into, self.hedge, self.headers = client, into, hedge, dict(headers or {})
        self.flights = [Flight(p, n) for n, p in enumerate(parts)]
        self.connections = max(1, min(connections, len(self.flights)))
        self.on_done, self.on_progress, self.may_go = on_done, on_progress, may_go
        self._next = 0
        self._left = len(self.flights)
        self._changed = threading.Condition()
        self._error: BaseException | None = None
        self._pace: list[float] = []  # seconds a part took, by size: for what a lane ought to need
        self._rates: list[float] = []
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
            if isinstance(self._error, (LabError, NoRanges)):
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
        """End all lanes; the first error is the one that is told."""
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
        except BaseException as error:  # told by run()
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
                elif self._next < len(self.flights) and self.may_go():
                    flight = self.flights[self._next]
                    self._next += 1
                if flight is not None:
                    lane = Lane(flight, flight.at, now_s, flight.at)
                    flight.lanes.append(lane)
                    return lane
                self._changed.wait(0.03)
        return None

    def _straggler(self, now_s: float) -> Flight | None:
        if not self.hedge or len(self._rates) < 2:
            return None
        usual_part_s, usual_rate = (
            statistics.median(self._pace[-64:]),
            statistics.median(self._rates[-64:]),
        )
        for flight in self.flights[: self._next]:
            if flight.done or len(flight.lanes) != 1:
                continue
            lane = flight.lanes[0]
            for_s = now_s - lane.began_s
            if for_s < max(HEDGE_AFTER_S, 1.5 * usual_part_s):
                continue
            rate = (lane.at - lane.began_at) / for_s
            left = flight.end - lane.at
            expected_s = left / rate if rate else float("inf")
            if expected_s > LAGS * (0.25 * usual_part_s + left / usual_rate):
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
        headers = {**self.headers, "Range": f"bytes={lane.at}-{flight.end - 1}"}
        with self.client.open("GET", url, headers, ok=(200, 206)) as (answer, connection):
            lane.connection = connection
            if lane.cut:
                raise ConnectionLost("aborted")
            if answer.status == 200 and not (lane.at == 0 and answer.size_bytes == flight.end):
                connection.close()
                raise NoRanges(url)
            if answer.status == 206 and not answer.headers.get("content-range", "").startswith(
                f"bytes {lane.at}-{flight.end - 1}/"
            ):
                connection.close()
                raise ConnectionLost(
                    f"another range than asked: {answer.headers.get('content-range', 'none')}"
                )
            base = into.shift
            while lane.at < flight.end and not lane.cut:
                size = min(BLOCK, flight.end - lane.at)
                if into.view is not None:
                    got = connection.read_into(into.view[base + lane.at : base + lane.at + size])
                else:
                    got = connection.read_into(scratch[:size])
                    _pwrite(into.fd, scratch[:got], base + lane.at)
                if not got:
                    raise ConnectionLost("the body ended early")
                lane.at += got
                attempts.progressed()
                self.client.count(bytes_received=got)
                if self.on_progress is not None:
                    self.on_progress(flight.part, lane.at)

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
                spent_s = max(1e-6, time.monotonic() - lane.began_s)
                self._pace.append(spent_s)
                self._rates.append(flight.part.size_bytes / spent_s)
        for other in others:
            # Cut off is not gone: nobody may still be writing when the part is handed over.
            while not other.left.wait(1.0) and self._error is None:
                self._cut(other)
        if self.on_done is not None:
            self.on_done(flight.part)
        with self._changed:
            self._left -= 1
            self._changed.notify_all()


def _pwrite(fd: int, view: memoryview, at: int) -> None:
    while view:
        done = os.pwrite(fd, view, at)
        view, at = view[done:], at + done


def fetch_parts(
    client: Client, parts: Sequence[RangePart], into: Into | None = None, **options: Any
) -> Progress:
    """All parts, in parallel; see `Fetching` for the options. Raises TransferError, NoRanges."""
    if not parts:
        return Progress(0, 0.0, 0, 0, 0, 0, 0)
    return Fetching(client, parts, into, **options).run()


def fetch_ranges(
    client: Client,
    url: str,
    size_bytes: int,
    into: Into,
    *,
    part_bytes: int = PART_BYTES,
    connections: int = 8,
    digest: str = "",
    **options: Any,
) -> Progress:
    """One object, in parallel, into a buffer or file; digest-checked when given. Falls back on one
    stream where a server has no ranges.

    Raises TransferError; what was written then is not to be used."""
    try:
        made = fetch_parts(
            client, plan(url, size_bytes, part_bytes), into, connections=connections, **options
        )
    except NoRanges:
        made = _one_stream(client, url, size_bytes, into)
    if digest:
        state, wanted = hasher(digest)
        for block in _blocks(into, size_bytes):
            state.update(block)
        if state.hexdigest() != wanted:
            raise TransferError(
                f"GET {url}: what arrived is not {digest[:23]}…",
                why="corrupted on the way or in the store; nothing of it counts",
                fix="fetch it again; if it repeats, push it again",
            )
    return made


def _one_stream(client: Client, url: str, size_bytes: int, into: Into) -> Progress:
    at = into.shift

    def sink(view: memoryview) -> None:
        nonlocal at
        if into.view is not None:
            into.view[at : at + len(view)] = view
        else:
            _pwrite(into.fd, view, at)
        at += len(view)

    def restart() -> None:
        nonlocal at
        at = into.shift

    got: Fetched = fetch(client, url, sink, size_bytes=size_bytes, on_restart=restart)
    return Progress(size_bytes, got.seconds, 1, got.retries, 0, 0, 1)


def _blocks(into: Into, size_bytes: int):  # type: ignore[no-untyped-def]
    if into.view is not None:
        yield into.view[into.shift : into.shift + size_bytes]
        return
    for at in range(0, size_bytes, 1 << 20):
        yield os.pread(into.fd, min(1 << 20, size_bytes - at), into.shift + at)

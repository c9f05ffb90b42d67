"""An emulated link: what a network would do to the bytes of one server, paced in that server.

On one machine a "network" is loopback, several GB/s. A `Link` adds three limits: a rate for all
connections together (the NIC or the registry's egress), a rate for each connection (one TCP stream,
one disk behind a bucket), and a time before the first byte of each answer (round trip + the store's
own look-up). Pacing is by virtual clock: a slice of n bytes may leave no earlier than the moment
the link would have finished carrying it, so the emulation can only slow things down, and repeats
within a few per cent. Physical limit: `floor_s`.

    link = parse("1gbit-bucket")            # or "rate=1gbit,connection=50MB/s,first_byte=30ms"
    link.floor_s(353e6, connections=16)     # seconds below which no client can come
    link.label                              # goes on every figure drawn from it

Downloads are shaped; an upload only waits for the first byte of its answer. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, replace

from labkit.core.units import parse_rate, show_rate, show_s
from labkit.errors import BadInput

#: A connection that lags behind its clock (a late wake-up) may catch up by this much, never by
#: more.
SLACK_S = 0.02
#: One slice is about this much time of the slower limit.
SLICE_S = 0.004
SLICE_MIN, SLICE_MAX = 16 << 10, 1 << 20


@dataclass(frozen=True)
class Link:
    """Rates in bytes per second (None: not limited), `first_byte_s` in seconds, `source`: where the
    figures come from."""

    name: str
    rate_bytes_per_s: float | None = None
    connection_bytes_per_s: float | None = None
    first_byte_s: float = 0.0
    source: str = ""

    @property
    def shaped(self) -> bool:
        return bool(self.rate_bytes_per_s or self.connection_bytes_per_s or self.first_byte_s)

    @property
    def label(self) -> str:
        """For figures and records: never to be mistaken for a measured network."""
        if not self.shaped:
            return "loopback, not shaped"
        parts = []
        if self.rate_bytes_per_s:
            parts.append(f"{show_rate(self.rate_bytes_per_s)} in all")
        if self.connection_bytes_per_s:
            parts.append(f"{show_rate(self.connection_bytes_per_s)} a connection")
        if self.first_byte_s:
            parts.append(f"{show_s(self.first_byte_s)} to first byte")
        return f"emulated {self.name}: " + ", ".join(parts)

    @property
    def spec(self) -> str:
        """Text that `parse` turns back into this link."""
        if PRESETS.get(self.name) == self:
            return self.name
        parts = [f"name={self.name}"]
        if self.rate_bytes_per_s:
            parts.append(f"rate={self.rate_bytes_per_s:.0f}B/s")
        if self.connection_bytes_per_s:
            parts.append(f"connection={self.connection_bytes_per_s:.0f}B/s")
        parts.append(f"first_byte={self.first_byte_s * 1e3:g}ms")
        return ",".join(parts)

    def throughput_bytes_per_s(self, connections: int = 1) -> float:
        """The most that this many connections can carry together; inf when nothing limits them."""
        limits = [self.rate_bytes_per_s or float("inf")]
        if self.connection_bytes_per_s:
            limits.append(self.connection_bytes_per_s * max(1, connections))
        return min(limits)

    def floor_s(self, size_bytes: float, connections: int = 1) -> float:
        """One time to first byte, then all bytes at the link's rate: no client can be faster."""
        return self.first_byte_s + size_bytes / self.throughput_bytes_per_s(connections)


_S3 = (
    "AWS, S3 performance guidelines: 85-90 MB/s a connection for ranged GETs, 100-200 ms to first"
    " byte for small objects (30 ms is common for larger ones in one region)"
)

PRESETS = {
    link.name: link
    for link in (
        Link("loopback", source="this host's loopback, not shaped"),
        Link(
            "200mbit",
            25e6,
            None,
            0.020,
            "a good home line: 200 Mbit/s; 20 ms as a round trip to a near region",
        ),
        Link(
            "1gbit",
            125e6,
            None,
            0.010,
            "one gigabit NIC to a registry near by; a single stream can fill it",
        ),
        Link(
            "1gbit-registry",
            125e6,
            45e6,
            0.060,
            "a hosted registry over 1 Gbit/s: redirect + TLS + look-up before the first byte; one"
            " stream does not fill the NIC (containerd #10177: ~2 x from several ranges of one"
            " layer)",
        ),
        Link(
            "1gbit-bucket",
            125e6,
            50e6,
            0.030,
            "1 Gbit/s NIC in front of a bucket; a connection below the S3 guideline's 85-90 MB/s",
        ),
        Link(
            "4gbit-bucket",
            500e6,
            50e6,
            0.030,
            "docs: the lab's first shaped runs (30 ms, 50 MB/s a connection, 500 MB/s in all)",
        ),
        Link(
            "10gbit",
            1250e6,
            None,
            0.002,
            "10 Gbit/s inside one zone; above what two cores decompress",
        ),
        Link("s3-like", 1250e6, 87.5e6, 0.060, _S3),
        Link("s3-like-fast", 1250e6, 87.5e6, 0.030, _S3),
        Link("s3-like-slow", 1250e6, 85e6, 0.100, _S3),
    )
}

_SECONDS = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(ms|s|us)\s*$")


def parse_seconds(text: str) -> float:
    match = _SECONDS.match(text)
    if not match:
        raise BadInput(f"not a time: {text!r}", fix="write it like 30ms or 0.1s")
    return float(match[1]) * {"s": 1.0, "ms": 1e-3, "us": 1e-6}[match[2]]


def parse(text: str | Link | None) -> Link:
    """A preset's name, a plain rate (`300mbit`), or `rate=…,connection=…,first_byte=…`, or
    `PRESET,first_byte=…`. Raises BadInput."""
    if isinstance(text, Link):
        return text
    if not text:
        return PRESETS["loopback"]
    fields = [f.strip() for f in text.strip().split(",") if f.strip()]
    link = Link(text.strip())
    for at, one in enumerate(fields):
        key, eq, value = one.partition("=")
        if not eq and at == 0 and one in PRESETS:
            link = PRESETS[one] if len(fields) == 1 else replace(PRESETS[one], name=text.strip())
        elif not eq and at == 0:
            try:
                link = replace(link, rate_bytes_per_s=_positive(one))
            except BadInput:
                raise BadInput(
                    f"no link called {one!r}",
                    fix="one of "
                    + ", ".join(PRESETS)
                    + ", a rate like 300mbit, or rate=1gbit,connection=50MB/s,first_byte=30ms",
                ) from None
        elif key == "name":
            link = replace(link, name=value)
        elif key == "rate":
            link = replace(link, rate_bytes_per_s=_positive(value))
        elif key == "connection":
            link = replace(link, connection_bytes_per_s=_positive(value))
        elif key in ("first_byte", "ttfb"):
            link = replace(link, first_byte_s=parse_seconds(value))
        else:
            raise BadInput(f"a link has no {key!r}", fix="rate=, connection=, first_byte=, name=")
    return link


def _positive(text: str) -> float:
    rate = parse_rate(text)
    if rate < 1:
        raise BadInput(
            f"a rate of {text} carries nothing", fix="give at least 1 B/s, or leave the limit out"
        )
    return rate


class Pacer:
    """The shared clock of one link. `Lane`s (one an answer being sent) reserve slices on it."""

    def __init__(self, link: Link):
        self.link = link
        self._lock = threading.Lock()
        self._free_s = 0.0  # when the link has carried everything reserved so far
        self._active = 0

    def lane(self, slowed_to_bytes_per_s: float | None = None) -> Lane:
        return Lane(self, slowed_to_bytes_per_s)

    def _enter(self, now_s: float) -> None:
        with self._lock:
            if not self._active:
                self._free_s = max(self._free_s, now_s)  # time in which nobody sent is not saved up
            self._active += 1

    def _leave(self) -> None:
        with self._lock:
            self._active -= 1

    def _reserve(self, size_bytes: int, now_s: float) -> float:
        if not self.link.rate_bytes_per_s:
            return now_s
        with self._lock:
            self._free_s = (
                max(self._free_s, now_s - SLACK_S) + size_bytes / self.link.rate_bytes_per_s
            )
            return self._free_s


class Lane:
    """The pacing of one answer: `with pacer.lane() as lane: lane.wait(n); send(n bytes)`."""

    def __init__(self, pacer: Pacer, slowed_to_bytes_per_s: float | None = None):
        self._pacer = pacer
        limits = [r for r in (pacer.link.connection_bytes_per_s, slowed_to_bytes_per_s) if r]
        self._rate = min(limits) if limits else None
        self._free_s = 0.0
        slowest = min([r for r in (self._rate, pacer.link.rate_bytes_per_s) if r], default=None)
        self.slice_bytes = (
            None if slowest is None else int(min(SLICE_MAX, max(SLICE_MIN, slowest * SLICE_S)))
        )

    def __enter__(self) -> Lane:
        now_s = time.monotonic()
        self._free_s = now_s
        self._pacer._enter(now_s)
        return self

    def __exit__(self, *_: object) -> None:
        self._pacer._leave()

    def wait(self, size_bytes: int) -> None:
        """Sleep until the link would have carried these bytes."""
        now_s = time.monotonic()
        until_s = self._pacer._reserve(size_bytes, now_s)
        if self._rate:
            self._free_s = max(self._free_s, now_s - SLACK_S) + size_bytes / self._rate
            until_s = max(until_s, self._free_s)
        if until_s > now_s:
            time.sleep(until_s - now_s)

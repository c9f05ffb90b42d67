"""What scaling to zero costs at a traffic: a request trace replayed through an autoscaling queue
with measured cold starts.

This is a **simulation**, and its results are labelled so: only the cold-start times that it draws
are measured. One model, small enough to check against queueing theory (tests do, with M/M/1):
requests queue first in, first out; a replica serves `concurrency` at once; a request that finds no
free slot starts a replica, as long as those starting cannot take the queue and `max_replicas` is
not reached; a replica idle for `keep_alive_s` ends, down to `min_replicas`.

    trace = poisson(rate_per_s=0.02, duration_s=86_400, seed=1)
    out = replay(trace, cold_s=[21.3, 19.8, 25.1, …], service_s=4.0,
        policy=Policy(keep_alive_s=300))
    out.wait_s(0.99), out.gpu_hours, out.cold_share

A GPU is paid for from the moment its replica starts – a cold start is billed too – until it ends.
Lesson: notebooks/09_decide."""

from __future__ import annotations

import csv
import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from labkit.core import stats
from labkit.errors import BadInput

LABEL = "simulated: a replayed trace, with measured cold starts"
_MOST_ROWS = 5_000_000


@dataclass(frozen=True)
class Policy:
    """`keep_alive_s`: idle time before a replica ends (math.inf: never). `min_replicas` are up and
    warm at the start."""

    keep_alive_s: float = 300.0
    min_replicas: int = 0
    max_replicas: int = 8
    concurrency: int = 1

    def __post_init__(self) -> None:
        if not (
            0 <= self.min_replicas <= self.max_replicas
            and self.max_replicas >= 1
            and self.concurrency >= 1
            and self.keep_alive_s >= 0
        ):
            raise BadInput(
                f"no such policy: {self}",
                why=(
                    "0 ≤ min_replicas ≤ max_replicas, max_replicas and concurrency ≥ 1,"
                    " keep_alive_s ≥ 0"
                ),
                fix="labkit plan --help",
            )


@dataclass(frozen=True)
class Outcome:
    """Waits in the order of arrival: from a request's arrival to the start of its service, cold
    start included."""

    waits: tuple[float, ...]
    gpu_s: float
    cold_starts: int
    waited_for_start: int  # requests served by a replica that was still starting when they came
    peak_replicas: int
    duration_s: float
    label: str = LABEL
    # (start, end) of each replica
    intervals: tuple[tuple[float, float], ...] = field(default=(), repr=False)

    @property
    def gpu_hours(self) -> float:
        return self.gpu_s / 3600

    @property
    def cold_share(self) -> float:
        return self.waited_for_start / len(self.waits) if self.waits else 0.0

    def wait_s(self, quantile: float) -> float:
        return stats.quantile(self.waits, quantile) if self.waits else 0.0

    def as_json(self) -> dict[str, Any]:
        mean_s = math.fsum(self.waits) / len(self.waits) if self.waits else 0.0
        return {
            "requests": len(self.waits),
            "mean_wait_s": mean_s,
            **{f"p{round(q * 100)}_wait_s": self.wait_s(q) for q in (0.5, 0.95, 0.99)},
            "gpu_hours": self.gpu_hours,
            "cold_starts": self.cold_starts,
            "cold_share": self.cold_share,
            "peak_replicas": self.peak_replicas,
            "duration_s": self.duration_s,
            "label": self.label,
        }


@dataclass
class _Replica:
    began_s: float
    ready_s: float
    busy: int = 0
    idle_since_s: float = 0.0
    ended_s: float | None = None


# at one instant: ends free slots first, arrivals come last
_ARRIVAL, _READY, _DONE, _IDLE = 3, 1, 0, 2


def replay(
    arrivals: Sequence[float],
    cold_s: Sequence[float],
    service_s: float | Sequence[float],
    policy: Policy | None = None,
    seed: int = 0,
) -> Outcome:
    """Replay arrivals (seconds, ascending). `cold_s` is drawn from with replacement; `service_s`:
    one time, or one for each request."""
    rule = policy or Policy()
    if not cold_s or any(not math.isfinite(c) or c < 0 for c in cold_s):
        raise BadInput(
            "no cold-start times to draw from",
            why="the simulation draws measured ones",
            fix="labkit run naive --blocks 5 --out FILE",
        )
    times = (
        [float(service_s)] * len(arrivals)
        if isinstance(service_s, (int, float))
        else [float(s) for s in service_s]
    )
    if (
        len(times) != len(arrivals)
        or any(b < a for a, b in itertools.pairwise(arrivals))
        or any(t < 0 for t in times)
    ):
        raise BadInput(
            "arrivals must ascend, and every request needs one service time of 0 s or more",
            fix="sort the trace",
        )
    return _Queue(rule, cold_s, times, random.Random(seed)).run(arrivals)


class _Queue:
    def __init__(
        self, rule: Policy, cold_s: Sequence[float], times: Sequence[float], draw: random.Random
    ):
        self.rule, self.cold_s, self.times, self.draw = rule, cold_s, times, draw
        self.alive: list[_Replica] = [_Replica(0.0, 0.0) for _ in range(rule.min_replicas)]
        self.all: list[_Replica] = list(self.alive)
        self.waiting: deque[int] = deque()
        self.events: list[tuple[float, int, int, Any]] = []
        self.count = 0
        self.cold_starts = self.peak = self.waited = 0
        self.peak = len(self.alive)

    def at(self, when_s: float, kind: int, what: Any) -> None:
        self.count += 1
        heapq.heappush(self.events, (when_s, kind, self.count, what))

    def run(self, arrivals: Sequence[float]) -> Outcome:
        for i, when in enumerate(arrivals):
            self.at(when, _ARRIVAL, i)
        waits, now = [0.0] * len(arrivals), 0.0
        last_arrival = arrivals[-1] if arrivals else 0.0
        last_done = 0.0
        while self.events:
            when, kind, _, what = heapq.heappop(self.events)
            if kind == _IDLE:
                replica, since = what
                if (
                    replica.ended_s is None
                    and not replica.busy
                    and replica.idle_since_s == since
                    and len(self.alive) > self.rule.min_replicas
                ):
                    replica.ended_s = when
                    self.alive.remove(replica)
                continue
            now = when
            if kind == _ARRIVAL:
                self.waiting.append(what)
            elif kind == _DONE:
                what.busy -= 1
                last_done = max(last_done, now)
                self._idle(what, now)
            else:
                self._idle(what, now)
            self._serve(now, arrivals, waits)
            self._scale(now)
        end = max(last_arrival, last_done, now)
        for replica in self.all:  # what is still up at the end is paid for until the end
            if replica.ended_s is None:
                replica.ended_s = max(end, replica.ready_s)
        spans = tuple((r.began_s, r.ended_s or end) for r in self.all)
        return Outcome(
            tuple(waits),
            math.fsum(b - a for a, b in spans),
            self.cold_starts,
            self.waited,
            self.peak,
            end,
            intervals=spans,
        )

    def _idle(self, replica: _Replica, now: float) -> None:
        if not replica.busy:
            replica.idle_since_s = now
            if math.isfinite(self.rule.keep_alive_s):
                self.at(now + self.rule.keep_alive_s, _IDLE, (replica, now))

    def _serve(self, now: float, arrivals: Sequence[float], waits: list[float]) -> None:
        while self.waiting:
            free = [r for r in self.alive if r.ready_s <= now and r.busy < self.rule.concurrency]
            if not free:
                return
            # fill replicas up, so that others fall idle and end
            replica = max(free, key=lambda r: r.busy)
            request = self.waiting.popleft()
            waits[request] = now - arrivals[request]
            if replica.ready_s > arrivals[request]:
                self.waited += 1
            replica.busy += 1
            self.at(now + self.times[request], _DONE, replica)

    def _scale(self, now: float) -> None:
        starting = sum(1 for r in self.alive if r.ready_s > now)
        while (
            len(self.waiting) > starting * self.rule.concurrency
            and len(self.alive) < self.rule.max_replicas
        ):
            replica = _Replica(now, now + self.draw.choice(self.cold_s))
            self.alive.append(replica)
            self.all.append(replica)
            self.at(replica.ready_s, _READY, replica)
            self.cold_starts += 1
            starting += 1
        self.peak = max(self.peak, len(self.alive))


def poisson(rate_per_s: float, duration_s: float, seed: int = 0) -> list[float]:
    """Arrivals of independent users at one rate."""
    return _thinned(lambda t: rate_per_s, rate_per_s, duration_s, seed)


def diurnal(
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    peak_to_mean: float = 2.0,
    period_s: float = 86_400.0,
) -> list[float]:
    """A day's wave around the mean rate: quiet at the start of each period, its peak in the middle.
    `peak_to_mean` in [1, 2]."""
    swing = min(max(peak_to_mean - 1, 0.0), 1.0)
    return _thinned(
        lambda t: rate_per_s * (1 - swing * math.cos(2 * math.pi * t / period_s)),
        rate_per_s * (1 + swing),
        duration_s,
        seed,
    )


def bursty(
    rate_per_s: float,
    duration_s: float,
    seed: int = 0,
    burst_s: float = 60.0,
    quiet_s: float = 540.0,
) -> list[float]:
    """Bursts of exponential length with silence between them; the mean rate over a long time is
    `rate_per_s`."""
    draw = random.Random(seed)
    within = rate_per_s * (burst_s + quiet_s) / burst_s
    made: list[float] = []
    now = draw.expovariate(1 / quiet_s) if quiet_s else 0.0
    while now < duration_s and within > 0:
        until = now + draw.expovariate(1 / burst_s)
        now += draw.expovariate(within)
        while now < min(until, duration_s):
            made.append(now)
            now += draw.expovariate(within)
        now = until + (draw.expovariate(1 / quiet_s) if quiet_s else 0.0)
    return made


def _thinned(rate: Any, peak: float, duration_s: float, seed: int) -> list[float]:
    if peak < 0 or duration_s < 0 or not math.isfinite(peak * duration_s):
        raise BadInput("a trace needs a rate and a duration of 0 or more", fix="--rate 120/h")
    if peak * duration_s > _MOST_ROWS:
        raise BadInput(
            f"about {peak * duration_s:.0f} requests are more than a simulation here should hold",
            fix="a shorter duration",
        )
    draw, made, now = random.Random(seed), [], 0.0
    while peak > 0:
        now += draw.expovariate(peak)
        if now >= duration_s:
            break
        if draw.random() * peak <= rate(now):
            made.append(now)
    return made


TRACES = {"poisson": poisson, "bursty": bursty, "diurnal": diurnal}


def read_trace(path: str | Path) -> list[float]:
    """Arrivals from a CSV: the column `arrival_s`, `timestamp` or `time` (else the first), in
    seconds or ISO 8601. Starts at 0, sorted.

    Raises BadInput naming the line."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [
                (number, row)
                for number, row in enumerate(csv.reader(file), 1)
                if row and any(c.strip() for c in row)
            ]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(
            f"cannot read the trace {path}: {error}",
            fix="a CSV with one arrival a line, in seconds or ISO 8601",
        ) from None
    column, begin = 0, 0
    if rows and _moment(rows[0][1][0]) is None:
        head = [c.strip().lower() for c in rows[0][1]]
        column = next(
            (
                head.index(name)
                for name in ("arrival_s", "timestamp", "time", "arrival")
                if name in head
            ),
            0,
        )
        begin = 1
    if len(rows) > _MOST_ROWS:
        raise BadInput(
            f"{path} holds {len(rows)} requests, more than a simulation here should",
            fix="cut it to the busiest days",
        )
    made = []
    for number, row in rows[begin:]:
        moment = _moment(row[column]) if column < len(row) else None
        if moment is None:
            raise BadInput(
                f"{path}, line {number}: {','.join(row)[:60]!r} is no arrival time",
                fix="seconds (12.5) or ISO 8601 (2026-01-31T12:00:00Z)",
            )
        made.append(moment)
    if not made:
        raise BadInput(
            f"{path} holds no arrival", fix="a CSV with one arrival a line, in seconds or ISO 8601"
        )
    made.sort()
    return [m - made[0] for m in made]


def _moment(text: str) -> float | None:
    try:
        value = float(text)
        return value if math.isfinite(value) else None
    except ValueError:
        pass
    try:
        return datetime.fromisoformat(text.strip().replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None

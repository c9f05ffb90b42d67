"""What scaling to zero costs at a traffic: a request trace replayed through an autoscaling queue
with measured cold starts.

This is a **simulation**, and its results are labelled so: only the cold-start times that it draws
are measured. One model, small enough to check against queueing theory (tests do, with M/M/1):
requests queue first in, first out; a replica serves `concurrency` at once; a request that finds no
free slot starts a replica, as long as those starting cannot take the queue and `max_replicas` is
not reached; a replica idle for `keep_alive_s` ends, down to `min_replicas`.

    trace = traces.poisson(rate_per_s=0.02, duration_s=86_400, seed=1)
    out = replay(trace, cold_s=[21.3, 19.8, 25.1, …], service_s=4.0,
        policy=Policy(keep_alive_s=300))
    out.wait_s(0.99), out.gpu_hours, out.cold_share

A GPU is paid for from the moment its replica starts – a cold start is billed too – until it ends.
Lesson: notebooks/09_decide."""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

LABEL = "simulated: a replayed trace, with measured cold starts"


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

    def as_json(self) -> JsonObject:
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
        self.events: list[tuple[float, int, int, int | _Replica]] = []
        self.count = 0
        self.cold_starts = self.peak = self.waited = 0
        self.peak = len(self.alive)

    def at(self, when_s: float, kind: int, subject: int | _Replica) -> None:
        """`subject`: the number of the request that arrives, or the replica."""
        self.count += 1
        heapq.heappush(self.events, (when_s, kind, self.count, subject))

    def run(self, arrivals: Sequence[float]) -> Outcome:
        for i, when in enumerate(arrivals):
            self.at(when, _ARRIVAL, i)
        waits, now = [0.0] * len(arrivals), 0.0
        last_arrival = arrivals[-1] if arrivals else 0.0
        last_done = 0.0
        while self.events:
            when, kind, _, subject = heapq.heappop(self.events)
            if isinstance(subject, int):
                self.waiting.append(subject)
            elif kind == _IDLE:
                self._end_if_idle(subject, when)
                continue
            else:
                if kind == _DONE:
                    subject.busy -= 1
                    last_done = max(last_done, when)
                self._idle(subject, when)
            now = when
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
                self.at(now + self.rule.keep_alive_s, _IDLE, replica)

    def _end_if_idle(self, replica: _Replica, now: float) -> None:
        """End a replica that stayed idle for all of `keep_alive_s`."""
        if (
            replica.ended_s is None
            and not replica.busy
            and now == replica.idle_since_s + self.rule.keep_alive_s
            and len(self.alive) > self.rule.min_replicas
        ):
            replica.ended_s = now
            self.alive.remove(replica)

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

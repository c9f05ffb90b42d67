"""Request traces: when the requests of a day arrive, generated from a rate or read from a file.

    arrivals = bursty(rate_per_s=0.02, duration_s=86_400, seed=1)
    arrivals = read_trace("requests.csv")  # seconds from the first request, ascending

A generated trace is an assumption about users; your own log is not. Lesson: notebooks/09_decide."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from labkit.errors import BadInput

_MOST_ROWS = 5_000_000


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
    arrivals: list[float] = []
    now = draw.expovariate(1 / quiet_s) if quiet_s else 0.0
    while now < duration_s and within > 0:
        until = now + draw.expovariate(1 / burst_s)
        now += draw.expovariate(within)
        while now < min(until, duration_s):
            arrivals.append(now)
            now += draw.expovariate(within)
        now = until + (draw.expovariate(1 / quiet_s) if quiet_s else 0.0)
    return arrivals


def _thinned(
    rate: Callable[[float], float], peak: float, duration_s: float, seed: int
) -> list[float]:
    if peak < 0 or duration_s < 0 or not math.isfinite(peak * duration_s):
        raise BadInput("a trace needs a rate and a duration of 0 or more", fix="--rate 120/h")
    if peak * duration_s > _MOST_ROWS:
        raise BadInput(
            f"about {peak * duration_s:.0f} requests are more than a simulation here should hold",
            fix="a shorter duration",
        )
    draw, arrivals, now = random.Random(seed), list[float](), 0.0
    while peak > 0:
        now += draw.expovariate(peak)
        if now >= duration_s:
            break
        if draw.random() * peak <= rate(now):
            arrivals.append(now)
    return arrivals


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
    column, first = 0, 0
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
        first = 1
    if len(rows) > _MOST_ROWS:
        raise BadInput(
            f"{path} holds {len(rows)} requests, more than a simulation here should",
            fix="cut it to the busiest days",
        )
    arrivals = []
    for number, row in rows[first:]:
        moment = _moment(row[column]) if column < len(row) else None
        if moment is None:
            raise BadInput(
                f"{path}, line {number}: {','.join(row)[:60]!r} is no arrival time",
                fix="seconds (12.5) or ISO 8601 (2026-01-31T12:00:00Z)",
            )
        arrivals.append(moment)
    if not arrivals:
        raise BadInput(
            f"{path} holds no arrival", fix="a CSV with one arrival a line, in seconds or ISO 8601"
        )
    arrivals.sort()
    return [a - arrivals[0] for a in arrivals]


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

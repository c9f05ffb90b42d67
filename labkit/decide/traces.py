"""Request traces: when the requests of a day arrive, generated from a rate or read from a file.

    arrivals = bursty(rate_per_s=0.02, duration_s=86_400, seed=1)
    arrivals = read_trace("requests.csv")  # seconds from the first request, ascending

A generated trace is an assumption about users; your own log is not. Lesson: notebooks/09_decide."""

from __future__ import annotations

import csv
import itertools
import math
import random
import re
from collections.abc import Callable
from datetime import date, time
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import NamedTuple

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
    """Arrivals from a CSV (commas, semicolons or tabs), in seconds from the first, ascending: its
    column `arrival`, `timestamp`, `time`, … or, without a header, the first.

    A moment is ISO 8601 (without an offset: UTC) or a number: of seconds, or of milli-, micro- or
    nanoseconds since 1970, as its size or its column's name (`_ms`, `_us`, `_ns`) says. Raises
    BadInput naming the line."""
    rows = _rows(path)
    if not rows:
        raise BadInput(f"{path} holds no arrival", fix=_FIX)
    column, unit = 0, ""
    if _moment(rows[0][1][0]) is None:
        column, unit = _named(rows.pop(0)[1], path)
    if len(rows) > _MOST_ROWS:
        raise BadInput(
            f"{path} holds {len(rows)} requests, more than a simulation here should",
            fix="cut it to the busiest days",
        )
    moments: list[_Moment] = []
    for line, row in rows:
        moment = _moment(row[column], unit) if column < len(row) else None
        if moment is None:
            raise BadInput(
                f"{path}, line {line}: {','.join(row)[:60]!r} has no arrival time", fix=_FIX
            )
        if moments and moment.kind != moments[0].kind:
            raise BadInput(
                f"{path}, line {line}: {row[column][:60]!r} is in {moment.kind}, the first arrival"
                f" in {moments[0].kind}",
                why="between clocks that differ no time can be told",
                fix="one kind of time in the whole column",
            )
        moments.append(moment)
    if not moments:
        raise BadInput(f"{path} holds no arrival", fix=_FIX)
    arrivals = sorted(m.value for m in moments)
    scale = _UNITS[moments[0].kind][0]
    return [float((a - arrivals[0]) / scale) for a in arrivals]


class _Moment(NamedTuple):
    value: Decimal
    kind: str


#: What one second holds of each unit, and from which number on a time since 1970 must be in it: in
#: the unit before, that would be after the year 5000.
_UNITS = {
    "seconds": (1, 0),
    "milliseconds": (10**3, 10**11),
    "microseconds": (10**6, 10**14),
    "nanoseconds": (10**9, 10**17),
    "dates with an offset": (1, 0),
    "dates without an offset": (1, 0),
}
_SUFFIXES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
#: Columns that hold the arrivals, in the order in which they are taken.
_NAMES = (
    "arrival",
    "arrival_time",
    "arrival_timestamp",
    "arrived_at",
    "timestamp",
    "time",
    "datetime",
    "request_time",
    "start_time",
    "ts",
)
_EPOCH_S = date(1970, 1, 1).toordinal() * 86_400
_FIX = "a CSV with one arrival a line, in seconds or ISO 8601 (2026-01-31T12:00:00Z)"
_ISO = re.compile(
    r"(\d{4})([-/]?)(\d\d)\2(\d\d)"
    r"(?:[Tt ](\d\d):?(\d\d)(?::?(\d\d)(?:[.,](\d+))?)?\s*([Zz]|UTC|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)


def _rows(path: str | Path) -> list[tuple[int, list[str]]]:
    """(line, cells) of all lines that hold anything. Raises BadInput."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            lines: list[str] = []  # looked at before they are read: it may be a pipe
            while not (first := file.readline()).strip() and first:
                lines.append(first)
            if first.lstrip().startswith(("{", "[")):
                raise BadInput(
                    f"{path} is JSON, not a CSV",
                    why="nothing says which of its fields is the arrival, and in what unit",
                    fix=f"{_FIX}: jq -r .timestamp FILE",
                )
            # the fraction of a lone time may stand behind a comma, as Python's logs write it
            delimiter = "\t" if _moment(first) else max("\t;,", key=first.count)
            lines.append(first)
            reader = csv.reader(
                itertools.chain(lines, file), delimiter=delimiter, skipinitialspace=True
            )
            return [(reader.line_num, row) for row in reader if any(c.strip() for c in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise BadInput(f"cannot read the trace {path}: {error}", fix=_FIX) from None


def _named(header: list[str], path: str | Path) -> tuple[int, str]:
    """(column, unit where its name has one). Raises BadInput: any other column would be taken for
    seconds, a row number too."""
    found: dict[int, tuple[int, str]] = {}
    for at, cell in enumerate(header):
        name = re.sub(r"[^a-z0-9]+", "_", cell.lower()).strip("_")
        stem, _, suffix = name.rpartition("_")
        if name in _NAMES:
            found.setdefault(_NAMES.index(name), (at, ""))
        elif stem in _NAMES and suffix in _SUFFIXES:
            found.setdefault(_NAMES.index(stem), (at, _SUFFIXES[suffix]))
    if not found:
        raise BadInput(
            f"{path}: none of its columns is named as an arrival's: "
            + ", ".join(repr(cell.strip()[:40]) for cell in header[:20]),
            why="any of them could be a row number or a duration",
            fix=f"call it one of {', '.join(_NAMES)}, with _ms, _us or _ns for its unit",
        )
    return found[min(found)]


def _moment(text: str, unit: str = "") -> _Moment | None:
    """None for what is no time. `unit`: of numbers, where it is known."""
    text = text.strip()
    try:
        value = Decimal(text)
    except InvalidOperation:
        return _date(text)
    if not value.is_finite() or value.adjusted() > 20:
        return None
    sized = (name for name, (_, least) in reversed(_UNITS.items()) if least and abs(value) >= least)
    return _Moment(value, unit or next(sized, "seconds"))


def _date(text: str) -> _Moment | None:
    match = _ISO.fullmatch(text)
    if not match:
        return None
    year, _, month, day, hour, minute, second, fraction, offset = match.groups(default="0")
    try:
        of_day = time(int(hour), int(minute), int(second))
        days = date(int(year), int(month), int(day)).toordinal()
    except ValueError:
        return None
    seconds = days * 86_400 + of_day.hour * 3600 + of_day.minute * 60 + of_day.second - _EPOCH_S
    value = seconds + Decimal(f"0.{fraction}")
    if offset == "0":
        return _Moment(value, "dates without an offset")
    if offset[0] in "+-":
        digits = offset[1:].replace(":", "").ljust(4, "0")
        ahead_s = int(digits[:2]) * 3600 + int(digits[2:]) * 60
        value -= ahead_s if offset[0] == "+" else -ahead_s
    return _Moment(value, "dates with an offset")

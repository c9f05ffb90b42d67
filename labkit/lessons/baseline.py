"""Baseline: did a stack get slower than it was on this host, beyond the noise – and in which phase?

A baseline is a JSON list of run records. A phase is called slower only when three things hold: of all pairs of an old
and a new trial the new one was the longer in all but one (for 5 against 5 chance does that twice in 252), the medians
differ by more than three times the larger spread of the two, and by more than 5 % of the phase and 30 ms. The total is
judged alike. Both sides must speak of the same host, scenario, link, preset and proven cache state; what has no counterpart is left out.

    write(collect(records), "baseline.json"); regressions(read("baseline.json"), collect(newer))
    ["naive (fresh-node, loopback, small): load took 1.31 s, was 1.10 s (+19 %)"]

Lesson: notebooks/syllabi, and docs/facilitator.md for CI on a team's own host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from labkit.core import records, stats
from labkit.core.records import Run, Trial
from labkit.core.units import show_s
from labkit.errors import BadInput

MOST_NOISE = 3.0  # spreads
MOST_SWAPPED = 1  # pairs of an old and a new trial in which the new one was the faster
LEAST_SHARE = 0.05
LEAST_S = 0.03
MIN_TRIALS = 3

Key = tuple[str, str, str, str, str, str]  # arm, scenario, link, preset, host, cache state


def collect(paths: Iterable[Path]) -> list[Run]:
    return [records.read(p) for p in paths]


def write(runs: Sequence[Run], path: str | Path) -> Path:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps({"baseline": [asdict(r) for r in runs]}, default=str) + "\n", encoding="utf-8")
    return target


def read(path: str | Path) -> list[Run]:
    """A baseline, or a single run record. Raises BadInput."""
    try:
        doc = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadInput(f"{path} is no baseline: {error}", fix="labkit notebooks run --save-baseline FILE makes one") from None
    if "trials" in doc:
        return [records.read(path)]
    known_trial, known_run = set(Trial.__dataclass_fields__), set(Run.__dataclass_fields__)
    try:
        return [Run(**{**{k: v for k, v in r.items() if k in known_run},
                       "trials": tuple(Trial(**{k: v for k, v in t.items() if k in known_trial}) for t in r["trials"])}) for r in doc["baseline"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(f"{path} is a damaged baseline: {error}", fix="labkit notebooks run --save-baseline FILE") from None


def grouped(runs: Iterable[Run]) -> dict[Key, list[Trial]]:
    """Good trials by what they measure."""
    made: dict[Key, list[Trial]] = {}
    for run in runs:
        arms = {a["name"]: a for a in run.experiment.get("arms", [])}
        for t in run.trials:
            if t.ok and t.total_s:
                arm = arms.get(t.arm, {})
                key = (t.arm, str(arm.get("scenario", "")), str(arm.get("link", "")), str(run.experiment.get("preset", "")),
                       str(run.host.get("id", "")), str(t.cache.get("state", "unverified")))
                made.setdefault(key, []).append(t)
    return made


def regressions(before: Sequence[Run], now: Sequence[Run]) -> list[str]:
    """One line a stack that got slower, the phase that is to blame first. Raises BadInput when nothing can be compared."""
    old, new = grouped(before), grouped(now)
    common = [k for k in new if k in old and min(len(new[k]), len(old[k])) >= MIN_TRIALS]
    if not common:
        raise BadInput("nothing to compare with the baseline", why=f"no stack was measured at least {MIN_TRIALS} times on both sides on the same host, scenario, link and preset",
                       fix="more blocks, or --save-baseline FILE on this host")
    lines = []
    for key in common:
        found = slower(old[key], new[key])
        if found:
            arm, scenario, link, preset, *_ = key
            lines.append(f"{arm} ({scenario}, {link}, {preset}): " + "; ".join(
                f"{what} took {show_s(b)}, was {show_s(a)} (+{(b - a) / a:.0%})" for what, a, b in found))
    return lines


def slower(before: Sequence[Trial], now: Sequence[Trial]) -> list[tuple[str, float, float]]:
    """(phase, median before, median now) by seconds lost, then ("total", …) if that too is slower; [] where nothing is beyond the noise."""
    found = []
    for phase in sorted({p for t in (*before, *now) for p in t.phases}):
        a, b = [t.phases.get(phase, 0.0) for t in before], [t.phases.get(phase, 0.0) for t in now]
        if _beyond(a, b):
            found.append((phase, stats.median(a), stats.median(b)))
    found.sort(key=lambda f: f[1] - f[2])
    a, b = [t.total_s or 0.0 for t in before], [t.total_s or 0.0 for t in now]
    if _beyond(a, b):
        found.append(("total", stats.median(a), stats.median(b)))
    return [(p, max(x, 1e-6), y) for p, x, y in found]


def _beyond(a: Sequence[float], b: Sequence[float]) -> bool:
    was, now = stats.median(a), stats.median(b)
    lost = now - was
    spread = max(_spread(a), _spread(b))
    swapped = sum(y < x for x in a for y in b)
    return swapped <= MOST_SWAPPED and lost > max(MOST_NOISE * spread, LEAST_SHARE * was, LEAST_S)


def _spread(xs: Sequence[float]) -> float:
    """Robust standard deviation: 1.4826 · median absolute deviation."""
    centre: Any = stats.median(xs)
    return 1.4826 * stats.median([abs(x - centre) for x in xs])

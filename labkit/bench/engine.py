"""Interleaved measurement: every arm once per block, in random order, so that drift of the machine
hits all arms alike.

    results = interleave({"ours": ours, "theirs": theirs}, blocks=5, seed=1)   # arm -> list of
        Measured
    doc = document("pull", results, ratios={"ours_vs_theirs": ("ours", "theirs")})
    # {"bench": …, "host": …, "blocks": N, "results": [{"arm", "cache", "link", "median_s", "low_s",
        "high_s", …}],
    #  "ratios": {"ours_vs_theirs": {"median", "low", "high", "significant"}}}

Ratios are paired within a block. An arm that cannot run here is in `results` with "missing":
reason. Lesson: 01_anatomy."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from labkit.core import stats
from labkit.core.host import card
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.refusals import refusal
from labkit.core.turn import turn
from labkit.errors import LabError


@dataclass(frozen=True)
class Measured:
    """One execution of one arm. `failed` says why its time does not count; the time of a failed one
    is kept apart."""

    seconds: float
    cache: str = "unverified"
    link: str = "loopback"
    floor_s: float | None = None
    evidence: str = ""
    failed: str = ""
    extra: JsonObject = field(default_factory=dict)  # peak_rss_bytes, rate_bytes_per_s …


Arm = Callable[[], Measured]
#: By arm; a string is why it did not run here.
Results = dict[str, list[Measured] | str]


def interleave(
    arms: Mapping[str, Arm | str],
    blocks: int = 5,
    seed: int = 0,
    progress: Callable[[str], object] | None = None,
    so_far: Callable[[Results], object] | None = None,
) -> Results:
    """Run randomised blocks. An arm given as a string is missing here; the string is the reason.

    Whatever an arm raises is a failed measurement of it, not the end of the bench. `progress` gets
    a line a measurement (default: stderr), `so_far` all results after each."""
    say = progress or (lambda line: print(line, file=sys.stderr, flush=True))
    order = random.Random(seed)
    missing = {name: reason for name, reason in arms.items() if isinstance(reason, str)}
    runnable = {name: arm for name, arm in arms.items() if not isinstance(arm, str)}
    measurements: dict[str, list[Measured]] = {name: [] for name in runnable}
    results: Results = {
        name: missing[name] if name in missing else measurements[name] for name in arms
    }
    with turn(say):
        for block in range(blocks):
            names = list(runnable)
            order.shuffle(names)
            for name in names:
                measured = _measured(runnable[name])
                measurements[name].append(measured)
                outcome = f"{measured.seconds:.3f} s {measured.evidence}"
                if measured.failed:
                    outcome = f"FAILED {measured.failed}"
                say(f"block {block + 1}/{blocks}  {name}: {outcome}")
                if so_far:
                    so_far(results)
    return results


def _measured(arm: Arm) -> Measured:
    """One execution; what it raises is why it failed."""
    try:
        return arm()
    except Exception as error:
        refused = refusal(error)
        reason = f"{type(error).__name__}: {error}"
        if refused:
            reason = refused.what
        elif isinstance(error, LabError):
            reason = str(error)
        return Measured(float("nan"), failed=reason)


def rounds(
    name: str, values: Iterable[int], repeats: int, measure: Callable[[int], float]
) -> list[JsonObject]:
    """A row for each value, {name: value, "seconds": […]}, measured in interleaved rounds."""
    rows: list[JsonObject] = [{name: value, "seconds": []} for value in values]
    for _ in range(repeats):
        for row in rows:
            row["seconds"].append(measure(row[name]))
    return rows


def among(
    arms: Container[str], ratios: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[str, str]]:
    """The ratios of the arms that were requested, or of one against its floor."""
    return {
        name: (a, b) for name, (a, b) in ratios.items() if a in arms and (b in arms or b == "floor")
    }


def document(
    bench: str,
    results: Mapping[str, list[Measured] | str],
    ratios: Mapping[str, tuple[str, str]],
    host: JsonMapping | None = None,
    **more: Any,
) -> JsonObject:
    """The bench's last line. `ratios`: name -> (arm A, arm B or "floor"); the value is A/B paired
    within blocks."""
    rows: list[JsonObject] = []
    for arm, runs in results.items():
        if isinstance(runs, str):
            rows.append({"arm": arm, "missing": runs})
            continue
        good = [m for m in runs if not m.failed]
        row: JsonObject = {"arm": arm, "n": len(good), "failed": len(runs) - len(good)}
        if row["failed"]:
            row["failures"] = [
                {"block": i, "why": m.failed} for i, m in enumerate(runs) if m.failed
            ]
        if good:
            low, high = stats.interval([m.seconds for m in good])
            row |= {
                "cache": _one(m.cache for m in good),
                "link": _one(m.link for m in good),
                "median_s": stats.median([m.seconds for m in good]),
                "low_s": low,
                "high_s": high,
                "floor_s": (
                    stats.median([m.floor_s for m in good if m.floor_s is not None])
                    if any(m.floor_s is not None for m in good)
                    else None
                ),
                "evidence": good[-1].evidence,
            }
            row |= {
                k: stats.median([m.extra[k] for m in good]) if isinstance(v, (int, float)) else v
                for k, v in good[-1].extra.items()
                if all(k in m.extra for m in good)
            }
        else:
            row["missing"] = "every trial failed: " + (runs[-1].failed if runs else "none ran")
        rows.append(row)
    compared = {}
    for name, (a, b) in ratios.items():
        pairs = _pairs(results, a, b)
        compared[name] = (
            stats.paired_ratio(pairs) if pairs else {"missing": f"{a} or {b} did not run here"}
        )
    blocks = max((len(r) for r in results.values() if not isinstance(r, str)), default=0)
    return {
        "bench": bench,
        "host": dict(card() if host is None else host),
        "blocks": blocks,
        "results": rows,
        "ratios": compared,
        **more,
    }


def _one(values: Iterable[str]) -> str:
    kinds = sorted(set(values))
    return kinds[0] if len(kinds) == 1 else "mixed: " + ", ".join(kinds)


def _pairs(
    results: Mapping[str, list[Measured] | str], a: str, b: str
) -> list[tuple[float, float]]:
    of_a, of_b = results.get(a), results.get(b)
    if isinstance(of_a, str) or not of_a:
        return []
    if b == "floor":
        return [(m.seconds, m.floor_s) for m in of_a if not m.failed and m.floor_s]
    if isinstance(of_b, str) or not of_b:
        return []
    return [
        (x.seconds, y.seconds)
        for x, y in zip(of_a, of_b, strict=False)
        if not x.failed and not y.failed
    ]


def render(doc: JsonMapping) -> str:
    """The table above the JSON line."""
    from labkit.core.stdout import table
    from labkit.core.units import show_s

    rows = []
    for r in doc["results"]:
        if "missing" in r:
            rows.append([r["arm"], "missing", "", "", "", "", r["missing"]])
        else:
            rows.append(
                [
                    r["arm"],
                    show_s(r["median_s"]),
                    f"{show_s(r['low_s'])} – {show_s(r['high_s'])}",
                    show_s(r["floor_s"]) if r["floor_s"] else "",
                    r["cache"],
                    r["link"],
                    r["evidence"],
                ]
            )
    text = table(rows, ["arm", "median", "interval", "floor", "cache", "link", "evidence"])
    for name, r in doc["ratios"].items():
        verdict = r.get("missing") or f"{r['median']:.3f} ({r['low']:.3f} – {r['high']:.3f})"
        if not r.get("significant", True):
            verdict += "  not significant"
        text += f"\n{name}: {verdict}"
    return text

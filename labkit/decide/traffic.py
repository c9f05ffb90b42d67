"""What a plan's traffic costs and waits: a trace replayed under several rules of scaling.

    rows = policies(values, cold_s=[21.3, 19.8], trace=None, kind="poisson", seed=0)
    rows["policies"]["scale to zero"]["p95_wait_s"], rows["label"]

A simulation (`labkit.decide.queueing`), and labelled as one; only the cold starts are measured.
Lesson: notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from labkit.core.json_types import JsonObject
from labkit.decide import queueing, traces

#: Keep-alive times of the trade-off, in seconds; the last keeps one replica up for good.
KEEP_ALIVES_S = (0.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, math.inf)


def policies(
    values: Mapping[str, float],
    cold_s: Sequence[float],
    trace: Sequence[float] | None,
    kind: str,
    seed: int,
) -> JsonObject:
    """Scaling to zero beside one replica always on; {} without traffic. `trace`: arrivals in
    seconds, else `kind` of `traces.TRACES` at `rate_per_s`."""
    arrivals = _arrivals(values, trace, kind, seed)
    if not arrivals:
        return {}
    rows = {}
    for label, warm in {"scale to zero": 0, "one always on": 1}.items():
        policy = _policy(values, values["keep_alive_s"], warm)
        row = queueing.replay(arrivals, cold_s, values["service_s"], policy, seed).as_json()
        if values.get("price_per_gpu_hour") is not None:
            row["cost"] = row["gpu_hours"] * values["price_per_gpu_hour"]
        rows[label] = row
    return {
        "trace": "the reader's" if trace is not None else f"{kind}, generated",
        "policies": rows,
        "label": queueing.LABEL,
    }


def keep_alives(
    values: Mapping[str, float],
    cold_s: Sequence[float],
    trace: Sequence[float] | None,
    kind: str,
    keep_alives_s: Sequence[float],
    seed: int,
) -> list[JsonObject]:
    """One row of `queueing.Outcome` for each keep-alive time; math.inf: one replica always on."""
    arrivals = _arrivals(values, trace, kind, seed)
    rows = []
    for keep_s in keep_alives_s:
        always = keep_s == math.inf  # further replicas still come and go
        policy = _policy(values, values["keep_alive_s"] if always else keep_s, int(always))
        outcome = queueing.replay(arrivals, cold_s, values["service_s"], policy, seed)
        rows.append({"keep_alive_s": keep_s, **outcome.as_json()})
    return rows


def _arrivals(
    values: Mapping[str, float], trace: Sequence[float] | None, kind: str, seed: int
) -> list[float]:
    if trace is not None:
        return list(trace)
    if not values.get("rate_per_s"):
        return []
    return traces.TRACES[kind](values["rate_per_s"], values["duration_s"], seed=seed)


def _policy(values: Mapping[str, float], keep_alive_s: float, warm: int) -> queueing.Policy:
    most, slots = int(values["max_replicas"]), max(1, int(values["concurrency"]))
    return queueing.Policy(keep_alive_s, warm, most, slots)

"""Single transfers of a trial: which object a store sent, from when to when.

The embedded registry and store note each request they answer on CLOCK_MONOTONIC, the clock of a
trial's spans (`labkit.net.server`, under a microsecond each). A trial reads them once its token is
there, so that nothing of this is on the measured path, and keeps the largest.

    facts["transfers"] = transfers.of_trial(plan.stat_urls, answer.t0_s, requests=133)
    for t in transfers.read(trial.facts): print(t.store, t.path, t.end_s - t.start_s, t.size_bytes)

Limits: an end is the moment when the last byte was the store's kernel's, not the reader's; a store
outside of the lab notes nothing for us. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.core.control_call import call_json
from labkit.core.json_types import JsonMapping, JsonObject

#: Kept of one trial, the largest: at most 40 kB of its record.
MOST = 500
_DIGEST = re.compile(r"([0-9a-f]{12})[0-9a-f]{20,}")


@dataclass(frozen=True)
class Transfer:
    """One answered request. Seconds from t0. `path` without the end of its digests."""

    store: str  # by its name in the plan: registry, bucket
    path: str
    start_s: float
    end_s: float
    size_bytes: int


def of_trial(stat_urls: Mapping[str, str], t0_s: float, requests: int) -> JsonObject:
    """What the stores sent since t0, as a record keeps it: {"paths": [[store, path], …], "rows":
    [[index of the path, start_s, end_s, bytes], …] by start, "left_out": n}; {} where nothing was
    noted. `requests`: how many they counted. `stat_urls`: as in the plan."""
    sent: dict[str, list[tuple[str, float, float, int]]] = {}
    found: list[Transfer] = []
    for store, url in stat_urls.items():
        address, _, prefix = url.partition("#")
        if not address.endswith("/stats"):
            continue
        with contextlib.suppress(OSError, ValueError):
            if address not in sent:
                asked = f"{address.removesuffix('stats')}transfers?since_s={t0_s:.6f}"
                sent[address] = call_json(asked)
            wanted, below = not prefix.startswith("!"), prefix.lstrip("!")
            found += [
                Transfer(store, _DIGEST.sub(r"\1", path), start_s - t0_s, end_s - t0_s, size_bytes)
                for path, start_s, end_s, size_bytes in sent[address]
                if path.startswith(below) == wanted
            ]
    if not found:
        return {}
    largest = sorted(found, key=lambda t: -t.size_bytes)[:MOST]
    paths = list(dict.fromkeys((t.store, t.path) for t in largest))
    index = {path: i for i, path in enumerate(paths)}
    return {
        "paths": [list(path) for path in paths],
        "rows": [
            [index[t.store, t.path], round(t.start_s, 6), round(t.end_s, 6), t.size_bytes]
            for t in sorted(largest, key=lambda t: t.start_s)
        ],
        "left_out": max(requests, len(found)) - len(largest),
    }


def read(facts: JsonMapping) -> list[Transfer]:
    """The transfers in a trial's facts, by start; [] where there are none."""
    kept = facts.get("transfers") or {}
    paths = kept.get("paths", ())
    return [Transfer(*paths[i], *rest) for i, *rest in kept.get("rows", ())]

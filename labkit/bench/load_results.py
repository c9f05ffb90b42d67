"""Results of many loaders, judged together: whose bytes are right, and which rival is the fastest.

    agreed({"safetensors.cold": [...], "fastsafetensors.cold": [...]})

Limit: parameters are compared by a sum of their bytes. Lesson: notebooks/05_streaming."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from labkit.bench.engine import Results
from labkit.core import stats
from labkit.weights.catalog import LOADERS

OURS = "labkit-streamer"
REFERENCE = "safetensors"


def best_other(results: Results, state: str) -> str:
    """The rival with the lowest median, chosen once for all blocks."""
    medians = {}
    for arm, runs in results.items():
        good = [] if isinstance(runs, str) else [m.seconds for m in runs if not m.failed]
        if good and arm.endswith("." + state) and not arm.startswith(OURS):
            medians[arm] = stats.median(good)
    return min(medians, key=lambda a: medians[a]) if medians else ""


def agreed(results: Results) -> Results:
    """The same results; a measurement whose parameters are not those of the others of its format
    has failed: fast with wrong bytes is not fast.

    What is right is what the plain `safetensors` loader gave, else what most loaders gave; where
    two stand against each other neither counts."""
    judged: Results = {
        arm: runs if isinstance(runs, str) else list(runs) for arm, runs in results.items()
    }
    for kind in {_kind(arm) for arm in judged}:
        sums: dict[str, Counter[int]] = {}
        for arm, runs in judged.items():
            if _kind(arm) == kind and not isinstance(runs, str):
                sums.setdefault(_loader_of(arm), Counter()).update(
                    m.extra["sum"] for m in runs if not m.failed
                )
        right, by = _right(sums)
        for arm, runs in judged.items():
            if _kind(arm) == kind and not isinstance(runs, str):
                judged[arm] = [
                    (
                        replace(m, failed=f"wrong bytes: its parameters are not those of {by}")
                        if not m.failed and m.extra["sum"] != right
                        else m
                    )
                    for m in runs
                ]
    return judged


def _loader_of(arm: str) -> str:
    return arm.partition(".")[0].partition("+")[0]


def _kind(arm: str) -> str:
    return "gguf" if LOADERS[_loader_of(arm)].format.startswith("gguf") else "exact"


def _right(sums: dict[str, Counter[int]]) -> tuple[int | None, str]:
    """(the sum that counts, whose it is)."""
    plain = sums.get(REFERENCE)
    if plain and len(plain) == 1:
        return next(iter(plain)), REFERENCE
    votes = Counter(value for of_loader in sums.values() for value in of_loader).most_common(2)
    if not votes:
        return None, ""
    if len(votes) > 1 and votes[0][1] == votes[1][1]:
        return None, "any other: as many loaders gave one sum as another"
    return votes[0][0], "most other loaders"

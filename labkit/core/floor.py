"""Floors: the physical lower bound of a phase, from rates measured on this host in the same run
(`labkit.core.rates`).

A phase that must move n bytes through a resource of r bytes/s cannot take less than n ÷ r. Printed
beside what was measured, it says whether a technique is near the wall or the wall is elsewhere.

    phase_floors({"pull": 353_000_000, "load": 2_200_000_000}, rates, parse("1gbit"))
    # {"pull": 2.82, "load": …} seconds

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

#: Which measured rate bounds a phase. Names ending in `*` are taken as the best of all that start
#: so.
PHASE_RATE = {
    "pull": "link",
    "unpack": "decompress_*",
    "mount": "link",
    "restore": "disk_read",
    "start": "disk_read",
    "import": "disk_read",
    "build": "memcpy",
    "load": "disk_read",
}
#: Resources a technique can name itself: floors_bytes = {"load@link": n, "load@h2d": n}. What moves
#: from t0 on, beside earlier phases, says so: {"load@link@t0": n}.
RESOURCES = {
    "link",
    "disk_read",
    "disk_write",
    "memcpy",
    "h2d",
    "digest",
    "decompress_*",
    "loopback",
}


class Limits(Protocol):
    """What a link allows (`labkit.net.link.Link`)."""

    @property
    def rate_bytes_per_s(self) -> float | None: ...
    @property
    def first_byte_s(self) -> float: ...


def phase_floors(
    floors_bytes: Mapping[str, int],
    rates: Mapping[str, Any],
    link: Limits | None = None,
    scenario: str = "",
    begins: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Seconds below which each phase cannot come: bytes ÷ rate, plus the link's time to first byte
    where bytes cross it.

    A key is a phase ("pull"), or names its resource ("load@link", "load@h2d"); of several for one
    phase the slowest counts, as they may overlap. Weights of a fresh node cross the link. `link`:
    None is loopback. A phase whose rate was not measured is left out rather than guessed.

    `begins`: when phases began, seconds since t0: bytes that move from t0 on bound the phase's end,
    so its floor is what of them was left then. Without it such bytes bound nothing."""
    limits = [link and link.rate_bytes_per_s, rates.get("loopback_bytes_per_s")]
    link_rate = min((r for r in limits if r), default=None)
    first_byte_s = link.first_byte_s if link else 0.0
    floors: dict[str, float] = {}
    for key, size_bytes in floors_bytes.items():
        phase, _, resource = key.partition("@")
        resource, _, since = resource.partition("@")
        resource = resource or PHASE_RATE.get(phase, "")
        # nothing is on this host: weights cross the link too
        if key == "load" and scenario == "fresh-node":
            resource = "link"
        elif resource == "disk_read" and scenario == "hot-node":
            resource = "memcpy"
        rate = link_rate if resource == "link" else rate_of(rates, resource)
        if rate:
            seconds = size_bytes / rate + (
                first_byte_s if resource == "link" and size_bytes else 0.0
            )
            if since:
                if phase not in (begins or {}):
                    continue
                seconds -= (begins or {})[phase]
            floors[phase] = max(floors.get(phase, 0.0), round(seconds, 6))
    return floors


def rate_of(rates: Mapping[str, Any], resource: str) -> float | None:
    """The rate of a resource; of a family (`decompress_*`, `h2d`) the fastest member, on all CPUs
    where work divides."""
    family = resource.rstrip("*")
    found = (
        [
            v
            for k, v in rates.items()
            if k.startswith(family) and k.endswith("_bytes_per_s") and isinstance(v, (int, float))
        ]
        if family
        else []
    )
    if not found:
        return None
    return max(found) * (rates.get("cpus", 1) if resource.endswith("*") else 1)

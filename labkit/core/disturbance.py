"""Whether other work on the machine disturbed a trial, from what the sampler saw beside it.

A cold start beside a build on the same two cores took 124 s in place of 9.3 s, and nothing in its
phases says so. The kernel's CPU pressure (PSI `some`) alone does not tell either: a restored server
makes 0.3 to 0.73 of its own time by itself, with its own threads, on two quiet cores. So what is
judged is what others used: the CPU time of all processes that are not the run's, what the
hypervisor gave to other machines (steal), and their part of the time in which a disk was busy.

    disturbed(trial.samples)    # "others used 46 % of the CPUs (most: cc1plus)", or ""

Limit: where others cannot be seen (hidepid, a container, a record from before the census), only a
pressure beyond what a start makes by itself is found. A network that others fill is not looked
for. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: Of all CPUs, used by others or given to other machines: from here on the paired difference that
#: the lab calls significant (some 10 %) may be theirs.
MOST_OTHERS = 0.10
#: Of the trial's time, a disk busy for others: the same tenth of what bounds a load from disk.
MOST_DISK = 0.10
#: Of the trial's time, PSI `some`: above all starts on quiet cores (at most 0.73), below all beside
#: other work (at least 0.83).
MOST_PRESSURE = 0.80
#: Ten clock ticks: below, a share of a short trial is the rounding of the kernel's clock.
LEAST_S = 0.1


def disturbed(samples: Mapping[str, Any]) -> str:
    """The reason, with figures, or "": not disturbed, or not sampled. `samples`: a trial's."""
    seconds = _number(samples, "seconds")
    if seconds <= 0:
        return ""
    others = samples.get("others")
    reasons = _by_others(samples, others, seconds) if isinstance(others, dict) else []
    if not reasons and not (isinstance(others, dict) and others.get("visible") is True):
        pressure = _number(samples, "psi_cpu_some_s") / seconds
        if pressure > MOST_PRESSURE:
            reasons = [
                f"for {pressure:.0%} of the time something waited for a CPU (limit"
                f" {MOST_PRESSURE:.0%}; other processes cannot be seen here)"
            ]
    return "; ".join(reasons).replace("%", " %")


def _by_others(samples: Mapping[str, Any], others: Mapping[str, Any], seconds: float) -> list[str]:
    reasons = []
    cpu_s, steal_s = _number(others, "cpu_s"), _number(others, "steal_s")
    whole_s = seconds * max(1.0, _number(others, "cpus"))
    if cpu_s + steal_s > max(LEAST_S, MOST_OTHERS * whole_s):
        most = others.get("most")
        parts = []
        if cpu_s:
            named = f" (most: {most})" if isinstance(most, str) and most else ""
            parts.append(f"others used {cpu_s / whole_s:.0%} of the CPUs{named}")
        if steal_s:
            parts.append(f"the hypervisor took {steal_s / whole_s:.0%}")
        reasons.append(" and ".join(parts) + f", limit {MOST_OTHERS:.0%}")
    moved = _number(samples, "disk_read_bytes") + _number(samples, "disk_write_bytes")
    theirs = min(1.0, _number(others, "disk_bytes") / moved) if moved > 0 else 0.0
    busy_s = theirs * _number(samples, "disk_busy_s")
    if busy_s > max(LEAST_S, MOST_DISK * seconds):
        reasons.append(
            f"a disk was busy for others for {busy_s / seconds:.0%} of the time, limit"
            f" {MOST_DISK:.0%}"
        )
    return reasons


def _number(values: Mapping[str, Any], key: str) -> float:
    value = values.get(key)
    return float(value) if isinstance(value, (int, float)) else 0.0

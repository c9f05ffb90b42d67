"""Probes: one function a capability, each asking the machine by doing the smallest real thing that
would fail without it.

    PROBES["userns"].look()     # runs `unshare --user --map-root-user --mount true`

A probe changes nothing that outlives it, takes well under a second, makes no CUDA context, and
reads no secret's value. What is missing comes with the command that fixes it. Read through
`labkit.core.capabilities.capability`, which caches. Lesson: notebooks/00_start_here."""

from __future__ import annotations

# Their order is the doctor's.
from labkit.core.probes import privileges, containers, gpu, programs, storage  # isort: skip
from labkit.core.probes.probe import (
    DEGRADED,
    MISSING,
    OK,
    PROBES,
    Capability,
    Probe,
    command,
    package,
    probed,
)

__all__ = [
    "DEGRADED",
    "MISSING",
    "OK",
    "PROBES",
    "Capability",
    "Probe",
    "command",
    "containers",
    "gpu",
    "package",
    "privileges",
    "probed",
    "programs",
    "storage",
]

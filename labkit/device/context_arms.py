"""A GPU's context taken apart in several settings, each in fresh processes, arms in turn.

    python -m labkit.device.gpu_parts context --times 3 --arms lazy,eager

What is measured within one process is `labkit.device.context`. Limit: the driver's own work.
Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

from labkit.core import interpreter
from labkit.device.nvml import persistence_mode
from labkit.device.trial_output import Notify, fail

CONTEXT_ARMS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "lazy": ({"CUDA_MODULE_LOADING": "LAZY"}, ()),
    "eager": ({"CUDA_MODULE_LOADING": "EAGER"}, ()),
    "lazy-no-nvml": ({"CUDA_MODULE_LOADING": "LAZY"}, ("--without-nvml",)),
    "eager-no-nvml": ({"CUDA_MODULE_LOADING": "EAGER"}, ("--without-nvml",)),
}


def context(arms: Sequence[str], times: int, found: dict[str, Any], notify: Notify) -> None:
    """The context taken apart, `times` fresh processes an arm, in turn. The first process pays for
    the cold import and is no sample."""
    found |= {
        "persistence_mode": persistence_mode(),
        "cache": "warm: one whole process before the first sample",
        "arms": {arm: [] for arm in arms},
    }
    found["before"] = _context("lazy", 60, copies=True)
    notify()
    for _ in range(times):
        for arm in arms:
            found["arms"][arm].append(_context(arm, 60))
            found["median_s"] = {arm: _medians(runs) for arm, runs in found["arms"].items() if runs}
            notify()
    bad = [run["failed"] for runs in found["arms"].values() for run in runs if "failed" in run]
    if bad:
        fail(found, f"{len(bad)} processes", bad[0])


def _context(arm: str, limit_s: float, copies: bool = False) -> dict[str, Any]:
    environment, options = CONTEXT_ARMS[arm]
    try:
        done = subprocess.run(
            [
                *interpreter.module("labkit.device.context"),
                *options,
                *([] if copies else ["--without-copies"]),
            ],
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=limit_s,
        )
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        measured: dict[str, Any] = json.loads(lines[-1]) if lines else {}
        if measured.get("device"):
            return measured
        return {**measured, "failed": f"exit status {done.returncode}: {done.stderr[-600:]}"}
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {error}"[-600:]}


def _medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    steps: dict[str, list[float]] = {}
    for run in runs:
        for step in run.get("steps", []):
            if "failed" not in step:
                steps.setdefault(step["name"], []).append(step["seconds"])
    return {name: round(statistics.median(seconds), 6) for name, seconds in steps.items()}

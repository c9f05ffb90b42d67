"""Whole trials of the lab as the measurements of a bench.

    trial = prepared_or_reason(ends, "naive", preset="tiny")    # or a text: why there is none here
    of_trial(trial(link="1gbit"), "1gbit", evidence="…")

Lesson: notebooks/08_stacking."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from labkit.bench.engine import Measured
from labkit.core.json_types import JsonObject
from labkit.core.records import Trial
from labkit.errors import LabError
from labkit.stack.compose import Stack
from labkit.stack.experiment import prepared

#: A trial a call; `link` and `instrument` as in `labkit.stack.experiment.prepared`.
PreparedTrial = Callable[..., Trial]


def prepared_or_reason(ends: ExitStack, stack: str | Stack, **options: Any) -> PreparedTrial | str:
    """One stack made ready until `ends` closes, or the reason why it cannot run here."""
    try:
        return ends.enter_context(prepared(stack, **options))
    except LabError as error:
        return error.what


def of_trial(
    trial: Trial,
    link: str = "loopback",
    *,
    evidence: str = "",
    floor_s: float | None = None,
    extra: JsonObject | None = None,
) -> Measured:
    """A trial of the lab as a measurement; one that failed, with its own words."""
    failed = "" if trial.ok else f"{trial.outcome}: {trial.error.get('what', '')}"
    cache = trial.cache.get("state", "unverified")
    seconds = trial.total_s or float("nan")
    return Measured(seconds, cache, link, floor_s, evidence, failed, extra or {})

"""What records tell a forecast: the seconds of each phase, the bytes that drove it, and the rate of
the link or disk that fed it.

    for point in points([tiny, small], "naive"):
        point.phase, point.size_bytes, point.seconds, point.resource_bytes_per_s

Lesson: notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from labkit.core import printable, question
from labkit.core.json_types import JsonMapping
from labkit.core.record_schema import MOST_BYTES
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords
from labkit.net.link import parse

#: Which size drives a phase. A phase that is not here has a fixed cost.
DRIVER = {
    "pull": "image_bytes",
    "unpack": "unpacked_bytes",
    "build": "model_bytes",
    "load": "model_bytes",
    "warmup": "model_bytes",
    "first_token": "model_bytes",
    "restore": "snapshot_bytes",
}
#: t0-to-first-token minus the sum of phases: time nobody accounts for, or (negative) phases that
#: overlap.
REST = "rest"


@dataclass(frozen=True)
class Point:
    """One phase of one trial. `resource_bytes_per_s`: what link or disk allowed it in that run, if
    one of them feeds it."""

    phase: str
    size_bytes: float
    seconds: float
    resource: str = ""  # link | disk | ""
    resource_bytes_per_s: float | None = None


def sizes_of(trial: Trial) -> dict[str, float]:
    """The sizes that drove this trial, as its own steps and spans reported them."""
    steps = trial.facts.get("steps", {})
    found: dict[str, float] = {}

    def take(name: str, facts: JsonMapping, *keys: str) -> None:
        for key in keys:
            if (
                isinstance(facts.get(key), (int, float))
                and 1 <= facts[key] <= MOST_BYTES
                and name not in found
            ):
                found[name] = float(facts[key])

    detail = {s["name"]: s.get("detail", {}) for s in trial.spans}
    for source in (steps.get("pull", {}), detail.get("pull", {})):
        take(
            "image_bytes",
            source,
            "bytes_fetched",
            "fetched_bytes",
            "registry_bytes",
            "bytes",
            "size_bytes",
        )
    for source in (steps.get("unpack", {}), detail.get("unpack", {}), steps.get("pull", {})):
        take("unpacked_bytes", source, "written_bytes", "plain_bytes", "unpacked_bytes")
    take("model_bytes", detail.get("load", {}), "size_bytes", "bytes")
    for source in (steps.get("restore", {}), detail.get("restore", {})):
        take("snapshot_bytes", source, "snapshot_bytes", "image_bytes", "size_bytes", "bytes")
    return found


def points(runs: Iterable[Run], arm: str) -> list[Point]:
    """Every phase of every good trial of an arm. Raises IncomparableRecords where they differ in
    more than their sizes, BadInput for no trial."""
    runs = [r for r in runs if r.of_arm(arm)]
    if not runs:
        raise BadInput(
            f"no good trial of {printable.line(arm)!r} in these records",
            fix=(
                f"labkit run {arm} --preset tiny --blocks 3; labkit run {arm} --preset small"
                " --blocks 3"
            ),
        )
    _one_question(runs, arm)
    found = []
    for run in runs:
        for trial in run.of_arm(arm):
            sizes = sizes_of(trial)
            for phase, seconds in trial.phases.items():
                resource, rate = _resource(run, arm, phase)
                found.append(
                    Point(phase, sizes.get(DRIVER.get(phase, ""), 0.0), seconds, resource, rate)
                )
            found.append(
                Point(REST, 0.0, (trial.total_s or 0.0) - math.fsum(trial.phases.values()))
            )
    return found


def _one_question(runs: Sequence[Run], arm: str) -> None:
    """But for the sizes, which the line is drawn through, all of them ask the same."""
    first = question.conditions_of(runs[0], arm)
    different = dict.fromkeys(
        difference
        for r in runs[1:]
        for difference in question.differences(
            first, question.conditions_of(r, arm), but=question.SIZES
        ).different
    )
    if different:
        raise IncomparableRecords(
            f"these records of {printable.line(arm)} do not measure the same thing: "
            + "; ".join(different),
            why="a line through them would not be one machine's",
            fix="give records of one host, one --scenario and one --link",
        )


def _resource(run: Run, arm: str, phase: str) -> tuple[str, float | None]:
    """Which resource fed this phase, and its rate in that run."""
    chosen = run.arm_named(arm)
    scenario = chosen.get("scenario", "")
    if phase == "pull" or (phase == "load" and scenario == "fresh-node"):
        rates = [
            r
            for r in (
                parse(chosen.get("link", "")).rate_bytes_per_s,
                run.floors.get("loopback_bytes_per_s"),
            )
            if r
        ]
        return "link", min(rates) if rates else None
    if phase in ("load", "restore") and scenario == "warm-node":
        return "disk", run.floors.get("disk_read_bytes_per_s")
    return "", None

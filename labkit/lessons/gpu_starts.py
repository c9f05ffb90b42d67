"""A server's start on a GPU taken apart, from recorded trials: the steps of its context, and its
phases.

    context(records)    started(records)     # tables
    steps(records)                           # seconds of each step from an idle device on

A step happens once a process, so each sample is a fresh one. A record that has nothing for a table
keeps a row with the reason. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.units import show_rate
from labkit.lessons.gpu_cells import Records, middle, optional, table
from labkit.lessons.gpu_record import at, each, gaps, items, model_words, number_at, words
from labkit.viz.table import Table

#: Trials that start a server by themselves, and where its start is told.
PHASES = ("import", "context", "build", "load", "warmup", "ready")
TO_FIRST_TOKEN = "to the first token"


def context(records: Records) -> Table:
    """Steps from an idle device to its libraries, by way of loading; each in a fresh process."""
    rows: list[list[str]] = []
    arms: dict[str, None] = {}
    for _, found in each(records, "context"):
        arms.update(dict.fromkeys(a for a in at(found, "arms") or {} if items(found, "arms", a)))
    samples, mode = 0, ""
    for _, found in each(records, "context"):
        mode = str(at(found, "persistence_mode") or "")
        processes = {arm: items(found, "arms", arm) for arm in arms}
        samples = max([samples, *map(len, processes.values())])
        by_arm = {arm: step_seconds(started) for arm, started in processes.items()}
        for name in step_names(by_arm):
            rows.append([name, *(middle(by_arm[arm].get(name, [])) for arm in arms)])
        if by_arm:
            rows.append(["all of it", *(middle(_totals(processes[arm])) for arm in arms)])
        for copy in _copies(items(found, "before", "steps")):
            rate = number_at(copy, "rate_bytes_per_s") or None
            shown = words(copy["failed"]) if "failed" in copy else optional(rate, show_rate)
            rows.append([f"{copy['name']} ({copy.get('host_memory', '')})", shown])
    caption = "not measured"
    if samples:
        caption = (
            f"medians, n = {samples} fresh processes an arm, in turn, warm, persistence mode"
            f" {mode or 'not told'}"
        )
    return table(
        ["step", *arms] if arms else ["step", "why there is none"],
        rows or [["context", why] for _, why in gaps(records, "context")],
        records,
        caption,
    )


def step_seconds(processes: Sequence[JsonMapping]) -> dict[str, list[float]]:
    """Seconds of each step that succeeded in these processes; copies are left out."""
    found: dict[str, list[float]] = {}
    for process in processes:
        for step in items(process, "steps"):
            seconds = number_at(step, "seconds")
            if "failed" not in step and seconds is not None and not _is_copy(step):
                found.setdefault(str(step.get("name")), []).append(seconds)
    return found


def step_names(by_arm: Mapping[str, Mapping[str, object]]) -> list[str]:
    """Every step of any arm, in the order in which they come."""
    return list(dict.fromkeys(name for steps in by_arm.values() for name in steps))


def _is_copy(step: JsonMapping) -> bool:
    return str(step.get("name", "")).startswith("copy")


def _copies(steps: Sequence[JsonMapping]) -> list[JsonMapping]:
    return [step for step in steps if _is_copy(step)]


def _totals(processes: Sequence[JsonMapping]) -> list[float]:
    """Seconds of all steps together, of each process that has any."""
    by_process = (step_seconds([process]) for process in processes)
    return [sum(map(sum, steps.values())) for steps in by_process if steps]


def steps(records: Records, measured: JsonMapping | None = None) -> dict[str, float]:
    """Seconds of each step from an idle device on: of what `labkit.device.context` said here, else
    the recorded medians with lazy loading, else the phases of recorded starts of the smallest
    model; {} of nothing."""
    if measured:
        found = step_seconds([measured])
        for copy in _copies(items(measured, "steps")):
            if (seconds := number_at(copy, "copy_s")) is not None:
                found[str(copy["name"])] = [seconds]
    else:
        lazy = [step_seconds(items(doc, "arms", "lazy")) for _, doc in each(records, "context")]
        found = next(filter(None, [*lazy, *starts(records).values()]), {})
    return {
        name: stats.median(values)
        for name, values in found.items()
        if values and name != TO_FIRST_TOKEN
    }


def starts(records: Records) -> dict[str, dict[str, list[float]]]:
    """preset -> phase -> seconds, of every server that a trial started outside of a cold start:
    files warm, loader safetensors to the device."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        servers = [
            *map(record.result, ("cuda-checkpoint", "cuda-checkpoint-criu", "import-warm")),
            *items(record.result("decode"), "arms", "eager"),
        ]
        for server in servers:
            paths = {phase: ("start_phases_s", phase) for phase in PHASES}
            for name, path in {**paths, TO_FIRST_TOKEN: ("start_s",)}.items():
                if (seconds := number_at(server, *path)) is not None:
                    found.setdefault(record.preset, {}).setdefault(name, []).append(seconds)
    return found


def started(records: Records) -> Table:
    """The served model's own start by phases, over every server that trials started."""
    found = starts(records)
    names = [p for p in (*PHASES, TO_FIRST_TOKEN) if any(p in phases for phases in found.values())]
    rows = [
        [preset, *(middle(phases.get(p, [])) for p in names), str(max(map(len, phases.values())))]
        for preset, phases in found.items()
    ]
    return table(
        ["model", *names, "n"],
        rows,
        records,
        "cache unverified (earlier trials had read the files); safetensors to the device;"
        f" {model_words(records)}",
    )

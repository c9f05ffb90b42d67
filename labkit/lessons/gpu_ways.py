"""Ways to have a server on a GPU, from recorded trials: seconds to the first token against what is
held for them around the clock.

    kept(records, runs)                        # a table
    first_that_leaves_the_device(records)      # the fastest way that holds nothing on it

Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.core import stats
from labkit.core.records import Run
from labkit.core.units import show_bytes, show_s
from labkit.lessons.gpu_cells import Records, sums, table
from labkit.lessons.gpu_checkpoints import restore_seconds
from labkit.lessons.gpu_record import each, items, number_at, numbers
from labkit.lessons.gpu_stacks import keeps_on_device, stack_rows
from labkit.viz.table import Table

WHERE = {
    "pinned": "of pinned host memory",
    "host": "of host memory",
    "device": "on the device",
    "disk": "of disk",
}


@dataclass(frozen=True)
class Way:
    """`kept_bytes`: what is held around the clock, by where: device, host, pinned, disk (files that
    a start needs anyway are left out)."""

    preset: str
    name: str
    first_token_s: float
    n: int
    cache: str
    kept_bytes: dict[str, float]
    on_device: bool = False  # whether a process stays on the device


def ways(records: Records, runs: Sequence[Run] = ()) -> list[Way]:
    """Every recorded way to a first token, with what it keeps, fastest first. `runs`: records of
    the same host, which say what a standby held of the device."""
    found = [*_stacks(records, runs), *_parked(records), *_restored(records)]
    return sorted(found, key=lambda w: (w.preset, w.first_token_s))


def _stacks(records: Records, runs: Sequence[Run]) -> list[Way]:
    found = []
    for record, _, arm in stack_rows(records):
        median_s, name = number_at(arm, "median_s"), str(arm.get("arm", ""))
        if median_s is None:
            continue
        size = (
            number_at(record.result("wake"), "bytes")
            or number_at(record.result("model"), "safetensors", "bytes")
            or 0.0
        )
        kept_bytes: dict[str, float] = {}
        if "warm-standby" in name:
            kept_bytes = {"pinned": size, "device": _held_asleep(runs, record.preset, name)}
        elif keeps_on_device(name):
            kept_bytes = {"device": size}
        n, cache = int(number_at(arm, "n") or 0), str(arm.get("cache", "unverified"))
        resident = keeps_on_device(name)
        found.append(Way(record.preset, name, median_s, n, cache, kept_bytes, resident))
    return found


def _parked(records: Records) -> list[Way]:
    found = []
    for record, result in each(records, "cuda-checkpoint"):
        times = items(result, "times")
        woken_s = sums(
            times, ("wake", "restore_s"), ("wake", "unlock_s"), ("first_token_after_wake_s",)
        )
        held = numbers(times, "resident_parked_bytes") or numbers(times, "device_bytes")
        left = max(numbers(times, "device_parked_bytes"), default=0.0)
        if woken_s:
            found.append(
                Way(
                    record.preset,
                    "parked by the driver, woken",
                    stats.median(woken_s),
                    len(woken_s),
                    "in memory",
                    {"host": stats.median(held) if held else 0.0, "device": left},
                    left > 0,
                )
            )
    return found


def _restored(records: Records) -> list[Way]:
    found = []
    for record, result in each(records, "cuda-checkpoint-criu"):
        size = next(iter(numbers(list(reversed(items(result, "dumps"))), "image_bytes")), 0.0)
        for state in ("cold", "warm"):
            if took := restore_seconds(result, state):
                name, held = "restored by CRIU and the driver", {"disk": size}
                found.append(Way(record.preset, name, stats.median(took), len(took), state, held))
    return found


def _held_asleep(runs: Sequence[Run], preset: str, arm: str) -> float:
    """Bytes of the device that a standby's process held while its weights slept, by its evidence; 0
    where no record says so."""
    of_preset = [run for run in runs if run.experiment.get("preset") == preset]
    trials = [trial for run in of_preset for trial in run.of_arm(arm)]
    held = numbers([e.get("facts") for t in trials for e in t.evidence], "device_bytes_asleep")
    return stats.median(held) if held else 0.0


def kept(records: Records, runs: Sequence[Run] = ()) -> Table:
    """Seconds against what is held for them."""
    rows = []
    for w in ways(records, runs):
        held = ", ".join(
            f"{show_bytes(size)} {WHERE[where]}" for where, size in w.kept_bytes.items() if size
        )
        if w.on_device:
            held += ", and its process"
        shown = held or "the model's files only"
        rows.append((w.preset, w.name, show_s(w.first_token_s), w.cache, shown, str(w.n)))
    return table(
        ["model", "way", "first token", "cache", "kept around the clock", "n"],
        rows,
        records,
        "beside the model's files on the disk; cache of what a start reads",
    )


def first_that_leaves_the_device(records: Records) -> Way | None:
    """Of the largest model that has any: the fastest way that keeps nothing on the device."""
    all_ways = [way for record in reversed(records) for way in ways([record])]
    free = [way for way in all_ways if not way.on_device]
    of_largest = [way for way in free if way.preset == free[0].preset]
    return min(of_largest, key=lambda way: way.first_token_s, default=None)

"""Whole cold starts on a GPU, from recorded trials and runs: request to first token, by stack.

    stacked(records)     # a table, each stack beside the naive one of its own run
    best_stack(run)      # the fastest that starts from nothing

Ratios stand only within one run. Lesson: notebooks/08_stacking, notebooks/09_decide."""

from __future__ import annotations

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.lessons.gpu_cells import Records, named_gaps, optional, table
from labkit.lessons.gpu_record import Record, items, number_at, words
from labkit.viz.table import Table

NAIVE = "no-image"
#: Techniques that keep something on the device before a start: none of theirs is a start from
#: nothing.
KEPT = ("warm-standby", "device-resident")


def stack_rows(records: Records) -> list[tuple[Record, JsonMapping, JsonMapping]]:
    """(record, what `labkit run` said, one arm of it) for every trial that ran stacks. Where one
    trial went on with the record of another, the later one holds both."""
    rows = []
    for record in records:
        for names in (("naive", "stack"), ("resident",), ("compile",)):
            found = next((f for f in map(record.result, names) if items(f, "results")), {})
            rows += [(record, found, arm) for arm in items(found, "results")]
    return rows


def against_naive(found: JsonMapping, arm: JsonMapping) -> float | None:
    """Median ÷ the naive arm's of the same run, or None."""
    naive = next(
        (number_at(a, "median_s") for a in items(found, "results") if a.get("arm") == NAIVE), None
    )
    took = number_at(arm, "median_s")
    return took / naive if naive and took is not None else None


def stacked(records: Records) -> Table:
    """Whole cold starts on the device: request to first token, by stack."""
    head = [
        "model",
        "stack",
        "scenario, cache",
        "first token",
        "÷ naive",
        "context",
        "load",
        "floor",
        "n",
    ]
    rows: list[tuple[str, ...]] = []
    for record, found, arm in stack_rows(records):
        name, took = str(arm.get("arm", "")), number_at(arm, "median_s")
        if took is None:
            rows.append((record.preset, name, "", words(arm.get("missing") or "not measured")))
            continue
        rows.append(
            (
                record.preset,
                name,
                f"{arm.get('scenario', '')}, {arm.get('cache', 'unverified')}",
                show_s(took),
                optional(against_naive(found, arm), "{:.3f}".format),
                optional(number_at(arm, "phases", "context")),
                optional(number_at(arm, "phases", "load")),
                optional(number_at(arm, "floor_s") or None),
                words(arm.get("n", "")),
            )
        )
    return table(
        head,
        [*rows, *named_gaps(records, "stack", "naive", "resident", "compile")],
        records,
        "no image; floor: of all phases that move bytes; of n < 5 no ratio is significant",
    )


def best_stack(run: Run) -> str:
    """The fastest arm of a run that starts from nothing, the naive one left out; "" where there is
    none."""
    medians = {}
    for name in run.arm_names:
        times = [t.total_s for t in run.of_arm(name) if t.total_s is not None]
        if times and name != NAIVE and not keeps_on_device(name):
            medians[name] = stats.median(times)
    return min(medians, key=lambda name: medians[name]) if medians else ""


def keeps_on_device(arm: str) -> bool:
    """Whether a process of the arm is on the device before the request."""
    return any(technique in arm for technique in KEPT)

"""Figures of recorded GPU trials: the numbers of their tables, drawn, stamped, floors as lines.

    context(records)   rates(records)   loaded(records)   decoded(records)   restored(records)
    for picture in every(records): picture.save(…)

One host's records in each. What was not measured keeps its place and says why. Lesson:
notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.units import show_rate, show_s
from labkit.lessons.gpu_cells import Records, median, middle
from labkit.lessons.gpu_checkpoints import IMAGES, bus, by_cache_state
from labkit.lessons.gpu_loads import load_documents, loader_of
from labkit.lessons.gpu_record import (
    at,
    each,
    gaps,
    items,
    model_words,
    number_at,
    numbers,
    stamp,
    words,
)
from labkit.lessons.gpu_starts import PHASES, TO_FIRST_TOKEN, starts, step_names, step_seconds
from labkit.viz.bars import Bar, Group, bars
from labkit.viz.theme import Picture


def _seconds(series: str, values: Sequence[float], floor: float | None = None) -> tuple[Bar, ...]:
    return (Bar(series, stats.median(values), middle(values), floor),) if values else ()


def _grouped(label: str, values: dict[str, dict[str, list[float]]]) -> Group:
    """A group with a bar for each series that has the label."""
    bars_of = [_seconds(series, by_label.get(label, [])) for series, by_label in values.items()]
    return Group(label, sum(bars_of, ()))


def _reasons(records: Records, *trials: str) -> str:
    return "; ".join(why for trial in trials for _, why in gaps(records, trial))


def context(records: Records) -> Picture:
    """Steps of the context by arm; where that was not measured, the phases of the servers'
    starts."""
    groups: list[Group] = []
    for _, found in each(records, "context"):
        arms = at(found, "arms") or {}
        by_arm = {arm: step_seconds(items(found, "arms", arm)) for arm in arms}
        groups += [_grouped(name, by_arm) for name in step_names(by_arm)]
    caption = "fresh processes, arms in turn, warm; steps happen once a process"
    if not groups:
        groups = [Group("context, by arm", missing=why) for _, why in gaps(records, "context")]
        groups += [_grouped(phase, starts(records)) for phase in PHASES]
        caption = (
            "phases of servers that trials started, by model; cache unverified (earlier trials had"
            " read the files)"
        )
    return bars(
        "From an idle device to a server that is ready",
        groups,
        "seconds",
        mark=stamp(records),
        caption=caption,
        name="gpu-context",
    )


def rates(records: Records) -> Picture:
    """GB/s to and from the device: by the driver's checkpoint, from pinned memory, and the bus
    itself."""
    bus_rates = bus(records)
    groups = []
    for label, trial, path, limit in (
        ("parked by the driver", "cuda-checkpoint", ("rates_bytes_per_s", "park"), "d2h_pinned"),
        ("woken by the driver", "cuda-checkpoint", ("rates_bytes_per_s", "wake"), "h2d_pinned"),
        ("woken from pinned memory", "wake", ("rate_bytes_per_s",), "h2d_pinned"),
    ):
        drawn = []
        for record, found in each(records, trial):
            times = items(found, "times")
            floor = median(numbers(times, "bus_rate_bytes_per_s")) or bus_rates.get(limit)
            if measured := numbers(times, *path):
                drawn.append(
                    Bar(
                        record.preset,
                        stats.median(measured) / 1e9,
                        middle(measured, show_rate),
                        floor / 1e9 if floor else None,
                    )
                )
        groups.append(Group(label, tuple(drawn), "" if drawn else _reasons(records, trial)))
    return bars(
        "Device memory to host memory and back",
        groups,
        "GB/s",
        mark=stamp(records),
        caption=(
            "in memory, no file involved · the line: the bus's own rate from pinned memory,"
            " measured beside"
        ),
        name="gpu-rates",
        limit="the bus",
        show=lambda rate: show_rate(rate * 1e9),
    )


def loaded(records: Records) -> Picture:
    """Every loader to the device, against the slower of disk and bus."""
    found: dict[str, list[Bar]] = {}
    missing: dict[str, str] = {}
    for preset, doc in load_documents(records):
        for r in items(doc, "results"):
            loader, took = loader_of(r), number_at(r, "median_s")
            if took is None:
                missing.setdefault(loader, words(r.get("missing") or "not measured"))
                continue
            series = f"{preset}, {r.get('cache', 'unverified')}"
            bar = Bar(series, took, show_s(took), number_at(r, "floor_s"))
            found.setdefault(loader, []).append(bar)
    fastest_first = sorted(found.items(), key=lambda entry: min(bar.value for bar in entry[1]))
    groups = [Group(loader, tuple(drawn)) for loader, drawn in fastest_first]
    groups += [Group(loader, missing=why) for loader, why in missing.items() if loader not in found]
    return bars(
        "Weights to the device",
        groups or [Group("loaders", missing=_reasons(records, "load-cold", "load-warm"))],
        "seconds until all bytes are on the device, the loader's own import included",
        mark=stamp(records),
        caption=f"medians · floor: the slower of disk and bus · {model_words(records)}",
        name="gpu-loads",
    )


def decoded(records: Records) -> Picture:
    """A further token by arm: what graphs buy."""
    groups = []
    for record, found in each(records, "decode"):
        for arm in at(found, "arms") or {}:
            times = numbers(items(found, "arms", arm), "third_request", "decode_median_s")
            drawn = _seconds("a further token", times)
            groups.append(Group(f"{record.preset}, {arm}", drawn, "" if drawn else "not measured"))
    return bars(
        "A further token: eager, graphs, cuDNN's attention",
        groups or [Group("decode", missing=_reasons(records, "decode"))],
        "seconds a token, batch 1",
        mark=stamp(records),
        caption=(
            "median within the third request, files in memory; the start's cost of it is in the"
            " table"
        ),
        name="gpu-decode",
    )


def restored(records: Records) -> Picture:
    """A restore with CRIU and the driver against the start that it replaces."""
    groups: list[Group] = []
    for name, title in IMAGES.items():
        for record, found in each(records, name):
            start, label = number_at(found, "start_s"), f"{record.preset}, start"
            if start is not None and label not in {group.label for group in groups}:
                groups.append(Group(label, _seconds(TO_FIRST_TOKEN, [start])))
            label = f"{record.preset}, {title}"
            by_state = by_cache_state(found)
            for state, restores in by_state.items():
                groups.append(_restores(f"{label}, {state}", restores))
            if not by_state:
                errors = "; ".join(str(d.get("error", "")) for d in items(found, "dumps"))
                groups.append(Group(label, missing=words(errors or "no restore")))
    missing = Group("CUDA + CRIU", missing=_reasons(records, "cuda-checkpoint-criu"))
    return bars(
        "Restored in place of started",
        groups or [missing],
        "seconds",
        mark=stamp(records),
        caption=(
            "cold and warm: the image and all that it maps, by page residency; the start's cache is"
            " unverified (earlier trials had read its files)"
        ),
        name="gpu-restore",
    )


def _restores(label: str, restores: Sequence[JsonMapping]) -> Group:
    """Seconds of the restores that succeeded, or why the last did not."""
    good = [r for r in restores if r.get("outcome") == "ok"]
    drawn = _seconds(TO_FIRST_TOKEN, numbers(good, "gone_to_first_token_s"))
    drawn += _seconds("of it CRIU", numbers(good, "criu_restore_s"))
    last = restores[-1]
    why = f"{last.get('outcome', '')}: {last.get('error', '')}".strip(": ")
    return Group(label, drawn, "" if drawn else words(why))


FIGURES: dict[str, Callable[[Records], Picture]] = {
    "context": context,
    "rates": rates,
    "loads": loaded,
    "decode": decoded,
    "restore": restored,
}


def every(records: Records) -> list[Picture]:
    return [make(records) for make in FIGURES.values()]

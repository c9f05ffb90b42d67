"""Figures of recorded GPU trials, beside the tables of labkit.lessons.gpu_tables: the same numbers,
drawn, stamped, floors as lines.

    context(records)   rates(records)   loaded(records)   decoded(records)   restored(records)
    for picture in every(records): picture.save(…)

One host's records in each. What was not measured keeps its place and says why. Lesson:
notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from labkit.core import stats
from labkit.core.units import show_rate, show_s
from labkit.lessons import gpu_tables as tables
from labkit.lessons.gpu_record import (
    Record,
    at,
    each,
    gaps,
    items,
    number_at,
    numbers,
    stamp,
    words,
)
from labkit.viz.bars import Bar, Group, bars
from labkit.viz.theme import Picture

Records = Sequence[Record]


def _seconds(series: str, values: Sequence[float], floor: float | None = None) -> tuple[Bar, ...]:
    return (Bar(series, stats.median(values), tables.middle(values), floor),) if values else ()


def context(records: Records) -> Picture:
    """Steps of the context by arm; where that was not measured, the phases of the servers'
    starts."""
    groups: list[Group] = []
    for _, found in each(records, "context"):
        arms = at(found, "arms") or {}
        by_arm = {arm: tables._steps(items(found, "arms", arm)) for arm in arms}
        groups += [
            Group(
                name,
                tuple(
                    b for arm, steps in by_arm.items() for b in _seconds(arm, steps.get(name, []))
                ),
            )
            for name in dict.fromkeys(n for steps in by_arm.values() for n in steps)
        ]
    caption = "fresh processes, arms in turn, warm; steps happen once a process"
    if not groups:
        missing = [Group("context, by arm", missing=why) for _, why in gaps(records, "context")]
        started = tables.starts(records)
        groups = [
            *missing,
            *(
                Group(
                    phase,
                    tuple(
                        b
                        for preset, phases in started.items()
                        for b in _seconds(preset, phases.get(phase, []))
                    ),
                )
                for phase in tables.PHASES
            ),
        ]
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
    bus = tables.bus(records)
    groups = []
    for what, trial, path, limit in (
        ("parked by the driver", "cuda-checkpoint", ("rates_bytes_per_s", "park"), "d2h_pinned"),
        ("woken by the driver", "cuda-checkpoint", ("rates_bytes_per_s", "wake"), "h2d_pinned"),
        ("woken from pinned memory", "wake", ("rate_bytes_per_s",), "h2d_pinned"),
    ):
        made = []
        for record, found in each(records, trial):
            times = items(found, "times")
            own = _median(numbers(times, "bus_rate_bytes_per_s")) or bus.get(limit)
            if measured := numbers(times, *path):
                made.append(
                    Bar(
                        record.preset,
                        stats.median(measured) / 1e9,
                        tables.middle(measured, show_rate),
                        own / 1e9 if own else None,
                    )
                )
        groups.append(
            Group(
                what, tuple(made), "" if made else "; ".join(why for _, why in gaps(records, trial))
            )
        )
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


def _median(values: Sequence[float]) -> float | None:
    return stats.median(values) if values else None


def loaded(records: Records) -> Picture:
    """Every loader to the device, against the slower of disk and bus."""
    found: dict[str, list[Bar]] = {}
    missing: dict[str, str] = {}
    for preset, doc in tables.load_documents(records):
        for r in items(doc, "results"):
            loader, took = (
                str(r.get("arm", "")).rpartition(".")[0] or str(r.get("arm", "")),
                number_at(r, "median_s"),
            )
            if took is None:
                missing.setdefault(loader, words(r.get("missing") or "not measured"))
            else:
                found.setdefault(loader, []).append(
                    Bar(
                        f"{preset}, {r.get('cache', 'unverified')}",
                        took,
                        show_s(took),
                        number_at(r, "floor_s"),
                    )
                )
    groups = [
        Group(loader, tuple(made))
        for loader, made in sorted(found.items(), key=lambda f: min(b.value for b in f[1]))
    ]
    groups += [Group(loader, missing=why) for loader, why in missing.items() if loader not in found]
    groups = groups or [
        Group(
            "loaders",
            missing="; ".join(
                why for name in ("load-cold", "load-warm") for _, why in gaps(records, name)
            ),
        )
    ]
    return bars(
        "Weights to the device",
        groups,
        "seconds until all bytes are on the device, the loader's own import included",
        mark=stamp(records),
        caption=f"medians · floor: the slower of disk and bus · {tables.model_words(records)}",
        name="gpu-loads",
    )


def decoded(records: Records) -> Picture:
    """A further token by arm: what graphs buy."""
    groups = []
    for record, found in each(records, "decode"):
        arms = at(found, "arms") or {}
        for arm in arms:
            runs = items(found, "arms", arm)
            made = _seconds("a further token", numbers(runs, "third_request", "decode_median_s"))
            groups.append(Group(f"{record.preset}, {arm}", made, "" if made else "not measured"))
    groups = groups or [
        Group("decode", missing="; ".join(why for _, why in gaps(records, "decode")))
    ]
    return bars(
        "A further token: eager, graphs, cuDNN's attention",
        groups,
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
    for name, title in (
        ("cuda-checkpoint-criu", "GPU state inside"),
        ("import-warm", "imports only"),
    ):
        for record, found in each(records, name):
            start = number_at(found, "start_s")
            if start is not None and not any(g.label == f"{record.preset}, start" for g in groups):
                groups.append(
                    Group(f"{record.preset}, start", _seconds("to the first token", [start]))
                )
            for want in dict.fromkeys(str(r.get("want")) for r in items(found, "restores")):
                some = [r for r in items(found, "restores") if str(r.get("want")) == want]
                good = [r for r in some if r.get("outcome") == "ok"]
                made = _seconds(
                    "to the first token", numbers(good, "gone_to_first_token_s")
                ) + _seconds("of it CRIU", numbers(good, "criu_restore_s"))
                groups.append(
                    Group(
                        f"{record.preset}, {title}, {want}",
                        made,
                        (
                            ""
                            if made
                            else words(
                                f"{some[-1].get('outcome', '')}: {some[-1].get('error', '')}".strip(
                                    ": "
                                )
                            )
                        ),
                    )
                )
            if not items(found, "restores"):
                groups.append(
                    Group(
                        f"{record.preset}, {title}",
                        missing=words(
                            "; ".join(str(d.get("error", "")) for d in items(found, "dumps"))
                            or "no restore"
                        ),
                    )
                )
    groups = groups or [
        Group(
            "CUDA + CRIU",
            missing="; ".join(why for _, why in gaps(records, "cuda-checkpoint-criu")),
        )
    ]
    return bars(
        "Restored in place of started",
        groups,
        "seconds",
        mark=stamp(records),
        caption=(
            "cold and warm: the image and all that it maps, by page residency; the start's cache is"
            " unverified (earlier trials had read its files)"
        ),
        name="gpu-restore",
    )


FIGURES: dict[str, Callable[[Records], Picture]] = {
    "context": context,
    "rates": rates,
    "loads": loaded,
    "decode": decoded,
    "restore": restored,
}


def every(records: Records) -> list[Picture]:
    return [make(records) for make in FIGURES.values()]

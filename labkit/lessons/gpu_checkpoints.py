"""A GPU's state put away and brought back, from recorded trials: parked by the driver, asleep in
pinned memory, dumped by CRIU.

    parked(records)   woken(records)   restored(records)          # tables
    times_faster(records)   checkpoint_shares(records)            # ratios

Limit: the bus; its pinned rate, measured in the same minutes, stands beside each rate. Medians,
with the range where n > 1. Lesson: notebooks/06_gpu_init, notebooks/07_checkpoints."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.core.json_types import JsonMapping
from labkit.core.units import show_bytes, show_rate
from labkit.lessons.gpu_cells import (
    Records,
    median,
    middle,
    optional,
    share,
    sums,
    table,
    yes,
)
from labkit.lessons.gpu_record import at, each, gaps, items, number_at, numbers, words
from labkit.viz.table import Table

#: Where the bus was measured, best first: trial, path in its result.
_BUS = (
    ("facts", ("bus",)),
    ("load-warm", ("rates",)),
    ("load-cold", ("rates",)),
    ("stack", ("floors",)),
)
#: Trials that restore a process -> what its image holds.
IMAGES = {"cuda-checkpoint-criu": "GPU state inside", "import-warm": "imports only"}


def bus(records: Records) -> dict[str, float]:
    """The bus's rates from the newest record that has any: h2d and d2h, pinned and pageable,
    bytes/s."""
    for record in reversed(records):
        for trial, path in _BUS:
            rates = {
                k: r
                for k in ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")
                if (r := number_at(record.result(trial), *path, f"{k}_bytes_per_s"))
            }
            if rates:
                return rates
    return {}


def parked(records: Records) -> Table:
    """CUDA checkpoint by the driver's calls: device memory to host memory and back, the same
    process all the time."""
    head = [
        "model",
        "on the device",
        "park",
        "rate",
        "÷ pinned bus",
        "wake",
        "rate",
        "÷ pinned bus",
        "then first token",
        "equal tokens",
        "n",
    ]
    rows, notes, rates = [], [], bus(records)
    for record, found in each(records, "cuda-checkpoint"):
        times = items(found, "times")
        park = numbers(times, "rates_bytes_per_s", "park")
        wake = numbers(times, "rates_bytes_per_s", "wake")
        rows.append(
            (
                record.preset,
                middle(numbers(times, "device_bytes"), show_bytes),
                middle(sums(times, ("park", "lock_s"), ("park", "checkpoint_s"))),
                middle(park, show_rate),
                share(median(park), rates.get("d2h_pinned")),
                middle(sums(times, ("wake", "restore_s"), ("wake", "unlock_s"))),
                middle(wake, show_rate),
                share(median(wake), rates.get("h2d_pinned")),
                middle(numbers(times, "first_token_after_wake_s")),
                yes([t.get("equal_tokens") for t in times]),
                str(len(times)),
            )
        )
        notes.append(
            f"{record.preset}: parked, it held {_count(at(found, 'held_parked', 'descriptors'))}"
            f" descriptors and {_count(at(found, 'held_parked', 'mappings'))} mappings of the"
            f" driver's files; running {_count(at(found, 'held_running', 'descriptors'))} and"
            f" {_count(at(found, 'held_running', 'mappings'))}"
        )
    return table(
        head,
        [*rows, *gaps(records, "cuda-checkpoint")],
        records,
        "in memory, no file involved; floor: bytes ÷ the bus's pinned rate",
        notes,
    )


def _count(things: object) -> int:
    """How many there are; 0 of what is no collection (a damaged record)."""
    return len(things) if isinstance(things, (dict, list)) else 0


def woken(records: Records) -> Table:
    """Weights asleep in registered (pinned) host memory, woken by a copy; the process and its
    context stay."""
    head = [
        "model",
        "bytes",
        "woken in",
        "rate",
        "the bus, same memory",
        "share of the bus",
        "put to sleep in",
        "n",
    ]
    rows = []
    for record, found in each(records, "wake"):
        times = items(found, "times")
        rows.append(
            (
                record.preset,
                middle(numbers([found], "bytes"), show_bytes),
                middle(numbers(times, "wake_s")),
                middle(numbers(times, "rate_bytes_per_s"), show_rate),
                middle(numbers(times, "bus_rate_bytes_per_s"), show_rate),
                middle(numbers(times, "share_of_bus"), "{:.0%}".format),
                middle(numbers(times, "sleep_s")),
                str(len(times)),
            )
        )
    return table(
        head,
        [*rows, *gaps(records, "wake")],
        records,
        "in memory; floor: bytes ÷ the bus's rate from the same memory",
    )


def times_faster(records: Records) -> dict[str, float | None]:
    """How many times as fast: waking from pinned memory as by the driver's checkpoint (bytes a
    second), a token with a graph as without. None: not measured.

    Of the largest model that has both."""
    woken_name = "woken from pinned memory against by the driver"
    graph_name = "a further token with a graph against without"
    ratios: dict[str, float | None] = {woken_name: None, graph_name: None}
    for record in records:
        by_driver = median(
            numbers(items(record.result("cuda-checkpoint"), "times"), "rates_bytes_per_s", "wake")
        )
        by_copy = median(numbers(items(record.result("wake"), "times"), "rate_bytes_per_s"))
        if by_driver and by_copy:
            ratios[woken_name] = by_copy / by_driver
        arms = [items(record.result("decode"), "arms", arm) for arm in ("eager", "fewer-graphs")]
        eager, graph = (median(numbers(a, "third_request", "decode_median_s")) for a in arms)
        if eager and graph:
            ratios[graph_name] = eager / graph
    return ratios


# ---- CRIU ----------------------------------------------------------------------------------------


def restored(records: Records) -> Table:
    """A parked process dumped by CRIU and restored from its image, then woken; beside it the start
    that this replaces."""
    head = [
        "model",
        "what",
        "cache of the image",
        "image",
        "CRIU",
        "GPU woken",
        "to the first token",
        "equal tokens",
        "outcome",
    ]
    rows: list[tuple[str, ...]] = []
    for name, title in IMAGES.items():
        for record, found in each(records, name):
            start = optional(number_at(found, "start_s"))
            rows.append((record.preset, "start", "unverified", "", "", "", start))
            all_dumps = (*items(found, "dumps"), at(found, "dump"))
            dumps = [d for d in all_dumps if isinstance(d, Mapping)]
            for dump in dumps:
                rows.append(
                    (
                        record.preset,
                        f"dump, {title}",
                        "",
                        middle(numbers([dump], "image_bytes"), show_bytes),
                        middle(numbers([dump], "dump_s")),
                        "",
                        "",
                        "",
                        words(dump.get("outcome") or dump.get("error") or "ok"),
                    )
                )
            size = next(iter(numbers(list(reversed(dumps)), "image_bytes")), None)
            image = optional(size or None, show_bytes)
            for restores in by_cache_state(found).values():
                rows.append((record.preset, f"restore, {title}", *_restored(restores, image)))
    imports = [gap for gap in gaps(records, "import-warm") if not gap[1].startswith("not tried")]
    return table(
        head,
        [*rows, *gaps(records, "cuda-checkpoint-criu"), *imports],
        records,
        "CRIU without its CUDA plugin, parked by the driver's calls; cache state of the image"
        " proven by page residency",
    )


def by_cache_state(found: JsonMapping) -> dict[str, list[JsonMapping]]:
    """Restores by the cache state that was wanted for them."""
    by_state: dict[str, list[JsonMapping]] = {}
    for restore in items(found, "restores"):
        by_state.setdefault(str(restore.get("want")), []).append(restore)
    return by_state


def _restored(restores: list[JsonMapping], image: str) -> tuple[str, ...]:
    """Cache state, image, seconds of CRIU, of the driver, to the first token; equal tokens;
    outcome."""
    states = {str(at(r, "cache", "image", "state") or "unverified") for r in restores}
    failed = [r for r in restores if r.get("outcome") != "ok"]
    errors = "; ".join(f"{r.get('outcome', '')}: {r.get('error', '')}" for r in failed)
    return (
        words("/".join(sorted(states))),
        image,
        middle(numbers(restores, "criu_restore_s")),
        middle(sums(restores, ("cuda", "restore_s"), ("cuda", "unlock_s"))),
        middle(numbers(restores, "gone_to_first_token_s")),
        yes([r.get("equal_tokens") for r in restores]),
        words(errors) or f"ok, n = {len(restores)}",
    )


def restore_seconds(found: JsonMapping, state: str) -> list[float]:
    """To the first token, of the restores that succeeded with the image in this cache state."""
    restores = by_cache_state(found).get(state, [])
    return numbers([r for r in restores if r.get("outcome") == "ok"], "gone_to_first_token_s")


def checkpoint_shares(records: Records) -> dict[str, float | None]:
    """Restore from a cold image ÷ start, to the first token, and the driver's slower way ÷ the
    pinned bus; of the largest model that has it. None: not measured."""
    restore_name = "a restore with the GPU's state, image cold, against a start"
    driver_name = "the driver's park or wake, the slower one, against the pinned bus"
    found_shares: dict[str, float | None] = {restore_name: None, driver_name: None}
    rates = bus(records)
    for record in records:
        found = record.result("cuda-checkpoint-criu")
        start, took = number_at(found, "start_s"), median(restore_seconds(found, "cold"))
        if start and took is not None:
            found_shares[restore_name] = took / start
        times = items(record.result("cuda-checkpoint"), "times")
        ways = [
            (median(numbers(times, "rates_bytes_per_s", way)), rates.get(limit))
            for way, limit in (("park", "d2h_pinned"), ("wake", "h2d_pinned"))
        ]
        if shares := [rate / limit for rate, limit in ways if rate and limit]:
            found_shares[driver_name] = min(shares)
    return found_shares

"""What a server does on the device, from recorded trials: weights brought there by every loader,
and tokens decoded eagerly and with graphs.

    loaded(records)   decoded(records)     # tables
    first_on_device(records)               # the fastest loader by model and cache state

Limit: the slower of disk and bus. Lesson: notebooks/05_streaming, notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.core.json_types import JsonMapping
from labkit.core.units import show_bytes, show_s
from labkit.lessons.gpu_cells import NONE, Records, middle, named_gaps, optional, table
from labkit.lessons.gpu_record import at, each, gaps, items, number_at, numbers, words
from labkit.viz.table import Table


def load_documents(records: Records) -> list[tuple[str, JsonMapping]]:
    """(preset, what `labkit bench load` said) of every trial that loaded weights to the device."""
    trials = [*each(records, "load-cold"), *each(records, "load-warm")]
    return [(record.preset, found) for record, found in trials if items(found, "results")]


def loader_of(result: JsonMapping) -> str:
    """An arm is "loader.cache state"."""
    arm = str(result.get("arm", ""))
    return arm.rpartition(".")[0] or arm


def loaded(records: Records) -> Table:
    """Weights to the device, by loader and cache state, against the slower of disk and bus."""
    head = [
        "model",
        "loader",
        "cache",
        "on the device after",
        "GB/s",
        "floor",
        "times the floor",
        "n",
        "failed",
    ]
    rows: list[tuple[str, ...]] = []
    for preset, found in load_documents(records):
        for r in sorted(items(found, "results"), key=lambda r: number_at(r, "median_s") or 1e9):
            took, floor = number_at(r, "median_s"), number_at(r, "floor_s") or None
            if took is None:
                rows.append((preset, loader_of(r), "", words(r.get("missing") or "not measured")))
                continue
            size = number_at(r, "weights_bytes")
            rows.append(
                (
                    preset,
                    loader_of(r),
                    words(r.get("cache", "unverified")),
                    show_s(took),
                    f"{size / took / 1e9:.2f}" if size and took else NONE,
                    optional(floor),
                    f"{took / floor:.2f}" if floor else NONE,
                    words(r.get("n", "")),
                    words(r.get("failed", "")),
                )
            )
    floors = dict.fromkeys(words(found.get("floor_by", "")) for _, found in load_documents(records))
    return table(
        head,
        [*rows, *named_gaps(records, "load-cold", "load-warm")],
        records,
        "all bytes on the device; the loader's own import is in it; floor:"
        f" {'; '.join(filter(None, floors)) or 'not told'}",
    )


def first_on_device(
    records: Records, measured: JsonMapping | None = None
) -> dict[str, tuple[str, float]]:
    """ "model, cache state" -> the first loader and its times of the floor; of a bench here, or of
    what is recorded."""
    documents = load_documents(records)
    if measured:
        documents = [(str(measured.get("preset", "")), measured)]
    best: dict[str, tuple[float, str, float]] = {}
    for preset, found in documents:
        for r in items(found, "results"):
            took, floor = number_at(r, "median_s"), number_at(r, "floor_s")
            state = f"{preset}, {words(r.get('cache', 'unverified'))}"
            if took is not None and floor and (state not in best or took < best[state][0]):
                best[state] = (took, str(r.get("arm", "")).rpartition(".")[0], took / floor)
    return {state: (loader, times) for state, (_, loader, times) in best.items()}


def decoded(records: Records) -> Table:
    """What eager, graphs and cuDNN's attention cost at the start and a token."""
    head = [
        "model",
        "arm",
        "warm-up",
        "start to first token",
        "a further token",
        "slowest",
        "device memory",
        "equal tokens",
        "n",
    ]
    rows, states = [], set()
    for record, found in each(records, "decode"):
        states.add(str(at(found, "cache", "state") or "unverified"))
        arms = at(found, "arms") or {}
        for arm in arms if isinstance(arms, Mapping) else {}:
            servers = items(found, "arms", arm)
            equal = {True: "yes", False: "no"}.get(at(found, "equal_tokens", arm), NONE)
            rows.append(
                (
                    record.preset,
                    arm,
                    middle(numbers(servers, "start_phases_s", "warmup")),
                    middle(numbers(servers, "start_s")),
                    middle(numbers(servers, "third_request", "decode_median_s")),
                    middle(numbers(servers, "third_request", "decode_slowest_s")),
                    middle(numbers(servers, "device_used_bytes"), show_bytes),
                    equal,
                    str(len(servers)) if servers else "failed",
                )
            )
    return table(
        head,
        [*rows, *gaps(records, "decode")],
        records,
        f"cache {'/'.join(sorted(states)) or 'unverified'} before the first server; a further"
        " token: median within the third request, batch 1; floor of a token: bytes of the weights"
        " ÷ the device memory's rate, not measured",
    )

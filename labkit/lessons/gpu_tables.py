"""Tables of recorded GPU trials: one function a question, rows from every record of one host, each
with n, cache state and floor.

    context(records)   started(records)   parked(records)   woken(records)   restored(records)
    loaded(records)    decoded(records)   stacked(records)

A record that has nothing for a table keeps a row with the reason. Each is a
`labkit.viz.table.Table`: HTML on a page, text elsewhere, `markdown` in a document. Medians, with
the range where n > 1; a rate stands beside the bus's own, measured in the same minutes. Lesson:
notebooks/06_gpu_init, notebooks/07_checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from labkit.core import stats
from labkit.core.records import Run
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.lessons.gpu_record import (
    Record,
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
from labkit.viz.table import Table

NONE = "–"
Records = Sequence[Record]


def middle(values: Sequence[float], show: Callable[[float], str] = show_s) -> str:
    """The median, and the range of several."""
    if not values:
        return NONE
    shown, low, high = (show(v) for v in (stats.median(values), min(values), max(values)))
    if low == high:
        return shown
    same = low.partition(" ")[2] == high.partition(" ")[2]
    return f"{shown} ({low.partition(' ')[0] if same else low}–{high})"


def share(part: float | None, whole: float | None) -> str:
    return f"{part / whole:.0%}" if part is not None and whole else NONE


def yes(values: Sequence[Any]) -> str:
    """Whether all of what was looked at is true."""
    known = [v for v in values if isinstance(v, bool)]
    return NONE if not known else "all" if all(known) else f"{sum(known)} of {len(known)}"


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    records: Records,
    caption: str,
    notes: Sequence[str] = (),
) -> Table:
    where = " · ".join(
        filter(None, (stamp(records), caption, records[-1].created[:10] if records else ""))
    )
    return Table(
        tuple(head),
        tuple(tuple(words(c) for c in row) for row in rows),
        where if records else "no GPU trials are recorded: make gpu on a GPU host makes a record",
        tuple(notes),
    )


def _empty(head: Sequence[str], missing: Sequence[tuple[str, str]]) -> list[list[str]]:
    """A row for each record without a result: the model, and why."""
    return [[preset, why, *[""] * (len(head) - 2)] for preset, why in missing]


# ---- a start taken apart -------------------------------------------------------------------------


def context(records: Records) -> Table:
    """Steps from an idle device to its libraries, by way of loading; each in a fresh process."""
    rows: list[list[str]] = []
    arms: dict[str, None] = {}
    for _, found in each(records, "context"):
        arms.update(dict.fromkeys(a for a in at(found, "arms") or {} if items(found, "arms", a)))
    head = ["step", *arms] if arms else ["step", "why there is none"]
    samples, mode = 0, ""
    for _, found in each(records, "context"):
        mode = str(at(found, "persistence_mode") or "")
        by_arm = {arm: _steps(items(found, "arms", arm)) for arm in arms}
        samples = max([samples, *(len(items(found, "arms", arm)) for arm in arms)])
        for name in dict.fromkeys(n for steps in by_arm.values() for n in steps):
            rows.append([name, *(middle(by_arm[arm].get(name, [])) for arm in arms)])
        if by_arm:
            rows.append(
                [
                    "all of it",
                    *(
                        middle([sum(one) for one in _sums(items(found, "arms", arm))])
                        for arm in arms
                    ),
                ]
            )
        for copy in (
            s for s in items(found, "before", "steps") if str(s.get("name", "")).startswith("copy")
        ):
            rate = number_at(copy, "rate_bytes_per_s")
            rows.append(
                [
                    f"{copy['name']} ({copy.get('host_memory', '')})",
                    (
                        words(copy["failed"])
                        if "failed" in copy
                        else show_rate(rate)
                        if rate
                        else NONE
                    ),
                    *[""] * (len(head) - 2),
                ]
            )
    if not rows:
        rows = [["context", why] for _, why in gaps(records, "context")]
    return table(
        head,
        rows,
        records,
        (
            f"medians, n = {samples} fresh processes an arm, in turn, warm, persistence mode"
            f" {mode or 'not told'}"
            if samples
            else "not measured"
        ),
    )


def _steps(runs: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    for run in runs:
        for step in items(run, "steps"):
            seconds = number_at(step, "seconds")
            if (
                "failed" not in step
                and seconds is not None
                and not str(step.get("name", "")).startswith("copy")
            ):
                found.setdefault(str(step.get("name")), []).append(seconds)
    return found


def _sums(runs: Sequence[Mapping[str, Any]]) -> list[list[float]]:
    return [s for s in ([v for vs in _steps([run]).values() for v in vs] for run in runs) if s]


def steps(records: Records, measured: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Seconds of each step from an idle device on: of what `labkit.device.context` said here, else
    the recorded medians with lazy loading, else the phases of recorded starts of the smallest
    model; {} of nothing."""
    if measured:
        found = _steps([measured])
        found |= {
            str(s["name"]): [t]
            for s in items(measured, "steps")
            if str(s.get("name", "")).startswith("copy")
            and (t := number_at(s, "copy_s")) is not None
        }
    else:
        found = next(
            (
                made
                for _, told in each(records, "context")
                if (made := _steps(items(told, "arms", "lazy")))
            ),
            {},
        )
        found = found or next(iter(starts(records).values()), {})
    return {
        name: stats.median(values)
        for name, values in found.items()
        if values and name != "to the first token"
    }


#: Trials that start a server by themselves, and where its start is told.
PHASES = ("import", "context", "build", "load", "warmup", "ready")


def starts(records: Records) -> dict[str, dict[str, list[float]]]:
    """preset -> phase -> seconds, of every server that a trial started outside of a cold start:
    files warm, loader safetensors to the device."""
    found: dict[str, dict[str, list[float]]] = {}
    for record in records:
        told = [
            record.result(n) for n in ("cuda-checkpoint", "cuda-checkpoint-criu", "import-warm")
        ]
        told += items(record.result("decode"), "arms", "eager")
        for one in told:
            for phase in PHASES:
                if (seconds := number_at(one, "start_phases_s", phase)) is not None:
                    found.setdefault(record.preset, {}).setdefault(phase, []).append(seconds)
            if (seconds := number_at(one, "start_s")) is not None:
                found.setdefault(record.preset, {}).setdefault("to the first token", []).append(
                    seconds
                )
    return found


def started(records: Records) -> Table:
    """The served model's own start by phases, over every server that trials started."""
    found = starts(records)
    names = [
        p for p in (*PHASES, "to the first token") if any(p in phases for phases in found.values())
    ]
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


# ---- parking and waking --------------------------------------------------------------------------


def bus(records: Records) -> dict[str, float]:
    """The bus's rates from the newest record that has any: h2d and d2h, pinned and pageable,
    bytes/s."""
    for record in reversed(records):
        for name, path in (
            ("facts", ("bus",)),
            ("load-warm", ("rates",)),
            ("load-cold", ("rates",)),
            ("stack", ("floors",)),
        ):
            rates = {
                k: r
                for k in ("h2d_pinned", "d2h_pinned", "h2d_pageable", "d2h_pageable")
                if (r := number_at(record.result(name), *path, f"{k}_bytes_per_s"))
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
    rows, rates = [], bus(records)
    for record, found in each(records, "cuda-checkpoint"):
        times = items(found, "times")
        park, wake = (
            numbers(times, "rates_bytes_per_s", "park"),
            numbers(times, "rates_bytes_per_s", "wake"),
        )
        park_s = [
            a + b
            for a, b in zip(
                numbers(times, "park", "lock_s"),
                numbers(times, "park", "checkpoint_s"),
                strict=False,
            )
        ]
        wake_s = [
            a + b
            for a, b in zip(
                numbers(times, "wake", "restore_s"),
                numbers(times, "wake", "unlock_s"),
                strict=False,
            )
        ]
        rows.append(
            [
                record.preset,
                middle(numbers(times, "device_bytes"), show_bytes),
                middle(park_s),
                middle(park, show_rate),
                share(_median(park), rates.get("d2h_pinned")),
                middle(wake_s),
                middle(wake, show_rate),
                share(_median(wake), rates.get("h2d_pinned")),
                middle(numbers(times, "first_token_after_wake_s")),
                yes([t.get("equal_tokens") for t in times]),
                str(len(times)),
            ]
        )
    notes = [
        f"{record.preset}: parked, it held {_count(at(found, 'held_parked', 'descriptors'))}"
        f" descriptors and {_count(at(found, 'held_parked', 'mappings'))} mappings of the driver's"
        f" files; running {_count(at(found, 'held_running', 'descriptors'))} and"
        f" {_count(at(found, 'held_running', 'mappings'))}"
        for record, found in each(records, "cuda-checkpoint")
    ]
    return table(
        head,
        [*rows, *_empty(head, gaps(records, "cuda-checkpoint"))],
        records,
        "in memory, no file involved; floor: bytes ÷ the bus's pinned rate",
        notes,
    )


def _count(things: object) -> int:
    """How many there are; 0 of what is no collection (a damaged record)."""
    return len(things) if isinstance(things, (dict, list)) else 0


def _median(values: Sequence[float]) -> float | None:
    return stats.median(values) if values else None


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
            [
                record.preset,
                middle(numbers([found], "bytes"), show_bytes),
                middle(numbers(times, "wake_s")),
                middle(numbers(times, "rate_bytes_per_s"), show_rate),
                middle(numbers(times, "bus_rate_bytes_per_s"), show_rate),
                middle(numbers(times, "share_of_bus"), "{:.0%}".format),
                middle(numbers(times, "sleep_s")),
                str(len(times)),
            ]
        )
    return table(
        head,
        [*rows, *_empty(head, gaps(records, "wake"))],
        records,
        "in memory; floor: bytes ÷ the bus's rate from the same memory",
    )


def times_faster(records: Records) -> dict[str, float | None]:
    """How many times as fast: waking from pinned memory as by the driver's checkpoint (bytes a
    second), a token with a graph as without. None: not measured.

    Of the largest model that has both."""
    made: dict[str, float | None] = {
        "woken from pinned memory against by the driver": None,
        "a further token with a graph against without": None,
    }
    for record in records:
        by_driver = _median(
            numbers(items(record.result("cuda-checkpoint"), "times"), "rates_bytes_per_s", "wake")
        )
        by_copy = _median(numbers(items(record.result("wake"), "times"), "rate_bytes_per_s"))
        if by_driver and by_copy:
            made["woken from pinned memory against by the driver"] = by_copy / by_driver
        eager, graph = (
            _median(
                numbers(
                    items(record.result("decode"), "arms", arm), "third_request", "decode_median_s"
                )
            )
            for arm in ("eager", "fewer-graphs")
        )
        if eager and graph:
            made["a further token with a graph against without"] = eager / graph
    return made


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
    rows: list[list[str]] = []
    for name, title in (
        ("cuda-checkpoint-criu", "GPU state inside"),
        ("import-warm", "imports only"),
    ):
        for record, found in each(records, name):
            start = number_at(found, "start_s")
            rows.append(
                [
                    record.preset,
                    "start",
                    "unverified",
                    "",
                    "",
                    "",
                    show_s(start) if start is not None else NONE,
                    "",
                    "",
                ]
            )
            dumps = [
                d for d in (*items(found, "dumps"), at(found, "dump")) if isinstance(d, Mapping)
            ]
            for made in dumps:
                rows.append(
                    [
                        record.preset,
                        f"dump, {title}",
                        "",
                        middle(numbers([made], "image_bytes"), show_bytes),
                        middle(numbers([made], "dump_s")),
                        "",
                        "",
                        "",
                        words(made.get("outcome") or made.get("error") or "ok"),
                    ]
                )
            size = next(iter(numbers(list(reversed(dumps)), "image_bytes")), None)
            for want in dict.fromkeys(str(r.get("want")) for r in items(found, "restores")):
                some = [r for r in items(found, "restores") if str(r.get("want")) == want]
                bad = [r for r in some if r.get("outcome") != "ok"]
                rows.append(
                    [
                        record.preset,
                        f"restore, {title}",
                        words(
                            "/".join(
                                sorted(
                                    {
                                        str(at(r, "cache", "image", "state") or "unverified")
                                        for r in some
                                    }
                                )
                            )
                        ),
                        show_bytes(size) if size else NONE,
                        middle(numbers(some, "criu_restore_s")),
                        middle(
                            [
                                a + b
                                for a, b in zip(
                                    numbers(some, "cuda", "restore_s"),
                                    numbers(some, "cuda", "unlock_s"),
                                    strict=False,
                                )
                            ]
                        ),
                        middle(numbers(some, "gone_to_first_token_s")),
                        yes([r.get("equal_tokens") for r in some]),
                        words(
                            "; ".join(f"{r.get('outcome', '')}: {r.get('error', '')}" for r in bad)
                        )
                        or f"ok, n = {len(some)}",
                    ]
                )
    rows += _empty(head, gaps(records, "cuda-checkpoint-criu"))
    rows += _empty(
        head, [g for g in gaps(records, "import-warm") if not g[1].startswith("not tried")]
    )
    return table(
        head,
        rows,
        records,
        "CRIU without its CUDA plugin, parked by the driver's calls; cache state of the image"
        " proven by page residency",
    )


def checkpoint_shares(records: Records) -> dict[str, float | None]:
    """Restore from a cold image ÷ start, to the first token, and the driver's slower way ÷ the
    pinned bus; of the largest model that has it. None: not measured."""
    made: dict[str, float | None] = {
        "a restore with the GPU's state, image cold, against a start": None,
        "the driver's park or wake, the slower one, against the pinned bus": None,
    }
    rates = bus(records)
    for record in records:
        found = record.result("cuda-checkpoint-criu")
        start, cold = (
            number_at(found, "start_s"),
            [
                r
                for r in items(found, "restores")
                if r.get("want") == "cold" and r.get("outcome") == "ok"
            ],
        )
        if start and (took := _median(numbers(cold, "gone_to_first_token_s"))) is not None:
            made["a restore with the GPU's state, image cold, against a start"] = took / start
        times = items(record.result("cuda-checkpoint"), "times")
        ways = [
            (_median(numbers(times, "rates_bytes_per_s", way)), rates.get(limit))
            for way, limit in (("park", "d2h_pinned"), ("wake", "h2d_pinned"))
        ]
        if shares := [rate / limit for rate, limit in ways if rate and limit]:
            made["the driver's park or wake, the slower one, against the pinned bus"] = min(shares)
    return made


# ---- loaders -------------------------------------------------------------------------------------


def load_documents(records: Records) -> list[tuple[str, Mapping[str, Any]]]:
    """(preset, what `labkit bench load` said) of every trial that loaded weights to the device."""
    return [
        (record.preset, found)
        for name in ("load-cold", "load-warm")
        for record, found in each(records, name)
        if items(found, "results")
    ]


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
    rows = []
    for preset, found in load_documents(records):
        for r in sorted(items(found, "results"), key=lambda r: number_at(r, "median_s") or 1e9):
            took, floor = number_at(r, "median_s"), number_at(r, "floor_s")
            loader = str(r.get("arm", "")).rpartition(".")[0] or str(r.get("arm", ""))
            if took is None:
                rows.append(
                    [
                        preset,
                        loader,
                        "",
                        words(r.get("missing") or "not measured"),
                        "",
                        "",
                        "",
                        "",
                        "",
                    ]
                )
                continue
            size = number_at(r, "weights_bytes")
            rows.append(
                [
                    preset,
                    loader,
                    words(r.get("cache", "unverified")),
                    show_s(took),
                    f"{size / took / 1e9:.2f}" if size and took else NONE,
                    show_s(floor) if floor else NONE,
                    f"{took / floor:.2f}" if floor else NONE,
                    words(r.get("n", "")),
                    words(r.get("failed", "")),
                ]
            )
    for name in ("load-cold", "load-warm"):
        rows += _empty(
            head,
            [
                (preset, f"{name}: {why}")
                for preset, why in gaps(records, name)
                if not why.startswith("not tried")
            ],
        )
    floors = dict.fromkeys(words(found.get("floor_by", "")) for _, found in load_documents(records))
    return table(
        head,
        rows,
        records,
        "all bytes on the device; the loader's own import is in it; floor:"
        f" {'; '.join(filter(None, floors)) or 'not told'}",
    )


def first_on_device(
    records: Records, measured: Mapping[str, Any] | None = None
) -> dict[str, tuple[str, float]]:
    """ "model, cache state" -> the first loader and its times of the floor; of a bench here, or of
    what is recorded."""
    documents = (
        [(str(measured.get("preset", "")), measured)] if measured else load_documents(records)
    )
    best: dict[str, tuple[float, str, float]] = {}
    for preset, found in documents:
        for r in items(found, "results"):
            took, floor, state = (
                number_at(r, "median_s"),
                number_at(r, "floor_s"),
                f"{preset}, {words(r.get('cache', 'unverified'))}",
            )
            if took is not None and floor and (state not in best or took < best[state][0]):
                best[state] = (took, str(r.get("arm", "")).rpartition(".")[0], took / floor)
    return {state: (loader, times) for state, (_, loader, times) in best.items()}


# ---- tokens --------------------------------------------------------------------------------------


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
    rows = []
    for record, found in each(records, "decode"):
        arms = at(found, "arms") or {}
        for arm in arms if isinstance(arms, Mapping) else {}:
            runs = items(found, "arms", arm)
            equal = at(found, "equal_tokens", arm)
            rows.append(
                [
                    record.preset,
                    arm,
                    middle(numbers(runs, "start_phases_s", "warmup")),
                    middle(numbers(runs, "start_s")),
                    middle(numbers(runs, "third_request", "decode_median_s")),
                    middle(numbers(runs, "third_request", "decode_slowest_s")),
                    middle(numbers(runs, "device_used_bytes"), show_bytes),
                    "yes" if equal is True else "no" if equal is False else NONE,
                    str(len(runs)) if runs else "failed",
                ]
            )
    states = sorted(
        {str(at(found, "cache", "state") or "unverified") for _, found in each(records, "decode")}
    ) or ["unverified"]
    return table(
        head,
        [*rows, *_empty(head, gaps(records, "decode"))],
        records,
        f"cache {'/'.join(states)} before the first server; a further token: median within the"
        " third request, batch 1; floor of a token: bytes of the weights ÷ the device memory's"
        " rate, not measured",
    )


# ---- stacks --------------------------------------------------------------------------------------

NAIVE = "no-image"
#: Techniques that keep something on the device before a start: none of theirs is a start from
#: nothing.
KEPT = ("warm-standby", "device-resident")


def stack_rows(records: Records) -> list[tuple[Record, Mapping[str, Any], Mapping[str, Any]]]:
    """(record, what `labkit run` said, one arm of it) for every trial that ran stacks. Where one
    trial went on with the record of another, the later one holds both."""
    made = []
    for record in records:
        for names in (("naive", "stack"), ("resident",), ("compile",)):
            found = next((f for f in map(record.result, names) if items(f, "results")), {})
            made += [(record, found, arm) for arm in items(found, "results")]
    return made


def against_naive(found: Mapping[str, Any], arm: Mapping[str, Any]) -> float | None:
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
    rows = []
    for record, found, arm in stack_rows(records):
        name, took, ratio = (
            str(arm.get("arm", "")),
            number_at(arm, "median_s"),
            against_naive(found, arm),
        )
        if took is None:
            rows.append(
                [
                    record.preset,
                    name,
                    "",
                    words(arm.get("missing") or "not measured"),
                    "",
                    "",
                    "",
                    "",
                    "",
                ]
            )
            continue
        phases = [
            show_s(p) if (p := number_at(arm, "phases", phase)) is not None else NONE
            for phase in ("context", "load")
        ]
        floor = number_at(arm, "floor_s")
        rows.append(
            [
                record.preset,
                name,
                f"{arm.get('scenario', '')}, {arm.get('cache', 'unverified')}",
                show_s(took),
                f"{ratio:.3f}" if ratio is not None else NONE,
                *phases,
                show_s(floor) if floor else NONE,
                words(arm.get("n", "")),
            ]
        )
    for name in ("stack", "naive", "resident", "compile"):
        rows += _empty(
            head,
            [
                (preset, f"{name}: {why}")
                for preset, why in gaps(records, name)
                if not why.startswith("not tried")
            ],
        )
    return table(
        head,
        rows,
        records,
        "no image; floor: of all phases that move bytes; of n < 5 no ratio is significant",
    )


def best_stack(run: Run) -> str:
    """The fastest arm of a run that starts from nothing, the naive one left out; "" where there is
    none."""
    took = {
        name: stats.median(good)
        for name in run.arm_names
        if name != NAIVE
        and not any(k in name for k in KEPT)
        and (good := [t.total_s for t in run.of_arm(name) if t.total_s is not None])
    }
    return min(took, key=lambda name: took[name]) if took else ""

"""GPU trials as a whole: the host, every trial with its outcome, the goals of such a host – and all
tables and figures as a page, text or Markdown.

    goals(records)                    # what an H100 should reach with the 8b shape, against what it
        did
    claimed(records)                  # rows for the article's table
    html(records, "GPU trials")       # the gallery's page;  text(records): labkit show;
        markdown(records): docs/h100.md

Lesson: notebooks/06_gpu_init, notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from labkit.core import stats
from labkit.core.records import Run
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.lessons import gpu_figures, gpu_record, pages
from labkit.lessons.gpu_record import (
    Record,
    at,
    each,
    items,
    number_at,
    numbers,
    reason,
    stamp,
    words,
)
from labkit.lessons.gpu_tables import (
    KEPT,
    NAIVE,
    NONE,
    against_naive,
    bus,
    context,
    decoded,
    loaded,
    middle,
    parked,
    restored,
    stack_rows,
    stacked,
    started,
    table,
    woken,
    yes,
)
from labkit.stack import claims
from labkit.viz.table import Table

Records = Sequence[Record]


def tried(records: Records) -> Table:
    """Every trial of every record: outcome, seconds, reason."""
    rows = [
        [
            record.preset,
            t["name"],
            t["outcome"],
            show_s(s) if (s := number_at(t, "seconds")) is not None else "",
            "" if t["outcome"] == "ok" else words(reason(t).partition(": ")[2]),
        ]
        for record in records
        for t in record.trials
    ]
    return table(
        ["model", "trial", "outcome", "took", "reason"],
        rows,
        records,
        "each a process of its own, under its own time limit",
    )


def facts(records: Records) -> Table:
    """The host that it was made on."""
    rows: list[list[str]] = []
    for record in records[-1:]:
        card, told = (
            record.host,
            next((found for _, found in each(tuple(reversed(records)), "facts")), {}),
        )
        gpu = at(card, "gpus", 0) or {}
        disk, rates = at(told, "disk") or {}, bus(records)
        rows = [
            [
                "GPU",
                (
                    f"{at(gpu, 'name') or NONE}, {show_bytes(number_at(gpu, 'memory_bytes') or 0)},"
                    f" driver {at(gpu, 'driver') or '?'}, persistence"
                    f" {'on' if at(gpu, 'persistence') else 'off'}"
                ),
            ],
            [
                "CPU, memory",
                (
                    f"{at(card, 'cpu', 'count')} × {at(card, 'cpu', 'model')},"
                    f" {show_bytes(number_at(card, 'memory_bytes') or 0)},"
                    f" {at(card, 'virtualisation') or 'bare metal'}"
                ),
            ],
            [
                "software",
                (
                    f"{at(card, 'distribution')}, Linux {at(card, 'kernel')}, Python"
                    f" {at(card, 'python')}, torch"
                    f" {at(told, 'torch', 'version') or at(card, 'torch')}"
                ),
            ],
            [
                "bus, to the device",
                f"pinned {_rate(rates, 'h2d_pinned')}, pageable {_rate(rates, 'h2d_pageable')}",
            ],
            [
                "bus, from the device",
                f"pinned {_rate(rates, 'd2h_pinned')}, pageable {_rate(rates, 'd2h_pageable')}",
            ],
            [
                "disk",
                (
                    f"reads {_rate(disk, 'disk_read')} past the cache, writes"
                    f" {_rate(disk, 'disk_write')}"
                ),
            ],
            ["import of torch, first time", middle(numbers([told], "torch", "import_s"))],
            [
                "CRIU",
                words(
                    at(told, "tools", "criu", "said")
                    or at(told, "tools", "criu", "missing")
                    or NONE
                ),
            ],
        ]
    return table(["what", "here"], rows, records, "")


def _rate(rates: Any, key: str) -> str:
    value = number_at(rates, key) or number_at(rates, f"{key}_bytes_per_s")
    return show_rate(value) if value else "not measured"


# ---- goals ---------------------------------------------------------------------------------------


def goals(records: Records, preset: str = "8b") -> Table:
    """What such a host should reach with the 8b shape, against what it did."""
    rows = []
    of = [r for r in records if r.preset == preset]
    from_nothing = [
        (record, found, arm)
        for record, found, arm in stack_rows(of)
        if arm.get("scenario") == "warm-node"
        and number_at(arm, "median_s") is not None
        and arm.get("arm") != NAIVE
        and not any(k in str(arm.get("arm")) for k in KEPT)
    ]
    for record, found, arm in sorted(
        from_nothing, key=lambda row: number_at(row[2], "median_s") or 0
    )[:1]:
        name, took, made = (
            str(arm.get("arm", "")),
            number_at(arm, "median_s"),
            number_at(arm, "phases", "context"),
        )
        size = number_at(record.result("model"), "safetensors", "bytes")
        slower = min(
            (
                r
                for n in ("disk_read_bytes_per_s", "h2d_pinned_bytes_per_s")
                if (r := number_at(found, "floors", n))
            ),
            default=None,
        )
        if size and slower and took is not None and made is not None:
            bound = 1.25 * size / slower + made + 1
            rows.append(
                [
                    (
                        f"{name}: cold disk to the first token ≤ 1.25 × (bytes ÷ the slower of disk"
                        f" and bus, {show_rate(slower)}) + context + 1 s"
                    ),
                    show_s(bound),
                    show_s(took),
                    _met(took <= bound),
                ]
            )
        ratio = against_naive(found, arm)
        if ratio is not None:
            rows.append(
                [
                    f"{name}: stacked ÷ naive ≤ 0.35 on a warm node",
                    "0.35",
                    f"{ratio:.2f}",
                    _met(ratio <= 0.35),
                ]
            )
    for _, found in each(of, "wake"):
        if parts := numbers(items(found, "times"), "share_of_bus"):
            rows.append(
                [
                    "pinned wake-up ≥ 90 % of the pinned bus rate",
                    "90%",
                    middle(parts, "{:.0%}".format),
                    _met(stats.median(parts) >= 0.9),
                ]
            )
    for _, found in each(of, "cuda-checkpoint"):
        same = [t.get("equal_tokens") for t in items(found, "times")]
        if same:
            rows.append(
                ["equal tokens after every park and wake", "all", yes(same), _met(all(same))]
            )
    return table(
        ["goal", "bound", f"measured, {preset}", "met"],
        rows or [[f"{preset}: nothing of it was measured", "", "", ""]],
        records,
        "medians",
    )


def _met(reached: bool) -> str:
    return "yes" if reached else "no"


# ---- ways to have a server -----------------------------------------------------------------------


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
    made = []
    for record, _, arm in stack_rows(records):
        if (median_s := number_at(arm, "median_s")) is not None:
            name, size = (
                str(arm.get("arm", "")),
                number_at(record.result("wake"), "bytes")
                or number_at(record.result("model"), "safetensors", "bytes")
                or 0.0,
            )
            resident = any(k in name for k in KEPT)
            kept = (
                {"pinned": size, "device": _held_asleep(runs, record.preset, name)}
                if "warm-standby" in name
                else {"device": size}
                if resident
                else {}
            )
            made.append(
                Way(
                    record.preset,
                    name,
                    median_s,
                    int(number_at(arm, "n") or 0),
                    str(arm.get("cache", "unverified")),
                    kept,
                    resident,
                )
            )
    for record, found in each(records, "cuda-checkpoint"):
        times = items(found, "times")
        woken_s = [
            a + b + c
            for a, b, c in zip(
                numbers(times, "wake", "restore_s"),
                numbers(times, "wake", "unlock_s"),
                numbers(times, "first_token_after_wake_s"),
                strict=False,
            )
        ]
        held = numbers(times, "resident_parked_bytes") or numbers(times, "device_bytes")
        left = numbers(times, "device_parked_bytes")
        if woken_s:
            made.append(
                Way(
                    record.preset,
                    "parked by the driver, woken",
                    stats.median(woken_s),
                    len(woken_s),
                    "in memory",
                    {"host": stats.median(held) if held else 0.0, "device": max(left, default=0.0)},
                    max(left, default=0.0) > 0,
                )
            )
    for record, found in each(records, "cuda-checkpoint-criu"):
        size = next(iter(numbers(list(reversed(items(found, "dumps"))), "image_bytes")), 0.0)
        for want in ("cold", "warm"):
            took = numbers(
                [
                    r
                    for r in items(found, "restores")
                    if r.get("want") == want and r.get("outcome") == "ok"
                ],
                "gone_to_first_token_s",
            )
            if took:
                made.append(
                    Way(
                        record.preset,
                        "restored by CRIU and the driver",
                        stats.median(took),
                        len(took),
                        want,
                        {"disk": size},
                    )
                )
    return sorted(made, key=lambda w: (w.preset, w.first_token_s))


def _held_asleep(runs: Sequence[Run], preset: str, arm: str) -> float:
    """Bytes of the device that a standby's process held while its weights slept, by its evidence; 0
    where no record says so."""
    told = [
        e.get("facts")
        for r in runs
        if r.experiment.get("preset") == preset
        for t in r.of_arm(arm)
        for e in t.evidence
    ]
    return stats.median(found) if (found := numbers(told, "device_bytes_asleep")) else 0.0


def kept(records: Records, runs: Sequence[Run] = ()) -> Table:
    """Seconds against what is held for them."""
    rows = []
    for w in ways(records, runs):
        held = [
            f"{show_bytes(size)} {WHERE[where]}" for where, size in w.kept_bytes.items() if size
        ]
        rows.append(
            [
                w.preset,
                w.name,
                show_s(w.first_token_s),
                w.cache,
                ", ".join(held) + (", and its process" if w.on_device else "")
                or "the model's files only",
                str(w.n),
            ]
        )
    return table(
        ["model", "way", "first token", "cache", "kept around the clock", "n"],
        rows,
        records,
        "beside the model's files on the disk; cache of what a start reads",
    )


WHERE = {
    "pinned": "of pinned host memory",
    "host": "of host memory",
    "device": "on the device",
    "disk": "of disk",
}


def first_that_leaves_the_device(records: Records) -> Way | None:
    """Of the largest model that has any: the fastest way that keeps nothing on the device."""
    largest = [w for record in reversed(records) for w in ways([record]) if not w.on_device]
    return (
        min((w for w in largest if w.preset == largest[0].preset), key=lambda w: w.first_token_s)
        if largest
        else None
    )


# ---- the article's claims ------------------------------------------------------------------------


def claimed(records: Records) -> list[claims.Row]:
    """Rows of the article's table that only GPU trials measured: the GPU's state restored by CRIU
    and the driver against a start, image cold and warm.

    Of few restores the interval is their range, and n < 5 is never significant."""
    article = next(r for r in claims.ROWS if r.label == "CUDA checkpoint + CRIU")
    rows = []
    for record, found in each(records, "cuda-checkpoint-criu"):
        start = number_at(found, "start_s")
        for want in ("cold", "warm"):
            took = numbers(
                [
                    r
                    for r in items(found, "restores")
                    if r.get("want") == want and r.get("outcome") == "ok"
                ],
                "gone_to_first_token_s",
            )
            if not start or not took:
                continue
            parts = sorted(t / start for t in took)
            ratio = {
                "median": stats.median(parts),
                "low": parts[0],
                "high": parts[-1],
                "n": len(parts),
                "significant": len(parts) >= 5 and not parts[0] <= 1 <= parts[-1],
            }
            setup = (
                f"image {want}, start with an unverified cache, no image of a container,"
                f" {record.preset}, on {claims.gpu_of(record.host)}, n = {len(parts)},"
                f" {stamp([record])}"
            )
            rows.append(
                claims.Row(
                    article.claim,
                    article.layer,
                    article.label,
                    "cuda-checkpoint + criu",
                    ratio,
                    ratio,
                    claims.verdict(ratio, article.claim),
                    setup,
                )
            )
    return rows


TABLES: dict[str, tuple[str, Callable[[Records], Table]]] = {
    "facts": ("The host", facts),
    "tried": ("Every trial", tried),
    "goals": ("Goals", goals),
    "stacked": ("Whole starts", stacked),
    "started": ("A start by phases", started),
    "context": ("The context taken apart", context),
    "loaded": ("Weights to the device", loaded),
    "parked": ("Parked and woken by the driver", parked),
    "woken": ("Woken from pinned memory", woken),
    "restored": ("CUDA checkpoint and CRIU", restored),
    "decoded": ("Graphs against eager", decoded),
    "kept": (
        "Ways to a first token, and what they keep",
        lambda records: kept(records, runs_of(records)),
    ),
}


def runs_of(records: Records) -> list[Run]:
    """The recorded runs beside these records."""
    return gpu_record.runs(host=records[-1].name.partition("/")[0]) if records else []


def markdown(records: Records, only: Sequence[str] = ()) -> str:
    """Tables as Markdown, a heading each."""
    parts = []
    for name in only or TABLES:
        title, make = TABLES[name]
        made = make(records)
        lines = ["| " + " | ".join(_cell(c) for c in row) + " |" for row in (made.head, *made.rows)]
        lines.insert(1, "|" + "---|" * len(made.head))
        parts.append(
            "\n".join(
                [
                    f"### {title}",
                    "",
                    *lines,
                    "",
                    f"*{made.caption}*",
                    *(f"- {n}" for n in made.notes),
                ]
            )
        )
    return "\n\n".join(parts)


def _cell(text: str) -> str:
    return text.replace("|", "\\|") or " "


def html(records: Records, title: str, level: int = 1) -> str:
    """A page's worth: the host, every trial with its outcome and reason, the figures, then the
    tables behind them."""
    return pages.render(
        "gpu_trials.html.j2",
        title=title,
        level=level,
        stamp=stamp(records),
        tables=[(heading, make(records)) for heading, make in TABLES.values()],
        figures=gpu_figures.every(records),
    )


def text(records: Records) -> str:
    """The same in words."""
    return "\n\n".join(f"{said}\n{make(records).text}" for said, make in TABLES.values())

"""One trial as a trace for Perfetto (ui.perfetto.dev) and chrome://tracing: what ran beside what,
to the microsecond.

A waterfall shows phases; a trace shows what lies below them, each process of the trial with its
spans, single transfers of registry and bucket, and the machine's counters on the same axis, from t0
on. Which trial: the median one of an arm, or any by its number in the record, as `labkit show RUN
--trials` prints it.

    chosen = choose(run, arm="naive")        # or choose(run, number=3)
    save(run, chosen, Path("naive.trace.json"))

Limits: a span says what its process wrote, so a moment without one is not idle; rates are means of
a sampling interval (0.1 s or more); an old record has no single transfers, only totals. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core import outputs, printable, sampler, transfers
from labkit.core.beside import replacing
from labkit.core.json_types import JsonObject
from labkit.core.records import Run, Trial
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.viz import captions
from labkit.viz.trace_events import (
    Counter,
    Mark,
    Process,
    Slice,
    Track,
    document,
    encoded,
    is_trace,
)

VIEWERS = (
    "https://ui.perfetto.dev (Open trace file; the file stays in the browser) or chrome://tracing"
    " (Load)"
)
#: How the processes of a trial are called, in the order of their lanes.
SOURCES = {"client": "client", "agent": "node agent", "server": "server"}
#: Ending of a series' name -> unit and factor.
_UNITS = (
    ("_bytes_per_s", "MB/s", 1e-6),
    ("_bytes", "MB", 1e-6),
    ("_share", "%", 100.0),
    ("_s", "s", 1.0),
)


@dataclass(frozen=True)
class Chosen:
    """A trial and its number in the record, from 1."""

    number: int
    trial: Trial


def choose(run: Run, number: int = 0, arm: str = "") -> Chosen:
    """The trial of that number, or the median one of `arm` (the first arm by default). Raises
    BadInput where there is none, or none with spans."""
    if number:
        if not 1 <= number <= len(run.trials):
            raise BadInput(
                f"no trial {number} in run {run.id}: it holds {len(run.trials)}",
                fix="labkit show RUN --trials numbers them",
            )
        trial = run.trials[number - 1]
        if arm and trial.arm != arm:
            raise BadInput(
                f"trial {number} of run {run.id} is of arm {trial.arm!r}, not {arm!r}",
                fix="leave out --arm, or labkit show RUN --trials --arm ARM",
            )
    else:
        trial = captions.choose(run, arm).trial
        number = next(i for i, t in enumerate(run.trials, 1) if t is trial)
    if not trial.spans:
        raise BadInput(
            f"trial {number} of run {run.id} ({trial.arm}, {trial.outcome}) has no spans",
            why="no process of it reported one, so there is nothing to put on a time axis",
            fix="labkit show RUN --trials lists the others",
        )
    return Chosen(number, trial)


def trace(run: Run, chosen: Chosen) -> JsonObject:
    """The document. Times are counted from t0."""
    trial = chosen.trial
    shown = captions.Shown(
        trial,
        run.arm_named(trial.arm) or {"name": trial.arm},
        run.host,
        replayed_from=captions.replayed_from(run),
        simulated=captions.simulated(run),
        device=captions.device(run),
        model=captions.model(run),
    )
    processes = [
        _cold_start(shown),
        *_processes(trial),
        _stores(trial),
        Process("machine", counters=_counters(trial.samples.get("series"))),
    ]
    return document(
        [p for p in processes if p.tracks or p.counters],
        {
            "labkit-run": run.id,
            "labkit-created": run.created,
            "labkit-version": run.lab_version,
            "labkit-trial": chosen.number,
            "labkit-arm": trial.arm,
            "labkit-outcome": trial.outcome,
            "labkit-stands-on": captions.caption(shown),
            "labkit-stamp": captions.stamp(shown),
        },
    )


def save(run: Run, chosen: Chosen, path: Path, private: bool = False) -> JsonObject:
    """Write the trace of `chosen`; compressed where the name ends in .gz. Returns the document.
    Raises BadInput where a file lies that is no trace of ours. `private`: for its owner only."""
    outputs.refuse_stranger(path, is_trace, "a trace of the lab")
    doc = trace(run, chosen)
    with replacing(path) as part:
        part.write_bytes(encoded(doc, compressed=path.suffix == ".gz"))
        os.chmod(part, 0o600 if private else 0o644)
    return doc


def written(chosen: Chosen, path: Path) -> str:
    """What a person reads of a trace: whose it is, where, and how it is opened."""
    return (
        f"{path}: trial {chosen.number}, {chosen.trial.arm}, {chosen.trial.outcome}\n"
        f"open it in {VIEWERS}"
    )


def save_beside_record(run: Run, arm: str = "") -> Path:
    """For a notebook: the median trial of an arm, in the workspace's runs/, where records are. Says
    where, how it is opened, and the command that makes one of any other trial."""
    chosen, runs = choose(run, arm=arm), Workspace.default().runs
    path = runs / f"{run.id}-{re.sub(r'[^0-9A-Za-z]+', '-', chosen.trial.arm)}.trace.json.gz"
    save(run, chosen, path)
    record = runs / f"{run.id}.json"
    print(
        printable.text(
            f"{path}: the median trial of {chosen.trial.arm}\n"
            f"open it in {VIEWERS}\n"
            f"of any trial: labkit trace {record if record.is_file() else 'RUN'} --trial N"
        )
    )
    return path


def _cold_start(shown: captions.Shown) -> Process:
    """What the waterfall shows: the whole, the phases, their floors; t0, first token, evidence."""
    trial, rows = shown.trial, captions.rows(shown.trial)
    stamp = captions.stamp(shown)
    cache = trial.cache.get("state", "unverified")
    end_s = trial.total_s if trial.total_s is not None else max(s["end_s"] for s in trial.spans)
    whole = Slice(
        captions.title(shown)
        + (" [disturbed]" if trial.disturbed else "")
        + (f" [{stamp}]" if stamp else ""),
        0.0,
        end_s,
        {
            "outcome": trial.outcome,
            "stands on": captions.caption(shown),
            "cache": trial.cache,
            "unaccounted_s": trial.unaccounted_s,
            **({"disturbed": trial.disturbed} if trial.disturbed else {}),
            **({"error": trial.error} if trial.error else {}),
        },
    )
    phases, gaps = (
        [
            Slice(
                row.phase,
                start_s,
                end_s,
                {"took_s": row.took_s, "floor_s": row.floor_s, "cache": cache},
            )
            for row in rows
            if (row.phase == captions.UNACCOUNTED) == unaccounted
            for start_s, end_s in row.pieces
        ]
        for unaccounted in (False, True)
    )
    floors = [
        Slice(
            f"{row.phase}: floor",
            row.start_s,
            row.start_s + row.floor_s,
            {"floor_s": row.floor_s, "took_s": row.took_s, "cache": cache},
        )
        for row in rows
        if row.floor_s
    ]
    marks = [Mark("t0", 0.0, everywhere=True)]
    if trial.total_s is not None:
        marks.append(Mark("first token", trial.total_s, everywhere=True))
    evidence = [
        Mark(
            f"{'engaged' if e['engaged'] else 'NOT ENGAGED'}: {e['technique']}",
            end_s,
            {"how": e["how"], **e.get("facts", {})},
        )
        for e in trial.evidence
    ]
    tracks = [Track("cold start", (whole,), marks), Track("phases", phases)]
    tracks += [Track("floors", floors)] if floors else []
    tracks += [Track("unaccounted", gaps)] if gaps else []
    tracks += [Track("evidence", marks=evidence)] if evidence else []
    return Process(f"cold start of {trial.arm}" + (f" [{stamp}]" if stamp else ""), tracks)


def _processes(trial: Trial) -> Iterator[Process]:
    """Each process that wrote spans; the client also waits."""
    of_source: dict[str, list[Slice]] = {source: [] for source in SOURCES}
    if trial.total_s is not None:
        request = Slice("request", 0.0, trial.total_s, {"attempts": trial.facts.get("attempts")})
        of_source["client"].append(request)
    for s in trial.spans:
        of_source.setdefault(s.get("source", ""), []).append(
            Slice(s["name"], s["start_s"], s["end_s"], s.get("detail", {}))
        )
    for source, slices in of_source.items():
        if slices:
            name = SOURCES.get(source, source or "a process without a name")
            yield Process(name, (Track(name, slices),))


def _stores(trial: Trial) -> Process:
    """Single transfers of registry and bucket, how many were under way, and their totals."""
    of_store: dict[str, list[transfers.Transfer]] = {}
    for transfer in transfers.read(trial.facts):
        of_store.setdefault(transfer.store, []).append(transfer)
    tracks = [
        Track(
            store,
            [
                Slice(
                    t.path.rstrip("/").rpartition("/")[2] or t.path,
                    t.start_s,
                    t.end_s,
                    {"bytes": t.size_bytes, "path": t.path},
                )
                for t in found
            ],
        )
        for store, found in of_store.items()
    ]
    counters = [
        Counter(f"{store}: under way", "requests", _under_way(found))
        for store, found in of_store.items()
    ]
    totals = tuple(_totals(trial))
    return Process(
        "stores and link", [*tracks, Track("totals", marks=totals)] if totals else tracks, counters
    )


def _totals(trial: Trial) -> Iterator[Mark]:
    stores = trial.facts.get("stores")
    left_out = (trial.facts.get("transfers") or {}).get("left_out", 0)
    at_s = trial.total_s or 0.0
    for store, counters in stores.items() if isinstance(stores, dict) else ():
        if isinstance(counters, dict) and all(
            _number(counters.get(key)) is not None for key in ("requests", "bytes_sent")
        ):
            yield Mark(
                f"{store}: {counters['requests']} requests, {show_bytes(counters['bytes_sent'])}",
                at_s,
                {k: v for k, v in counters.items() if not isinstance(v, (dict, list))},
            )
    if left_out:
        yield Mark(f"{left_out} small transfers are not drawn", at_s)


def _under_way(found: Sequence[transfers.Transfer]) -> list[tuple[float, float]]:
    changes = sorted([(t.start_s, 1) for t in found] + [(t.end_s, -1) for t in found])
    points: dict[float, float] = {}
    now = 0
    for at_s, change in changes:
        now += change
        points[at_s] = now
    return list(points.items())


def _counters(series: Any) -> list[Counter]:
    """Every curve of the samples. A rate is the mean of the interval that ends at its moment, so it
    is drawn from where that interval began; a gauge from its moment on."""
    if not isinstance(series, dict) or not isinstance(series.get("t_s"), list):
        return []
    times_s = [_number(t) for t in series["t_s"]]
    curves = []
    for key, values in series.items():
        if key == "t_s" or not isinstance(values, list):
            continue
        ending, unit, factor = next((u for u in _UNITS if key.endswith(u[0])), ("", key, 1.0))
        points = [
            (max(began_s or 0.0, 0.0), round(number * factor, 6))
            for began_s, ended_s, number in zip(
                times_s if key in sampler.GAUGES else [0.0, *times_s],
                times_s,
                map(_number, values),
                strict=False,
            )
            if ended_s is not None and ended_s >= 0 and number is not None
        ]
        if points:
            name = key.removesuffix(ending).replace("_", " ")
            curves.append(Counter(name, unit, points))
    return curves


def _number(value: Any) -> float | None:
    """A finite number, or None: samples are not checked when a record is read."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None

"""The Trace Event Format: slices, marks and counters of processes, as the JSON that Perfetto
(ui.perfetto.dev) and chrome://tracing open.

What the format asks for and its readers check (Perfetto: importers/json): every process and thread
has a name; times are microseconds, here whole ones from 0 on, as a reader rounds fractions; the
complete events ("X") of one thread nest or follow each other – a partial overlap is moved aside or
dropped – so a track that overlaps itself becomes several threads here (`lanes`); counters ("C") are
numbers; text has no control character and the document no NaN, which JSON does not have.

    doc = document([Process("server", (Track("server", (Slice("load", 0.5, 2.0),)),))], {"n": 1})
    Path("trace.json").write_bytes(encoded(doc))

Limit: a viewer's, some 10^5 slices; a trial has some hundreds. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import gzip
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from labkit.core import printable, secrets
from labkit.core.json_types import JsonMapping, JsonObject

#: Stands in the first event, so that a file of ours is known by its beginning (`is_trace`).
LABEL = "labkit trace"
#: Thread ids are unique in the document: a reader may take one id for one thread.
_THREADS_OF_A_PROCESS = 100_000


@dataclass(frozen=True)
class Slice:
    """A stretch of time, seconds from t0. What began before t0 is cut there, and says so."""

    name: str
    start_s: float
    end_s: float
    args: JsonMapping = field(default_factory=dict)

    @property
    def from_us(self) -> int:
        return max(0, round(self.start_s * 1e6))

    @property
    def to_us(self) -> int:
        return max(self.from_us, round(self.end_s * 1e6))


@dataclass(frozen=True)
class Mark:
    """A moment. `everywhere`: a line through all tracks."""

    name: str
    at_s: float
    args: JsonMapping = field(default_factory=dict)
    everywhere: bool = False


@dataclass(frozen=True)
class Track:
    name: str
    slices: Sequence[Slice] = ()
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Counter:
    """A curve of `unit`: each value holds from its moment to the next."""

    name: str
    unit: str
    points: Sequence[tuple[float, float]] = ()  # (seconds from t0, value)


@dataclass(frozen=True)
class Process:
    name: str
    tracks: Sequence[Track] = ()
    counters: Sequence[Counter] = ()


def lanes(slices: Sequence[Slice]) -> list[list[Slice]]:
    """The slices on as few lanes as the first that fits gives, in each of which any two nest or
    follow each other."""
    placed: list[tuple[list[Slice], list[int]]] = []  # a lane, and its open ends, outermost first
    for one in sorted(slices, key=lambda s: (s.from_us, -s.to_us)):
        for _, ends in placed:
            while ends and ends[-1] <= one.from_us:
                ends.pop()
        fitting = (at for at in placed if not at[1] or one.to_us <= at[1][-1])
        lane, ends = next(fitting, ([], []))
        if not lane:
            placed.append((lane, ends))
        lane.append(one)
        ends.append(one.to_us)
    return [lane for lane, _ in placed]


def document(processes: Sequence[Process], metadata: JsonMapping) -> JsonObject:
    """The whole trace. Secrets are masked; what JSON or a screen cannot take becomes text that it
    can."""
    masker = secrets.Masker()
    events = [
        event
        for pid, process in enumerate(processes, 1)
        for event in _of_process(pid, process, masker)
    ]
    # Names first; then by time, and of one moment the longest first: a parent before its children.
    events.sort(key=lambda e: (e["ph"] != "M", e.get("ts", 0), -e.get("dur", 0)))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "metadata": _args(metadata, masker),
    }


def _of_process(pid: int, process: Process, masker: secrets.Masker) -> Iterator[JsonObject]:
    at = {"pid": pid, "tid": pid * _THREADS_OF_A_PROCESS}  # the first track's

    def named(kind: str, **args: Any) -> JsonObject:
        return {"ph": "M", "name": kind, **at, "args": _args(args, masker)}

    if pid == 1:
        yield named("process_labels", labels=LABEL)
    yield named("process_name", name=process.name or "unnamed")
    yield named("process_sort_index", sort_index=pid)
    for counter in process.counters:
        for at_s, value in counter.points:
            yield {
                "ph": "C",
                "name": _text(counter.name, masker),
                "cat": "counter",
                "ts": max(0, round(at_s * 1e6)),
                **at,
                "args": {_text(counter.unit, masker): value},
            }
    for track in process.tracks or (Track("counters"),):
        for n, lane in enumerate(lanes(track.slices) or [[]], 1):
            name = track.name or "unnamed"
            yield named("thread_name", name=name if n == 1 else f"{name} ({n})")
            yield named("thread_sort_index", sort_index=at["tid"])
            for one in lane:
                yield _complete(one, at, masker)
            for mark in track.marks if n == 1 else ():
                yield {
                    "ph": "i",
                    "name": _text(mark.name, masker),
                    "cat": "mark",
                    "ts": max(0, round(mark.at_s * 1e6)),
                    **at,
                    "s": "g" if mark.everywhere else "t",
                    "args": _args(mark.args, masker),
                }
            at["tid"] += 1


def _complete(one: Slice, at: dict[str, int], masker: secrets.Masker) -> JsonObject:
    cut = {"began_before_t0_s": round(-one.start_s, 6)} if one.start_s < 0 else {}
    return {
        "ph": "X",
        "name": _text(one.name, masker),
        "cat": _text(one.name.split(".", 1)[0], masker),
        "ts": one.from_us,
        "dur": one.to_us - one.from_us,
        **at,
        "args": _args({**cut, **one.args}, masker),
    }


def _text(value: str, masker: secrets.Masker) -> str:
    """A name; never empty, as a reader takes an empty one for an error."""
    return printable.line(masker.text(value)) or "unnamed"


def _args(args: JsonMapping, masker: secrets.Masker) -> JsonObject:
    return printable.every(_plain(masker.doc(dict(args))))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def encoded(doc: JsonObject, compressed: bool = False) -> bytes:
    """As a file holds it. `compressed`: gzip, which both viewers open; the same bytes each time."""
    raw = json.dumps(doc, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    return gzip.compress(raw, mtime=0) if compressed else raw


def is_trace(head: bytes) -> bool:
    """Whether a file that begins so is a trace of the lab's."""
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 4096)
        except zlib.error:
            return False
    return head.startswith(b'{"traceEvents":[') and LABEL.encode() in head[:400]

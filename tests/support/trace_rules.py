"""The rules of the Trace Event Format that the lab's traces keep, as a reader of the file checks
them.

Sources: "Trace Event Format" (the document of the Chromium project) and Perfetto's JSON importer
(src/trace_processor/importers/json, src/trace_processor/importers/common/slice_tracker.cc): event
types and their needed fields, names of processes and threads, slices of one thread that nest,
instants' scopes, counters' numbers.

    assert broken_rules(path.read_bytes()) == []
"""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from typing import Any

NAMES = {"process_name": "name", "thread_name": "name", "process_labels": "labels"}
INDEXES = ("process_sort_index", "thread_sort_index")
CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ud800-\udfff]")


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def broken_rules(raw: bytes) -> list[str]:
    """What a viewer would drop, move or refuse, in words; [] for a sound trace."""
    doc = json.loads(raw.decode("utf-8"), parse_constant=_refused)
    found = [] if doc.get("displayTimeUnit") in ("ms", "ns") else ["displayTimeUnit"]
    found += [
        f"a string with control characters: {s!r}" for s in _strings(doc) if CONTROL.search(s)
    ]
    events = doc["traceEvents"]
    for event in events:
        found += [f"{why}: {json.dumps(event)[:200]}" for why in _of_event(event)]
    named: dict[str, set[Any]] = {
        kind: {
            (e["pid"], e["tid"]) if kind == "thread_name" else e["pid"]
            for e in events
            if e["ph"] == "M" and e["name"] == kind
        }
        for kind in NAMES
    }
    found += [
        f"process {pid} has no name" for pid in {e["pid"] for e in events} - named["process_name"]
    ]
    threads = {(e["pid"], e["tid"]) for e in events}
    found += [f"thread {at} has no name" for at in threads - named["thread_name"]]
    if len({tid for _, tid in threads}) < len(threads):
        found.append("a thread's id stands for two threads")
    return found + _overlaps(events)


def _of_event(event: dict[str, Any]) -> list[str]:
    found = []
    if not isinstance(event.get("name"), str) or not event["name"]:
        found.append("no name")
    for key in ("pid", "tid"):
        if type(event.get(key)) is not int or not 0 < event[key] < 1 << 31:
            found.append(f"no {key}")
    kind, args = event.get("ph"), event.get("args", {})
    if kind != "M" and not event.get("cat"):
        found.append("no category")
    if kind != "M" and (type(event.get("ts")) is not int or event["ts"] < 0):
        found.append("no time from 0 on in whole microseconds")
    if kind == "X":
        if type(event.get("dur")) is not int or event["dur"] < 0:
            found.append("no duration")
    elif kind == "i":
        if event.get("s") not in ("g", "p", "t"):
            found.append("no scope")
    elif kind == "C":
        if not args or not all(type(v) in (int, float) and math.isfinite(v) for v in args.values()):
            found.append("a counter that is no number")
    elif kind == "M":
        if event["name"] in INDEXES:
            if type(args.get("sort_index")) is not int:
                found.append("no sort index")
        elif not args.get(NAMES.get(event["name"], ""), ""):
            found.append("metadata that names nothing")
    else:
        found.append(f"an event of type {kind!r}")
    return found


def _overlaps(events: list[dict[str, Any]]) -> list[str]:
    """Slices of one thread that neither nest nor follow each other, and counters that go back."""
    found = []
    of_thread = defaultdict(list)
    for e in events:
        if e["ph"] == "X":
            of_thread[e["pid"], e["tid"]].append((e["ts"], e["ts"] + e["dur"], e["name"]))
    for at, slices in of_thread.items():
        if slices != sorted(slices, key=lambda s: (s[0], -s[1])):
            found.append(f"a child before its parent on {at}")
        ends: list[int] = []
        for start, end, name in slices:
            while ends and ends[-1] <= start:
                ends.pop()
            if ends and end > ends[-1]:
                found.append(f"{name} on {at} overlaps the slice it begins in")
            ends.append(end)
    times = [e["ts"] for e in events if e["ph"] != "M"]
    return found + (["events out of their order"] if times != sorted(times) else [])


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for k, v in value.items() for s in (k, *_strings(v))]
    return [s for v in value for s in _strings(v)] if isinstance(value, list) else []

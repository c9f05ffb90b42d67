"""Spans: who did what from when to when, on one clock, across processes.

Every process of a trial (node agent, server, client) appends spans as JSON lines to the file named
by `LABKIT_TIMELINE`; times are CLOCK_MONOTONIC seconds, which all processes of one host share. The
file is opened, appended and closed for each span: a held descriptor would break a CRIU dump, and
one `write` of a short line to an O_APPEND file is atomic. Cost: about 20 µs a span. Standard
library only – this is imported on the measured path.

    with span("load", loader="pickle"):
        ...
    for s in read(path): print(s.name, s.end_s - s.start_s)

Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

#: In the order in which a start goes through them. `restore` replaces some of them in a snapshot
#: stack.
PHASES = (
    "pull",
    "unpack",
    "mount",
    "restore",
    "start",
    "import",
    "context",
    "build",
    "load",
    "warmup",
    "ready",
    "first_token",
)

ENV = "LABKIT_TIMELINE"


@dataclass(frozen=True)
class Span:
    """One stretch of time. `name` is a phase, or `phase.detail` (`load.download`) for a part of
    one."""

    name: str
    start_s: float
    end_s: float
    source: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s

    @property
    def phase(self) -> str:
        return self.name.split(".", 1)[0]

    @property
    def is_phase(self) -> bool:
        return "." not in self.name


def now_s() -> float:
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def write(
    name: str,
    start_s: float,
    end_s: float,
    *,
    source: str | None = None,
    path: str | None = None,
    **detail: Any,
) -> Span:
    """Append one span. Without a path (argument or `LABKIT_TIMELINE`) it is only returned: the
    lab's code runs outside trials too."""
    added = Span(name, start_s, end_s, source or os.environ.get("LABKIT_SOURCE", ""), detail)
    target = path or os.environ.get(ENV)
    if target:
        line = (json.dumps(asdict(added), separators=(",", ":"), default=str) + "\n").encode()
        fd = os.open(target, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.write(fd, line)
        finally:
            os.close(fd)
    return added


@contextmanager
def span(
    name: str, *, source: str | None = None, path: str | None = None, **detail: Any
) -> Iterator[dict[str, Any]]:
    """Time a block. What the block puts into the yielded dict becomes the span's detail; a failure
    is noted, not lost."""
    facts = dict(detail)
    start_s = now_s()
    try:
        yield facts
    except BaseException as error:
        facts["failed"] = type(error).__name__
        raise
    finally:
        write(name, start_s, now_s(), source=source, path=path, **facts)


def read(path: str | os.PathLike[str]) -> list[Span]:
    """All spans of a file, by start. A torn last line (a killed writer) is left out; a missing file
    is an empty timeline."""
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            raw = lines.read().split("\n")
    except FileNotFoundError:
        return []
    spans = []
    for line in raw:
        try:
            spans.append(Span(**json.loads(line)))
        except (ValueError, TypeError):
            continue
    return sorted(spans, key=lambda s: (s.start_s, s.end_s))


def union_s(spans: Iterable[Span], from_s: float, to_s: float) -> float:
    """Seconds of [from_s, to_s] covered by at least one span: phases may overlap, time is counted
    once."""
    covered, reached = 0.0, from_s
    for s in sorted(spans, key=lambda s: s.start_s):
        start, end = max(s.start_s, reached), min(s.end_s, to_s)
        if end > start:
            covered += end - start
            reached = end
    return covered

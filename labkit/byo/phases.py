"""From moments to phases: every stretch between exec and the first token is given to what was going
on in it.

    start        exec → the first library of its own is mapped
    import       → the config is opened (and no more libraries come), or a device is touched
    context      device touched → config or weights opened
    build        config read → weights opened
    load         weights opened → their bytes are read and in memory
    warmup       weights in → port open;  ready: port open → health 200
    first_token  health (or, where that is not asked, port open) → token at the client

A server may do these in another order (load on the first request, listen before it loads): a
stretch is named by what is under way in it, not by its place. A stretch that nothing explains stays
without a phase and shows up as unaccounted.

    spans = attribute(moments, samples, t0_s, first_token_s, weights_bytes, marks)

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from labkit.byo.observe import Event, ProcSample
from labkit.core.timeline import Span

ENOUGH = 0.97  # of the weights' bytes: the last pages of a mapping are often never touched
SMALLEST_BYTES = 32 << 20  # below this, memory and read counters are mostly something else


def weights_in(
    moments: Mapping[str, Event],
    samples: Sequence[ProcSample],
    weights_bytes: int,
    first_token_s: float,
    marks: Sequence[tuple[str, float, float, str]] = (),
    closed_s: float | None = None,
) -> Event | None:
    """When the weights were in: the latest of "read" (from disk or cache) and "in memory", as far
    as the counters show it; else what the log says; else when the files were closed."""
    opened = moments.get("weights")
    if opened is None:
        return None
    until = [x for x in samples if opened.at_s - 0.05 <= x.at_s <= first_token_s]
    found: list[Event] = []
    if weights_bytes >= SMALLEST_BYTES and len(until) > 1:
        for name, word in (
            ("read_bytes", "read from disk"),
            ("rchar", "read"),
            ("rss_bytes", "in the process's memory"),
        ):
            base = getattr(until[0], name)
            growth = max(getattr(x, name) for x in until) - base
            if growth >= 0.5 * weights_bytes:
                target = base + ENOUGH * min(growth, weights_bytes)
                at = next(x.at_s for x in until if getattr(x, name) >= target)
                found.append(
                    Event(
                        at,
                        f"/proc/PID: {min(growth, weights_bytes) / 1e6:.0f} of"
                        f" {weights_bytes / 1e6:.0f} MB {word}",
                    )
                )
    if found:
        return max(found, key=lambda m: m.at_s)
    logged = [m for m in marks if m[0].startswith("load") and opened.at_s <= m[2] <= first_token_s]
    if logged:
        return Event(logged[-1][2], f"its log: {logged[-1][3]}")
    if closed_s is not None and opened.at_s <= closed_s <= first_token_s:
        return Event(closed_s, "inotify: the last of the weights closed")
    return None


def attribute(
    moments: Mapping[str, Event], samples: Sequence[ProcSample], t0_s: float, first_token_s: float
) -> list[Span]:
    """Spans that cover [t0, first token], each with how its beginning was noticed. `moments` may
    hold any subset."""
    at = {name: m.at_s for name, m in moments.items() if m.at_s <= first_token_s}
    # not asked, or busy with our request: what listens is at work on it
    if "health" not in at and "listening" in at:
        at["health"] = at["listening"]
    settled = _libraries_settled(samples, at.get("weights", at.get("listening", first_token_s)))
    build = max(at["config"], min(settled, at.get("weights", settled))) if "config" in at else None
    cuts = sorted(
        {
            t0_s,
            first_token_s,
            *(t for t in at.values() if t0_s < t < first_token_s),
            *([build] if build and t0_s < build < first_token_s else []),
        }
    )
    spans: list[Span] = []
    for start, end in itertools.pairwise(cuts):
        name = _phase((start + end) / 2, at, build)
        if name and spans and spans[-1].name == name and spans[-1].end_s == start:
            spans[-1] = Span(name, spans[-1].start_s, end, "outside", spans[-1].detail)
        elif name:
            how = next((m.how for m in moments.values() if m.at_s == start), "")
            spans.append(Span(name, start, end, "outside", {"noticed": how} if how else {}))
    return spans


def _phase(t: float, at: Mapping[str, float], build: float | None) -> str:
    never = float("inf")
    after = {
        name: at.get(name, never) <= t
        for name in (
            "libraries",
            "config",
            "device",
            "weights",
            "weights_in",
            "listening",
            "health",
        )
    }
    if after["weights_in"] or (after["weights"] and "weights_in" not in at and after["listening"]):
        return _from_port_on(after) or "warmup"
    if after["weights"]:
        return "load"
    # nothing was seen of the weights: what came before the port is not known
    if "weights" not in at:
        return _from_port_on(after) or ("" if after["libraries"] else "start")
    if not after["libraries"] and not after["config"] and not after["listening"]:
        return "start"
    if (build is not None and t >= build) or after["health"]:
        return "build"
    return "context" if after["device"] else "import"


def _from_port_on(after: Mapping[str, bool]) -> str:
    if after["health"]:
        return "first_token"
    return "ready" if after["listening"] else ""


def _libraries_settled(samples: Sequence[ProcSample], before_s: float) -> float:
    """The last time before `before_s` that more library code was mapped: imports go on until then,
    whatever was opened meanwhile."""
    last, high = 0.0, 0
    for x in samples:
        if x.at_s > before_s:
            break
        if x.library_bytes > high + (256 << 10):
            last, high = x.at_s, x.library_bytes
    return last

"""Faults that real stores have, on demand: refusals with Retry-After, resets, truncation,
corruption, one straggler.

Which request is hit depends on the seed and on the request itself (method, path, range, how often
it was asked), not on the order in which threads arrive: the same run hits the same requests, and a
retry is a new draw.

    faults = parse(["503:rate=0.01,retry_after=0.2", "reset:nth=3",
        "straggler:nth=2,slowed_to=100kB/s"], seed=1)
    hit = faults.draw("GET", "/v2/lab/subject/blobs/sha256:…", "bytes=0-99")      # -> Fault or None

Lesson: notebooks/02_image_pull, notebooks/03_lazy_pull.
"""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from labkit.core.digits import decimal, fraction
from labkit.core.units import parse_rate
from labkit.errors import BadInput

KINDS = {
    "429": "too many requests, with Retry-After",
    "503": "service unavailable, with Retry-After",
    "500": "internal error, no Retry-After",
    "reset": "connection reset in the middle of the body",
    "truncate": "connection closed in the middle of the body, politely",
    "corrupt": "one byte of the body flipped",
    "straggler": "this one answer is sent slowly",
    "stall": "this one answer stops in the middle and never goes on",
}


@dataclass(frozen=True)
class Fault:
    """Hit a share of requests (`rate`), or exactly the `nth` (from 1) that matches `path`; at most
    `times` (0: always).

    `retry_after_s` for 429/503; `slowed_to_bytes_per_s` for a straggler; `at`: share of the body
    sent before the break. Only answers with a body of `min_bytes` or more are hit by faults of the
    body."""

    kind: str
    rate: float = 0.0
    nth: int = 0
    times: int = 0
    path: str = ""
    retry_after_s: float = 1.0
    slowed_to_bytes_per_s: float = 200e3
    at: float = 0.5
    min_bytes: int = 0

    @property
    def of_body(self) -> bool:
        return not self.kind.startswith(("4", "5"))


def parse_one(text: str) -> Fault:
    """`KIND[:key=value,…]`. Raises BadInput."""
    kind, _, rest = text.strip().partition(":")
    if kind not in KINDS:
        raise BadInput(f"no fault called {kind!r}", fix="one of " + ", ".join(KINDS))
    fields: dict[str, object] = {"kind": kind}
    keys = {
        "rate": ("rate", fraction),
        "nth": ("nth", decimal),
        "times": ("times", decimal),
        "path": ("path", str),
        "at": ("at", fraction),
        "retry_after": ("retry_after_s", lambda v: fraction(v.removesuffix("s"))),
        "min_bytes": ("min_bytes", decimal),
        "slowed_to": ("slowed_to_bytes_per_s", parse_rate),
    }
    for option in (f for f in rest.split(",") if f.strip()):
        key, _, value = option.strip().partition("=")
        if key not in keys:
            raise BadInput(f"a fault has no {key!r}", fix="keys: " + ", ".join(keys))
        name, convert = keys[key]
        try:
            fields[name] = convert(value)  # type: ignore[operator]
        except ValueError:
            raise BadInput(
                f"{text!r}: {key}={value!r} is not a number",
                fix="e.g. 503:rate=0.01,retry_after=0.2",
            ) from None
    fault = Fault(**fields)  # type: ignore[arg-type]
    if not (fault.rate or fault.nth):
        raise BadInput(
            f"{text!r} says neither how often nor which one", fix="add rate=0.01 or nth=3"
        )
    if fault.slowed_to_bytes_per_s < 1:
        raise BadInput(f"{text!r}: a straggler that sends nothing", fix="stall:nth=1 is one")
    if not (fault.rate <= 1 and fault.at <= 1):
        raise BadInput(f"{text!r}: rate and at lie between 0 and 1, nth counts from 1")
    return fault


class Faults:
    """A set of faults and what they have hit so far. Thread-safe."""

    def __init__(self, faults: Iterable[Fault] = (), seed: int = 0):
        self.faults, self.seed = tuple(faults), seed
        self.hits: Counter[str] = Counter()
        self._asked: Counter[str] = Counter()
        self._matched: Counter[int] = Counter()
        self._hit: Counter[int] = Counter()
        self._lock = threading.Lock()

    def draw(
        self,
        method: str,
        path: str,
        range_text: str = "",
        size_bytes: int | None = None,
        body: bool | None = None,
    ) -> Fault | None:
        """The fault that hits this request, or None. `body`: draw only faults of the body (True) or
        of the status (False)."""
        if not self.faults:
            return None
        with self._lock:
            key = f"{body}|{method} {path} {range_text}"
            self._asked[key] += 1
            for number, fault in enumerate(self.faults):
                if body is not None and fault.of_body != body:
                    continue
                if fault.path not in path or (
                    fault.of_body and (size_bytes or 0) < max(1, fault.min_bytes)
                ):
                    continue
                if fault.times and self._hit[number] >= fault.times:
                    continue
                self._matched[number] += 1
                if fault.nth:
                    hit = self._matched[number] == fault.nth
                else:
                    text = f"{self.seed}|{number}|{fault.kind}|{key}|{self._asked[key]}"
                    hit = (
                        int.from_bytes(
                            hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"
                        )
                        < fault.rate * 2**64
                    )
                if hit:
                    self._hit[number] += 1
                    self.hits[fault.kind] += 1
                    return fault
        return None


def parse(texts: Iterable[str], seed: int = 0) -> Faults:
    return Faults([parse_one(t) for t in texts], seed)

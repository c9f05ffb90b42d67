"""When is one of several connections a straggler, so that its rest is worth fetching twice?

    pace = Pace()
    pace.add(4 << 20, 0.1)                     # parts that came whole, with the seconds they took
    pace.lags(for_s=2.0, received=1 << 20, left=3 << 20)

A second request costs a round trip and the link's bandwidth; so what a connection still needs is
set against what the others have needed. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import statistics
from collections import deque

#: A lane is a straggler when the rest of its part would take this many times what the others need
#: for it …
LAGS = 3.0
#: … and when it has been given at least this long.
HEDGE_AFTER_S = 0.15


class Pace:
    """What whole parts have taken lately. Not locked: the caller's lock covers it."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=64)
        self._rates: deque[float] = deque(maxlen=64)

    def add(self, size_bytes: int, seconds: float) -> None:
        seconds = max(1e-6, seconds)
        self._seconds.append(seconds)
        self._rates.append(size_bytes / seconds)

    def lags(self, for_s: float, received: int, left: int) -> bool:
        """Is a connection a straggler that has `received` bytes of a part in `for_s` seconds, with
        `left` bytes to go? No, before two parts have come whole."""
        if len(self._rates) < 2:
            return False
        usual_s = statistics.median(self._seconds)
        if for_s < max(HEDGE_AFTER_S, 1.5 * usual_s):
            return False
        expected_s = left * for_s / received if received else float("inf")
        return expected_s > LAGS * (0.25 * usual_s + left / statistics.median(self._rates))

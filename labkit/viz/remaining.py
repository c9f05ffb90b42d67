"""How long the rest of an experiment takes, from the trials so far: the median of each arm times
what is left of it. Arms differ by a factor of five, so a mean over all of them would be wrong for
every one, and what is prepared off the clock counts for none.

    left = Remaining(); left.plan(["naive", "zstd"], blocks=5)
    left.done("naive", 8.1); left.words()      # 'at least 32 s left': nothing is known of zstd
    left.done("zstd", 4.0); left.words()       # 'about 50 s left'

An arm that has not run yet is taken by the seconds that `plan` was given for it, else as between
the fastest and the slowest arm seen. Limit: an estimate from one trial has no interval. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median


class Remaining:
    """What is planned, what was seen, and what that makes of the rest."""

    def __init__(self) -> None:
        self.planned: Counter[str] = Counter()
        self.seen: dict[str, list[float]] = {}
        self.expected: dict[str, float] = {}

    def plan(
        self, arms: Sequence[str], blocks: int = 1, seconds: Mapping[str, float] | None = None
    ) -> None:
        """The trials to come are these, each arm `blocks` times; another experiment's may be of
        another size, so what was seen of it is forgotten. `seconds`: what an arm is expected to
        take (None: as before)."""
        self.replan(arms, blocks)
        self.seen = {}
        if seconds is not None:
            self.expected = dict(seconds)

    def replan(self, arms: Sequence[str], blocks: int = 1) -> None:
        """The same experiment's trials to come are these: what was seen counts on."""
        self.planned = Counter({arm: blocks * n for arm, n in Counter(arms).items()})

    def done(self, arm: str, seconds: float) -> None:
        self.seen.setdefault(arm, []).append(seconds)
        self.planned[arm] = max(self.planned[arm] - 1, 0)

    def seconds(self, running: str = "", running_s: float = 0.0) -> tuple[float, float]:
        """From, to: what is left, of which the trial of the arm `running` has run `running_s`. No
        upper end (inf) while an arm was not seen and there is nothing to judge it by."""
        medians = {arm: median(values) for arm, values in self.seen.items()}
        spread = (
            (min(medians.values()), max(medians.values())) if len(medians) > 1 else (0.0, math.inf)
        )
        low = high = 0.0
        for arm, n in self.planned.items():
            one = medians.get(arm, self.expected.get(arm))
            least, most = spread if one is None else (one, one)
            if n:
                ran_s = running_s if arm == running else 0.0
                low += max(n * least - min(ran_s, least), 0.0)
                high += max(n * most - min(ran_s, most), 0.0)
        return low, high

    def words(self, running: str = "", running_s: float = 0.0) -> str:
        """'about 4 min left', 'about 2 to 5 min left', 'at least 2 min left', or '' where nothing
        can be said."""
        low, high = self.seconds(running, running_s)
        if not any(self.planned.values()):
            return ""
        if math.isinf(high):
            return f"at least {span(low)} left" if low >= 1 else ""
        least, most = span(low), span(high)
        if least == most:
            return f"about {most} left"
        number, unit = least.rsplit(" ", 1)
        if most.endswith(f" {unit}") and "h" not in most:
            return f"about {number} to {most} left"
        return f"about {least} to {most} left"


def span(seconds: float) -> str:
    """As coarse as an estimate is: '10 s', '4 min', '1 h 20 min'."""
    if seconds < 57.5:
        return f"{max(round(seconds / 5), 1) * 5} s"
    minutes = max(round(seconds / 60), 1)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h" + (f" {minutes % 60} min" if minutes % 60 else "")


def clock(seconds: float) -> str:
    """'0:43', '12:05', '1:02:05'."""
    whole = int(max(seconds, 0.0))
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02}"
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"

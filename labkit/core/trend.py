"""Whether the trials of a record trend with their order: what comes later takes longer, or shorter.

Trials are meant to be exchangeable: each starts on the same machine state. Five naive starts that
took 13, 22, 28, 29 and 28 s did not (inodes that the lab left behind slowed every later start), and
their median is the time of no start at all. So a record is asked whether order explains its times.

Within each arm, every pair of trials votes: later slower +1, later faster -1; S is the sum over
all arms (Kendall's S, stratified, so that arms may differ in level). Where order means nothing all
orders of an arm's trials are equally likely, and the law of S is exact: the numbers of inversions
of permutations, convolved over the arms. Its law for many trials is the normal one.

    found = trend(run)     # None, or Trend: found.words

A record trends where |S| is reached by chance in at most one record of twenty in that direction,
and the fitted drift from first to last trial is a tenth of the median or more. So at most one
record in ten is flagged for nothing (5 % either way), fewer where the noise is below the tenth.
Limit: three trials of one arm never trend, and steps that go up and down again are not found.
Disturbed trials and failed ones have no vote. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from labkit.core import stats
from labkit.core.records import Run

MOST_CHANCE = 0.05  # in one direction
LEAST_DRIFT = 0.10  # of the median, from the first trial to the last
_EXACT_UP_TO_PAIRS = 4000


@dataclass(frozen=True)
class Trend:
    """`drift`: of the median, from first to last trial; `chance`: how often order alone gives as
    much, in this direction."""

    drift: float
    chance: float
    trials: int

    @property
    def words(self) -> str:
        return (
            f"trials trend with their order: {self.drift:+.0%} from the first to the last of"
            f" {self.trials} (by chance in {self.chance:.1%} of records), so their median depends"
            " on their number"
        ).replace("%", " %")


def trend(run: Run) -> Trend | None:
    """What order explains of a run's times; None where it explains nothing that is sure and
    large."""
    arms = []
    for name in run.arm_names:
        times = [t.total_s for t in run.of_arm(name) if t.total_s and not t.disturbed]
        if len(times) > 1:
            arms.append(times)
    if not arms:
        return None
    votes = sum(_votes(times) for times in arms)
    chance = _chance([len(times) for times in arms], abs(votes))
    drift = stats.median([_drift(times) for times in arms])
    if chance > MOST_CHANCE or abs(drift) < LEAST_DRIFT or drift * votes <= 0:
        return None
    return Trend(drift, chance, sum(map(len, arms)))


def _votes(times: Sequence[float]) -> int:
    return sum((b > a) - (b < a) for a, b in itertools.combinations(times, 2))


def _drift(times: Sequence[float]) -> float:
    """Slope between trials, the median of all pairs' (Theil–Sen), over the whole arm, ÷ its
    median."""
    numbered = itertools.combinations(enumerate(times), 2)
    slopes = [(later - sooner) / (j - i) for (i, sooner), (j, later) in numbered]
    return stats.median(slopes) * (len(times) - 1) / stats.median(times)


def _chance(sizes: Sequence[int], votes: int) -> float:
    """P(S ≥ votes) where all orders within each arm are equally likely."""
    pairs = sum(n * (n - 1) // 2 for n in sizes)
    if pairs > _EXACT_UP_TO_PAIRS:
        variance = sum(n * (n - 1) * (2 * n + 5) / 18 for n in sizes)
        return math.erfc((votes - 1) / math.sqrt(2 * variance)) / 2
    # law[k]: the share of orders with k pairs in which the later is faster; S = pairs - 2 k
    law = [1.0]
    for n in sizes:
        for choices in range(2, n + 1):
            longer = [0.0] * (len(law) + choices - 1)
            for k, share in enumerate(law):
                for more in range(choices):
                    longer[k + more] += share / choices
            law = longer
    return math.fsum(law[: (pairs - votes) // 2 + 1])

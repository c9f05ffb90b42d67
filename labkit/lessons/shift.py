"""Has a duration shifted? A few trials before, a few now; and the smallest shift that these few
would have shown.

Noise of a start multiplies (a busy machine makes everything longer by a share), so seconds are
compared as logarithms. Two tests, as each is blind where the other sees: Student's t, which few
trials suffice for, but an outlier blunts; and Mann and Whitney's ranks, which no outlier moves, but
which cannot be sure below eight trials a side. Each is given half of the chance of a false alarm.
Student's t of skewed durations errs on the quiet side: what makes a tail longer also makes its
spread wider.

    found = compare([1.60, 1.58, 1.63, 1.61, 1.60], [1.80, 1.79, 1.84, 1.80, 1.82], alarm=0.001)
    found.slower, found.before_s, found.now_s, found.visible_s      # True, 1.6, 1.8, 0.08: a loss
        of 80 ms would have shown

`alarm` is the chance of a false alarm in this one comparison: who makes m of them gives each a
share. `drift` is a common lengthening that is forgiven (two sessions on one machine differ).
Physical limit: with n trials a side and a spread of s per cent, nothing below about s · (4 + 1) ·
√(2/n) per cent can be told from noise. Lesson: docs/facilitator.md."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from labkit.core import stats

#: Losses below this are never worth an alarm; also added before the logarithm, so that the jitter
#: of a phase of 1 ms stays small.
LEAST_S = 0.03
#: Nor are losses below this share: two sessions on one host differ by so much without anybody's
#: fault.
LEAST_SHARE = 0.05
#: `visible_s` is a loss that would be found this often.
POWER = 0.9
#: A spread is itself uncertain; a few trials that lie close together by luck are not trusted below
#: this share.
LEAST_SPREAD = 0.01
#: Orders of two samples are counted up to this length; beyond it the normal law is as good.
EXACT_UP_TO = 50


@dataclass(frozen=True)
class Shift:
    """One duration before and now. `visible_s`: the loss that these trials would have shown in nine
    cases of ten."""

    before_s: float
    now_s: float
    slower: bool
    p: float  # of the better of the two tests, one-sided
    visible_s: float
    spread: float  # of one trial, as a share
    n: tuple[int, int]

    @property
    def lost_s(self) -> float:
        return self.now_s - self.before_s

    def blocks_for(self, lost_s: float, alarm: float) -> int:
        """Trials a side that would show a loss of so many seconds."""
        least = max(lost_s, LEAST_S, LEAST_SHARE * self.before_s)
        shift = math.log((self.before_s + LEAST_S + least) / (self.before_s + LEAST_S))
        for n in range(2, 1000):
            if _reach(self.spread, n, n, alarm) <= shift:
                return n
        return 1000


def common_drift(sides: Iterable[tuple[Sequence[float], Sequence[float]]], most: float) -> float:
    """What most of several durations have in common: the median of their logarithms' shifts,
    between 0 and log(1 + most).

    0 for fewer than three durations of some length, as one that got slower would be half of what is
    common."""
    shifts = [
        math.log(stats.median(now) / stats.median(before))
        for before, now in sides
        if min(stats.median(before), stats.median(now)) > LEAST_S
    ]
    return min(max(stats.median(shifts), 0.0), math.log1p(most)) if len(shifts) >= 3 else 0.0


def compare(
    before: Sequence[float], now: Sequence[float], alarm: float, drift: float = 0.0
) -> Shift:
    """Both sides need two trials at least. Raises ValueError below that."""
    n, m = len(before), len(now)
    if min(n, m) < 2:
        raise ValueError("a shift needs two trials on each side")
    a = [math.log(max(x, 0.0) + LEAST_S) for x in before]
    b = [math.log(max(x, 0.0) + LEAST_S) - drift for x in now]
    mean_a, mean_b = math.fsum(a) / n, math.fsum(b) / m
    within = math.fsum((x - mean_a) ** 2 for x in a) + math.fsum((x - mean_b) ** 2 for x in b)
    spread = max(math.sqrt(within / (n + m - 2)), LEAST_SPREAD)
    t = (mean_b - mean_a) / (spread * math.sqrt(1 / n + 1 / m))
    p = min(student_tail(t, n + m - 2), rank_tail(a, b))
    was, is_now = stats.median(before), stats.median(now)
    slower = p < alarm / 2 and is_now / math.exp(drift) - was > max(LEAST_S, LEAST_SHARE * was)
    visible = (was + LEAST_S) * math.expm1(_reach(spread, n, m, alarm) + drift)
    return Shift(was, is_now, slower, p, max(visible, LEAST_S, LEAST_SHARE * was), spread, (n, m))


def _reach(spread: float, n: int, m: int, alarm: float) -> float:
    """The shift of a logarithm that Student's t finds with the wanted power."""
    freedom = n + m - 2
    return (
        spread
        * math.sqrt(1 / n + 1 / m)
        * (student_limit(alarm / 2, freedom) + NormalDist().inv_cdf(POWER))
    )


def student_tail(t: float, freedom: int) -> float:
    """P(T > t) for Student's t."""
    from scipy.special import stdtr  # half a second, which only a comparison waits for

    return float(stdtr(freedom, -t))


def student_limit(tail: float, freedom: int) -> float:
    """The t above which lies `tail` of the distribution."""
    from scipy.special import stdtrit

    return -float(stdtrit(freedom, tail))


def rank_tail(a: Sequence[float], b: Sequence[float]) -> float:
    """P of so few pairs in which a value of `b` lies below one of `a`, were both of one
    distribution (Mann and Whitney; exact for few values, where a tie is half a pair, rounded up).
    """
    from scipy.stats import mannwhitneyu

    method = "exact" if max(len(a), len(b)) <= EXACT_UP_TO else "asymptotic"
    return float(mannwhitneyu(b, a, alternative="greater", method=method).pvalue)

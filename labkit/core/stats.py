"""Statistics of few, costly, skewed measurements: medians, bootstrap intervals, paired ratios – and
when to say nothing.

A cold start takes seconds to minutes, so n is 5 to 20, and its distribution has a long right tail:
medians, not means. The interval is the percentile bootstrap of the median. With n this small it
needs no resampling: the law of a resampled median is known in closed form from binomials, so the
interval is exact, has no seed, and imports nothing. For n = 5 it is the range of the data (its true
coverage is 94 %); below 5 pairs nothing is ever called significant.

    low, high = interval([3.1, 3.2, 3.0, 3.4, 3.1])
    paired_ratio([(ours, theirs), …])   # {"median", "low", "high", "n", "significant"} of ours ÷
        theirs, block by block
    blocks_to_decide([(ours, theirs), …])   # how many would likely make it significant

Medians of ratios survive drift of the machine: both arms of a block saw the same drift. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

#: With fewer pairs the interval of a median cannot reach 90 % coverage: 1 - 2 · ½ⁿ is 0.875 for n =
#: 4.
MIN_PAIRS = 5
#: A count of blocks above this is no plan for an afternoon: the difference is called nil.
MOST_BLOCKS = 100
#: From here on the interval's ends are taken from the normal law of order statistics; the
#: difference is below one rank.
_EXACT_UP_TO = 200
#: The law of a ratio has one entry for each pair of entries of two laws: n⁴ of them for even n.
_EXACT_PRODUCT_UP_TO = 25


def median(xs: Iterable[float]) -> float:
    """Middle value; mean of the two middle values of an even number. Raises BadInput without
    values."""
    ordered = _ordered(xs)
    middle, odd = divmod(len(ordered), 2)
    return ordered[middle] if odd else (ordered[middle - 1] + ordered[middle]) / 2


def quantile(xs: Iterable[float], q: float) -> float:
    """Linear interpolation between order statistics, `q` in [0, 1]."""
    ordered = _ordered(xs)
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile lies in [0, 1], not {q}")
    place = q * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def interval(xs: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval of the median: (low, high). One value gives (x, x): no
    interval, and no claim."""
    ordered = _ordered(xs)
    if len(ordered) > _EXACT_UP_TO:
        return _normal_ranks(ordered, level)
    return _ends(_median_law(ordered), level)


def noise(xs: Iterable[float]) -> float:
    """Relative spread that outliers do not move: 1.4826 · median(|x - median|) ÷ median. 0 for one
    value."""
    values = _ordered(xs)
    centre = median(values)
    return 1.4826 * median(abs(x - centre) for x in values) / abs(centre) if centre else math.inf


def paired_ratio(pairs: Iterable[Sequence[float]], level: float = 0.95) -> JsonObject:
    """Median of a ÷ b over pairs (a, b) of one block each, with its interval.

    `significant`: the interval excludes 1 and there are at least five pairs."""
    ratios = [_ratio(a, b) for a, b in pairs]
    if not ratios:
        raise BadInput(
            "no pairs to compare",
            why="no block holds a good trial of both arms",
            fix="run more blocks: labkit run A B --blocks 5",
        )
    low, high = interval(ratios, level)
    return {
        "median": median(ratios),
        "low": low,
        "high": high,
        "n": len(ratios),
        "significant": len(ratios) >= MIN_PAIRS and not low <= 1 <= high,
    }


def sureness(pairs: Iterable[Sequence[float]]) -> float:
    """How sure it is that a is below b, over pairs (a, b) of one block each: the share of bootstrap
    resamples of the blocks in which the median ratio is below 1; a tie counts half."""
    law = _median_law(_ordered(_ratio(a, b) for a, b in pairs))
    return min(1.0, math.fsum(p * (1.0 if x < 1 else 0.5 if x == 1 else 0.0) for x, p in law))


def blocks_to_decide(pairs: Iterable[Sequence[float]], level: float = 0.95) -> int | None:
    """How many blocks would likely (four times in five) set the interval of this ratio apart from
    1, were the difference and its spread as in these pairs. None: more than MOST_BLOCKS, so the two
    are equal for any purpose here.

    From the normal law of a median, whose standard error is 1.2533 · σ ÷ √n, on the logarithms of
    the ratios; σ is the larger of their two usual estimates, as five values can hide their
    spread."""
    from statistics import NormalDist, stdev

    logs = [math.log(_ratio(a, b)) for a, b in pairs]
    if len(logs) < 2:
        return None
    centre = median(logs)
    spread = max(stdev(logs), 1.4826 * median(abs(x - centre) for x in logs))
    reach = 1.2533 * (NormalDist().inv_cdf((1 + level) / 2) + NormalDist().inv_cdf(0.8))
    if not centre or (reach * spread / centre) ** 2 > MOST_BLOCKS:
        return None
    return max(MIN_PAIRS, len(logs) + 1, math.ceil((reach * spread / centre) ** 2))


def unpaired_ratio(xs: Iterable[float], ys: Iterable[float], level: float = 0.95) -> JsonObject:
    """Median(xs) ÷ median(ys) of two runs that share no blocks: both medians are resampled, so
    drift between them counts."""
    ordered_x, ordered_y = _ordered(xs), _ordered(ys)
    centre = _ratio(median(ordered_x), median(ordered_y))
    if max(len(ordered_x), len(ordered_y)) > _EXACT_PRODUCT_UP_TO:
        (low_x, high_x), (low_y, high_y) = interval(ordered_x, level), interval(ordered_y, level)
        low, high = low_x / high_y, high_x / low_y  # conservative: both ends at once
    else:
        law_y = _merged(_median_law(ordered_y))
        low, high = _ends(
            [(_ratio(x, y), p * q) for x, p in _merged(_median_law(ordered_x)) for y, q in law_y],
            level,
        )
    n = min(len(ordered_x), len(ordered_y))
    return {
        "median": centre,
        "low": low,
        "high": high,
        "n": n,
        "significant": n >= MIN_PAIRS and not low <= 1 <= high,
    }


def _ordered(xs: Iterable[float]) -> list[float]:
    ordered = sorted(float(x) for x in xs)
    if not ordered:
        raise BadInput("no values to summarise", fix="run at least one good trial")
    if any(math.isnan(x) for x in ordered):
        raise BadInput(
            "a value is not a number",
            why="a failed trial has no time; leave it out",
            fix="use only trials with outcome ok",
        )
    return ordered


def _ratio(a: float, b: float) -> float:
    if not b > 0 or not a >= 0:
        raise BadInput(
            f"no ratio of {a} to {b}",
            why="durations are positive",
            fix="use only trials with outcome ok",
        )
    return a / b


def _median_law(ordered: Sequence[float]) -> list[tuple[float, float]]:
    """(value, probability) of the median of n draws with replacement, for sorted values.

    Odd n = 2m+1: P(median ≤ x_i) = P(Bin(n, i/n) ≥ m+1). Even n = 2m: the two middle order
    statistics are x_i and x_j, i < j, when exactly m draws are ≤ x_i with one of them x_i, and m
    are ≥ x_j with one of them x_j; they are both x_i with what is left of P(m-th = x_i)."""
    n = len(ordered)
    half, odd = divmod(n, 2)
    rank = half + 1 if odd else half
    reached = [_binomial_tail(n, i / n, rank) for i in range(n + 1)]
    if odd:
        return [(ordered[i], reached[i + 1] - reached[i]) for i in range(n)]
    ways = math.comb(n, half)
    lower = [((i + 1) / n) ** half - (i / n) ** half for i in range(n)]
    law = []
    for i in range(n):
        left = reached[i + 1] - reached[i]
        for j in range(i + 1, n):
            p = ways * lower[i] * lower[n - 1 - j]
            law.append(((ordered[i] + ordered[j]) / 2, p))
            left -= p
        law.append((ordered[i], max(left, 0.0)))
    return law


def _binomial_tail(n: int, p: float, least: int) -> float:
    """P(Bin(n, p) ≥ least)."""
    return math.fsum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(least, n + 1))


def _merged(law: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """One entry a value; entries that cannot move a percentile are dropped, so that products of two
    laws stay small."""
    total: dict[float, float] = {}
    for value, p in law:
        total[value] = total.get(value, 0.0) + p
    return [(value, p) for value, p in total.items() if p > 1e-7]


def _ends(law: Sequence[tuple[float, float]], level: float) -> tuple[float, float]:
    if not 0 < level < 1:
        raise ValueError(f"a confidence level lies between 0 and 1, not {level}")
    tail = (1 - level) / 2
    ordered = sorted(law)

    def end(entries: Iterable[tuple[float, float]]) -> float:
        reached = 0.0
        for value, p in entries:
            reached += p
            if reached > tail:
                return value
        return ordered[0][0]

    return end(ordered), end(reversed(ordered))


def _normal_ranks(ordered: Sequence[float], level: float) -> tuple[float, float]:
    from statistics import NormalDist

    reach = NormalDist().inv_cdf((1 + level) / 2) * math.sqrt(len(ordered)) / 2
    low = max(math.floor(len(ordered) / 2 - reach), 0)
    return ordered[low], ordered[len(ordered) - 1 - low]

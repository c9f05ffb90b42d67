"""Exercises of 01_anatomy: time counted once, the floor of a phase, and when a difference is
none."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def unaccounted_s(spans: list[tuple[float, float]], total_s: float) -> float:
    covered_s = reached_s = 0.0
    for start_s, end_s in sorted(spans):
        start_s, end_s = max(start_s, reached_s), min(end_s, total_s)
        if end_s > start_s:
            covered_s += end_s - start_s
            reached_s = end_s
    return total_s - covered_s


def _check_unaccounted(answer: Callable[..., float]) -> str:
    expect(answer([(0.0, 2.0), (2.0, 5.0)], 5.0), 0.0, "two phases that fill the whole time")
    expect(
        answer([(0.0, 2.0), (3.0, 5.0)], 6.0),
        2.0,
        "a hole of one second and a second at the end",
        {
            (
                "You count the holes between phases; the time after the last phase is unaccounted "
                "too."
            ): (1.0)
        },
    )
    expect(
        answer([(0.0, 4.0), (2.0, 5.0)], 5.0),
        0.0,
        "two phases that overlap by two seconds",
        {
            (
                "You subtract the sum of durations. Overlapping phases then count twice, and the "
                "answer becomes negative: time that two phases share is one stretch of time."
            ): (-2.0)
        },
    )
    expect(
        answer([(0.0, 4.0), (2.0, 5.0)], 6.0),
        1.0,
        "the same overlap, and a second in which nothing was said",
        {
            "You subtract the sum of durations: an overlap then hides real unaccounted time.": -1.0,
            (
                "Cutting a negative sum off at zero hides the hole at the end. Count covered time "
                "once."
            ): (0.0),
        },
    )
    expect(
        answer([(0.0, 5.0), (1.0, 2.0)], 5.0),
        0.0,
        "a phase within another",
        {
            (
                "The inner phase ends before the outer one: keep the furthest end reached, not the "
                "last one."
            ): (3.0)
        },
    )
    expect(
        answer([(3.0, 5.0), (0.0, 2.0)], 5.0),
        1.0,
        "phases given out of order",
        {"Spans come as processes wrote them, not in order: sort them first.": 3.0},
    )
    return (
        "Overlaps counted once, holes found: this is how the lab's own records do it"
        " (labkit.core.timeline.union_s)."
    )


def floor_s(size_bytes: int, link_bytes_per_s: float, disk_bytes_per_s: float) -> float:
    return size_bytes / min(link_bytes_per_s, disk_bytes_per_s)


def _check_floor(answer: Callable[..., float]) -> str:
    case = "1 GB over a 125 MB/s link onto a 500 MB/s disk"
    expect(
        answer(1_000_000_000, 125e6, 500e6),
        8.0,
        case,
        {
            (
                "You add the two times. A transfer that streams writes one piece while the next "
                "arrives: the slower of the two sets the floor."
            ): (10.0),
            "That is the time of the faster of the two. A chain is as fast as its slowest link.": (
                2.0
            ),
            "125 MB/s is bytes already (1 Gbit/s ÷ 8); you divided by 8 once more.": 64.0,
            "You divide by the sum of the rates; one byte passes both, it cannot choose.": 1.6,
        },
    )
    expect(
        answer(1_000_000_000, 5e9, 500e6),
        2.0,
        "1 GB over a 5 GB/s link onto the same disk",
        {"Here the disk is the slower one.": 0.2},
    )
    return "A floor is a bound, not a forecast: real phases also hash, decompress and wait."


def is_faster(ours_s: list[float], theirs_s: list[float]) -> str:
    from labkit.core.stats import paired_ratio

    ratio = paired_ratio(list(zip(ours_s, theirs_s, strict=True)))
    if not ratio["significant"]:
        return "not significant"
    return "faster" if ratio["median"] < 1 else "slower"


def _check_is_faster(answer: Callable[..., str]) -> str:
    drifting = [8.0, 9.0, 10.0, 11.0, 12.0]
    ours = [7.2, 8.1, 9.1, 9.9, 10.7]
    _verdict(
        answer(ours, drifting),
        "faster",
        "an arm that wins every block while the machine slows down",
        "The machine drifts by 50 %, far more than the gain of 10 %. Compare within blocks: both"
        " arms of a block saw the same machine.",
    )
    _verdict(
        answer([8.0, 9.1, 7.9, 9.0, 8.2], [8.1, 9.0, 8.0, 8.9, 8.3]),
        "not significant",
        "two arms that trade places from block to block",
        "The ratios lie on both sides of 1: nothing can be said.",
    )
    _verdict(
        answer([7.0, 7.1, 7.2], [9.0, 9.1, 9.2]),
        "not significant",
        "three blocks, however clear",
        "With three pairs the interval of a median covers 75 % at best. Fewer than five pairs never"
        " support a claim here.",
    )
    _verdict(
        answer([10.0, 11.0, 12.0, 13.0, 14.0], [9.0, 10.0, 11.0, 12.0, 13.0]),
        "slower",
        "an arm that loses every block",
        "Mind the direction: ours ÷ theirs above 1 is slower.",
    )
    return (
        "Paired, five blocks, and a word for knowing nothing: that is most of honest benchmarking."
    )


def _verdict(got: str, wanted: str, case: str, why: str) -> None:
    if got not in ("faster", "slower", "not significant"):
        raise WrongAnswer(
            f'For {case} you return {got!r}; return "faster", "slower" or "not significant".'
        )
    if got != wanted:
        raise WrongAnswer(f"For {case} you say {got!r}; it should be {wanted!r}. {why}")


EXERCISES = (
    Exercise(
        "anatomy.unaccounted",
        "time that nobody accounts for",
        3,
        5,
        8,
        (
            (
                "Draw the spans of the third test on paper: how many seconds of the five have at"
                " least one span above them?"
            ),
            (
                "Sort by start. Walk through the spans and remember how far the time is covered"
                " already (`reached_s`)."
            ),
            (
                "Each span adds only what lies beyond `reached_s`: from `max(start_s, reached_s)`"
                " to `end_s`, if that is positive."
            ),
        ),
        unaccounted_s,
        _check_unaccounted,
    ),
    Exercise(
        "anatomy.floor",
        "the floor of a phase",
        1,
        4,
        3,
        (
            "Bytes ÷ bytes per second is seconds. There are two rates: which one decides?",
            (
                "While one piece is written, the next one arrives. The slower of the two is never"
                " waiting."
            ),
        ),
        floor_s,
        _check_floor,
    ),
    Exercise(
        "anatomy.is_faster",
        "is it faster?",
        2,
        5,
        6,
        (
            (
                "Look at `labkit.core.stats.paired_ratio`: which pairs does it want, and what does"
                " `significant` mean?"
            ),
            "Pair by block: `zip(ours_s, theirs_s)`. A ratio below 1 means ours took less time.",
            "Ask `significant` first; only then look at whether the median is below 1.",
        ),
        is_faster,
        _check_is_faster,
    ),
)

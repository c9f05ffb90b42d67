"""Exercises of 09_decide: a line through two sizes, when a snapshot wins, and how long to keep a
replica."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, expect


def line(small: tuple[float, float], big: tuple[float, float]) -> tuple[float, float]:
    rate = (big[0] - small[0]) / (big[1] - small[1])
    return small[1] - small[0] / rate, rate


def _check_line(answer: Callable[..., tuple[float, float]]) -> str:
    case = "100 MB in 3 s and 500 MB in 7 s"
    expect(
        answer((100e6, 3.0), (500e6, 7.0)),
        (2.0, 100e6),
        case,
        {
            (
                "That is bytes ÷ seconds of the big one. Part of its 7 s does not depend on bytes: "
                "take the difference of both sizes."
            ): (
                0.0,
                500e6 / 7,
            ),
            (
                "The rate is right; the fixed part is what is left of one start when its bytes are "
                "taken off."
            ): (
                0.0,
                100e6,
            ),
            "You return the two in the other order: fixed seconds first, then bytes per second.": (
                100e6,
                2.0,
            ),
            "You give seconds per byte; a rate is bytes per second.": (2.0, 1e-8),
        },
    )
    expect(
        answer((5e6, 0.5), (250e6, 0.5 + 245e6 / 50e6)),
        (0.4, 50e6),
        "5 MB and 250 MB at 50 MB/s, with a fixed part of 0.4 s",
    )
    return "Two sizes, two unknowns. With a third you can find out whether a line is true at all."


def snapshot_wins(
    skipped_s: float, snapshot_bytes: float, read_bytes_per_s: float, fixed_s: float
) -> bool:
    return snapshot_bytes / read_bytes_per_s + fixed_s < skipped_s


def _check_snapshot(answer: Callable[..., bool]) -> str:
    expect(
        answer(40.0, 16e9, 2e9, 1.5),
        True,
        "16 GB read at 2 GB/s in place of a start of 40 s",
        {"Restoring takes 8 s + 1.5 s; starting takes 40 s.": False},
    )
    expect(
        answer(40.0, 16e9, 0.2e9, 1.5),
        False,
        "the same at 200 MB/s",
        {"Reading 16 GB at 200 MB/s takes 80 s: starting is faster.": True},
    )
    expect(
        answer(9.0, 16e9, 2e9, 1.5),
        False,
        "a start of 9 s against 8 s of reading and 1.5 s of fixed cost",
        {"The fixed cost of a restore (processes, mounts, the device) counts too.": True},
    )
    return (
        "The same rule as labkit.decide.breakeven.snapshot: image size follows memory in use, so"
        " shrink first, then dump."
    )


def keep_alive_s(
    cold_s: float, price_per_gpu_hour: float, value_of_a_waited_second: float
) -> float:
    return cold_s * value_of_a_waited_second / (price_per_gpu_hour / 3600)


def _check_keep_alive(answer: Callable[..., float]) -> str:
    expect(
        answer(60.0, 3.6, 0.01),
        600.0,
        "a start of 60 s, 3.60 a GPU-hour, 0.01 for a second waited",
        {
            (
                "The price is for an hour; waiting is valued by the second. Divide the price by "
                "3600."
            ): (60 * 0.01 / 3.6),
            "That is what the wait costs. How many idle seconds does it buy?": 0.6,
            "Upside down: a dearer GPU should be kept for less time.": 1 / 600,
        },
    )
    expect(answer(60.0, 7.2, 0.01), 300.0, "the same at twice the price")
    expect(
        answer(6.0, 3.6, 0.01),
        60.0,
        "a start that is ten times faster",
        {"A faster start needs less keeping: that is what the whole lab is for.": 600.0},
    )
    return (
        "Keep it until idling has cost as much as the wait it avoids: whatever the traffic does, at"
        " worst twice the best."
    )


EXERCISES = (
    Exercise(
        "decide.line",
        "a line through two sizes",
        2,
        5,
        6,
        (
            (
                "seconds = fixed + bytes ÷ rate, twice. Subtract one from the other: which unknown"
                " is left?"
            ),
            "rate = (difference of bytes) ÷ (difference of seconds).",
            "fixed = seconds of one of them − its bytes ÷ rate. Return `(fixed, rate)`.",
        ),
        line,
        _check_line,
    ),
    Exercise(
        "decide.snapshot_wins",
        "when does a snapshot win?",
        1,
        5,
        4,
        (
            "What does a restore have to do? Write its seconds first.",
            "Reading takes snapshot_bytes ÷ read_bytes_per_s; the rest of a restore takes fixed_s.",
            "It wins when that is less than skipped_s.",
        ),
        snapshot_wins,
        _check_snapshot,
    ),
    Exercise(
        "decide.keep_alive",
        "how long to keep an idle replica",
        3,
        4,
        8,
        (
            (
                "Idling costs money per second; a cold start costs a user's seconds. Put both into"
                " money."
            ),
            "The wait avoided is worth cold_s × value_of_a_waited_second.",
            "One idle second costs price_per_gpu_hour ÷ 3600. How many of those does the wait buy?",
        ),
        keep_alive_s,
        _check_keep_alive,
    ),
)

"""Exercises of 08_stacking: what a fast phase does for the whole, why gains do not add up, and
reading a claim."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def whole_speedup(share: float, times_faster: float) -> float:
    return 1 / ((1 - share) + share / times_faster)


def _check_whole_speedup(answer: Callable[..., float]) -> str:
    expect(
        answer(0.5, 2.0),
        4 / 3,
        "a phase that is half of the start, made twice as fast",
        {
            (
                "Halving half of the time leaves three quarters: the whole is 1 ÷ 0.75 times "
                "faster, not 1 + share × factor."
            ): (2.0),
            "That is the share of the time that is left. How many times faster is that?": 0.75,
            (
                "You average the factor over the phases. Add up times, then divide: factors of "
                "phases do not average."
            ): (1.5),
        },
    )
    expect(
        answer(0.12, 48.0),
        1 / (0.88 + 0.12 / 48),
        "48 times faster on a phase that is 12 % of the start",
        {
            "Making a phase 48 times faster cannot make the whole so: the other 88 % stay.": 48.0,
            "48 × 12 % has no meaning: the slow part stays.": 5.76,
        },
    )
    expect(answer(0.5, float("inf")), 2.0, "a phase that disappears altogether")
    return (
        "This is why 48 × on the load was 1.1 × to a ready server in a published table: the load"
        " was a small share."
    )


def sum_of_gains_s(naive_s: float, alone_s: list[float]) -> float:
    return naive_s - sum(naive_s - with_one_s for with_one_s in alone_s)


def _check_sum_of_gains(answer: Callable[..., float]) -> str:
    expect(answer(10.0, [7.0]), 7.0, "one technique that takes 10 s to 7 s")
    expect(
        answer(10.0, [7.0, 8.0]),
        5.0,
        "two techniques, 10 s to 7 s and 10 s to 8 s",
        {
            "That multiplies the ratios, as if each technique shortened every phase: 0.7 × 0.8.": (
                5.6
            ),
            "That is the better of the two alone.": 7.0,
            "That is the sum of what is left, not what is saved.": 15.0,
        },
    )
    expect(
        answer(10.0, [3.0, 4.0]),
        -3.0,
        "two techniques that save 7 s and 6 s of 10 s",
        {
            (
                "Do not cut it off at zero: a negative prediction is the message. Both techniques "
                "save the same seconds, and the sum counts them twice."
            ): (0.0)
        },
    )
    return (
        "A negative time is what adding separate gains can give. Seconds that two techniques both"
        " save can be saved once."
    )


def verdict(low: float, high: float, claim_low: float, claim_high: float) -> str:
    if low <= 1 <= high:
        return "not significant"
    if high < claim_low:
        return "larger"
    if low > claim_high:
        return "smaller"
    return "holds"


def _check_verdict(answer: Callable[..., str]) -> str:
    cases = (
        ((0.3, 0.35, 0.2, 0.4), "holds", "an interval inside the claimed range"),
        (
            (0.35, 0.45, 0.2, 0.4),
            "holds",
            "an interval that overlaps the claimed range: the data do not contradict the claim",
        ),
        (
            (0.1, 0.15, 0.2, 0.4),
            "larger",
            "ratios below the range: less time than claimed is a larger gain",
        ),
        (
            (0.6, 0.7, 0.2, 0.4),
            "smaller",
            "ratios above the range: some gain, but less than claimed",
        ),
        (
            (0.8, 1.1, 0.2, 0.4),
            "not significant",
            "an interval that holds 1: there may be no gain at all",
        ),
    )
    for given, wanted, why in cases:
        got = answer(*given)
        if got not in ("holds", "larger", "smaller", "not significant"):
            raise WrongAnswer(
                f'For {given} you return {got!r}; return "holds", "larger", "smaller" or "not'
                ' significant".'
            )
        if got != wanted:
            raise WrongAnswer(
                f"For the interval {given[0]}–{given[1]} and the claim {given[2]}–{given[3]} you"
                f" say {got!r}; it should be {wanted!r}: {why}."
            )
    return (
        "Ratios are new ÷ old: smaller is faster. This is the rule behind the verdicts in the table"
        " below."
    )


EXERCISES = (
    Exercise(
        "stacking.whole_speedup",
        "a fast phase and the whole start",
        2,
        5,
        5,
        (
            "Take a start of 1 second. How much of it is the phase, how much is not?",
            "The phase shrinks to `share / times_faster`; the rest stays `1 - share`.",
            "How many times faster: old ÷ new, and old is 1.",
        ),
        whole_speedup,
        _check_whole_speedup,
    ),
    Exercise(
        "stacking.sum_of_gains",
        "adding up separate gains",
        1,
        4,
        4,
        (
            "Each technique alone saves `naive_s - with_one_s`.",
            "Take all savings off the naive time – and let the result be what it is.",
        ),
        sum_of_gains_s,
        _check_sum_of_gains,
    ),
    Exercise(
        "stacking.verdict",
        "reading a claim",
        2,
        4,
        6,
        (
            "All numbers are ratios new ÷ old. Where is 'no gain at all'?",
            (
                "Ask for 1 inside the interval first; then compare the ends of the interval with"
                " the ends of the claim."
            ),
            "`high < claim_low` means even the worst of the interval beats the best of the claim.",
        ),
        verdict,
        _check_verdict,
    ),
)

"""Exercises of 00_start_here: what to attack first."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, expect


def attack_first(phases: dict[str, float], floors: dict[str, float]) -> str:
    return max(phases, key=lambda phase: phases[phase] - floors.get(phase, 0.0))


def _check_attack_first(answer: Callable[..., str]) -> str:
    expect(
        answer({"pull": 5.0, "load": 3.0}, {}),
        "pull",
        "no floors known, pull 5 s and load 3 s",
        {"A phase without a known floor counts as floor 0, so all of its time is above it.": None},
    )
    expect(
        answer({"pull": 5.0, "load": 3.0}, {"pull": 4.8}),
        "load",
        "a pull of 5 s whose floor is 4.8 s, and a load of 3 s without a floor",
        {
            (
                "That is the longest phase; but only 0.2 s of it are above its floor. Take the "
                "floor off before you compare."
            ): ("pull")
        },
    )
    expect(
        answer({"pull": 5.0, "load": 1.0}, {"pull": 1.0, "load": 0.1}),
        "pull",
        "pull 5 s (floor 1 s), load 1 s (floor 0.1 s)",
        {
            (
                "You compare how many times a phase is above its floor: load is 10 times its "
                "floor, but only 0.9 s can be gained there."
            ): ("load")
        },
    )
    return (
        "Seconds above the floor, not the longest bar and not the worst ratio: that is what a"
        " change can give back."
    )


EXERCISES = (
    Exercise(
        "start.attack_first",
        "what to attack first",
        1,
        4,
        4,
        (
            "For one phase: how many seconds could the best possible technique save?",
            "That is `phases[phase] - floors.get(phase, 0)`. `max` takes a `key` function.",
        ),
        attack_first,
        _check_attack_first,
    ),
)

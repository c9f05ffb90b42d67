"""Exercises of 07_checkpoints: the break-even rate, and the way back through a failed CUDA
checkpoint."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def break_even_rate(heap_bytes: int, computed_s: float, fixed_s: float) -> float:
    return heap_bytes / (computed_s - fixed_s) if computed_s > fixed_s else float("inf")


def _check_rate(answer: Callable[..., float]) -> str:
    expect(
        answer(150_000_000, 3.5, 0.5),
        50e6,
        "a heap of 150 MB in place of 3.5 s of computing, with 0.5 s that a restore always takes",
        {
            "The restore's own fixed time is part of its price: take it off what is saved.": (
                150_000_000 / 3.5
            ),
            "You turned the fraction round: that is seconds per byte.": 3.0 / 150_000_000,
        },
    )
    expect(
        answer(150_000_000, 0.4, 0.5),
        float("inf"),
        "a start that computes less than a restore's fixed time",
        {
            "No disk is fast enough here: a negative rate means never, which is infinity.": (
                150_000_000 / -0.1
            )
        },
    )
    return (
        "The weights cancel out: start and restore both read them. Only what is computed and what"
        " is kept decide."
    )


def way_back(state: str) -> list[str]:
    return {"running": [], "locked": ["unlock"], "checkpointed": ["restore", "unlock"]}.get(
        state, ["end"]
    )


def _check_way_back(answer: Callable[..., list[str]]) -> str:
    for state, wanted, mistake in (
        ("running", [], "A lock that was refused changed nothing: there is nothing to undo."),
        (
            "locked",
            ["unlock"],
            (
                "The checkpoint failed, its lock still holds: every CUDA call of the process would"
                " wait for ever."
            ),
        ),
        (
            "checkpointed",
            ["restore", "unlock"],
            (
                "The memory comes back first, then the lock is taken off; unlocking a checkpointed"
                " process is refused."
            ),
        ),
        (
            "failed",
            ["end"],
            (
                "From `failed` no step leads back. Say so and end the process: half of a restore"
                " would serve wrong tokens."
            ),
        ),
    ):
        got = answer(state)
        if list(got) != wanted:
            raise WrongAnswer(f"For a process that is {state} you answered {got!r}. {mistake}")
    return (
        "This is what labkit.device.cuda_checkpoint does when a step fails, and what its tests try"
        " at every step."
    )


EXERCISES = (
    Exercise(
        "checkpoints.break_even",
        "when restoring is faster",
        3,
        5,
        6,
        (
            (
                "Both ways read the weights. What does only the restore read, and what does only"
                " the start do?"
            ),
            "Equal times: heap ÷ rate + fixed = computed. Solve for the rate.",
            "What if computed − fixed is zero or negative?",
        ),
        break_even_rate,
        _check_rate,
    ),
    Exercise(
        "checkpoints.way_back",
        "the way back",
        2,
        4,
        5,
        (
            "Draw the states as a line: running – locked – checkpointed.",
            "Each step back undoes one step there, in reverse order.",
            "One state has no way back at all.",
        ),
        way_back,
        _check_way_back,
    ),
)

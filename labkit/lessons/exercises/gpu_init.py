"""Exercises of 06_gpu_init: what a cache key must hold, and which steps a snapshot or a cache can
take away."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def cache_key(graph: str, shapes: tuple[int, ...], torch_version: str, device: str) -> str:
    import hashlib

    return hashlib.sha256(repr((graph, shapes, torch_version, device)).encode()).hexdigest()


def _check_key(answer: Callable[..., str]) -> str:
    base = ("relu(x @ w)", (4, 256), "2.9.0", "cpu-avx512")
    if answer(*base) != answer(*base):
        raise WrongAnswer(
            "The same inputs gave two keys: such a cache never hits. hash() of text differs from"
            " process to process; use hashlib."
        )
    for at, other, name in (
        (0, "gelu(x @ w)", "another graph"),
        (1, (8, 256), "another shape"),
        (2, "2.9.1", "another torch"),
        (3, "sm_90", "another device"),
    ):
        changed = (*base[:at], other, *base[at + 1 :])
        if answer(*changed) == answer(*base):
            raise WrongAnswer(
                f"The key is the same for {name}: the cache would hand out code that was compiled"
                " for something else."
            )
    if answer("ab", (1, 2), "c", "d") == answer("a", (1, 2), "bc", "d"):
        raise WrongAnswer("Glued together without a separator, two different inputs give one key.")
    return (
        "Everything that changes the code is in the key, and nothing else: a timestamp in it would"
        " make every start a cold one."
    )


def copy_floor_s(
    weights_bytes: int, disk_bytes_per_s: float, bus_bytes_per_s: float, overlapped: bool
) -> float:
    disk_s, bus_s = weights_bytes / disk_bytes_per_s, weights_bytes / bus_bytes_per_s
    return max(disk_s, bus_s) if overlapped else disk_s + bus_s


def _check_copy(answer: Callable[..., float]) -> str:
    expect(
        answer(16_000_000_000, 2e9, 16e9, False),
        9.0,
        "16 GB from a 2 GB/s disk over a 16 GB/s bus, one after the other",
        {"One after the other, the times add up.": 8.0},
    )
    expect(
        answer(16_000_000_000, 2e9, 16e9, True),
        8.0,
        "the same, overlapped",
        {
            "Overlapped, the shorter one hides behind the longer one.": 9.0,
            "That is the bus alone; the disk is slower.": 1.0,
        },
    )
    return (
        "On most hosts the disk hides the bus; on a warm standby in pinned memory the bus is all"
        " there is."
    )


EXERCISES = (
    Exercise(
        "gpu_init.cache_key",
        "what a cache key must hold",
        2,
        5,
        6,
        (
            "Which of the arguments may change while compiled code stays right? None.",
            "hashlib.sha256 of one unambiguous text.",
            "repr of a tuple has separators and quotes.",
        ),
        cache_key,
        _check_key,
    ),
    Exercise(
        "gpu_init.copy_floor",
        "the floor of a copy to the device",
        1,
        3,
        4,
        (
            "Two stretches: disk to memory, memory to device.",
            "What does overlapping change: a sum, or a maximum?",
        ),
        copy_floor_s,
        _check_copy,
    ),
)

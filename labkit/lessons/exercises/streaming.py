"""Exercises of 05_streaming: coalescing, reads that come short, choosing between disk and cache,
connections for a link."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def plan(begin: int, end: int, chunk_bytes: int, align: int = 4096) -> list:
    first = begin // align * align
    return [(at, min(chunk_bytes, end - at)) for at in range(first, end, chunk_bytes)]


def _check_plan(answer: Callable[..., list]) -> str:
    got = [tuple(c) for c in answer(0, 10_000, 4096, 4096)]
    expect(
        got,
        [(0, 4096), (4096, 4096), (8192, 1808)],
        "bytes 0 to 10 000 in chunks of 4096",
        {"The last chunk must not reach past the end.": [(0, 4096), (4096, 4096), (8192, 4096)]},
    )
    got = [tuple(c) for c in answer(5000, 20_000, 8192, 4096)]
    expect(
        got,
        [(4096, 8192), (12288, 7712)],
        "bytes 5000 to 20 000, aligned to 4096",
        {
            "A direct read must start at a multiple of the alignment: round the beginning down.": [
                (5000, 8192),
                (13192, 6808),
            ]
        },
    )
    return "A chunk cares for bytes, not for tensors: 200 tensors became a few dozen reads."


def read_fully(read: object, memory: memoryview, offset: int) -> None:
    done = 0
    while done < len(memory):
        got = read(memory[done:], offset + done)
        if got == 0:
            raise EOFError(f"the file ended at byte {offset + done}")
        done += got


def _check_read_fully(answer: Callable[..., None]) -> str:
    data = bytes(range(256)) * 8

    def reader(most: int) -> Callable:
        calls = []

        def read(memory: memoryview, offset: int) -> int:
            calls.append(offset)
            if len(calls) > 10_000:
                raise WrongAnswer(
                    "After ten thousand reads your function is still asking. Does it stop when a"
                    " read gives 0 bytes?"
                )
            piece = data[offset : offset + min(most, len(memory))]
            memory[: len(piece)] = piece
            return len(piece)

        return read

    for most, case in (
        (10_000, "a disk that gives all at once"),
        (100, "a disk that gives 100 bytes at a time"),
    ):
        memory = memoryview(bytearray(1000))
        answer(reader(most), memory, 24)
        if bytes(memory) != data[24:1024]:
            at = next(i for i in range(1000) if memory[i] != data[24 + i])
            raise WrongAnswer(
                f"For {case}, byte {at} is wrong. A read may give less than asked: go on where it"
                " stopped, in the memory and in the file."
            )
    try:
        answer(reader(100), memoryview(bytearray(1000)), 2000)
    except EOFError:
        pass
    else:
        raise WrongAnswer(
            "The file ended before the memory was full, and nobody was told: the rest stays zero."
            " Raise EOFError."
        )
    return "Short reads go on, an early end is told. Silent zeros would be weights."


def choose(resident_share: float, memory_bytes_per_s: float, disk_bytes_per_s: float) -> str:
    through_cache = resident_share / memory_bytes_per_s + (1 - resident_share) / disk_bytes_per_s
    return "cache" if through_cache < 1 / disk_bytes_per_s else "direct"


def _check_choose(answer: Callable[..., str]) -> str:
    for case, wanted, why in (
        (
            (1.0, 10e9, 2e9),
            "cache",
            "Everything is in memory already: a direct read would fetch it from the disk again.",
        ),
        (
            (0.0, 10e9, 2e9),
            "direct",
            "Nothing is in the cache: reading through it only adds a copy.",
        ),
        (
            (0.5, 10e9, 2e9),
            "cache",
            (
                "Half of the bytes come at memory speed; a direct read takes all of them from the"
                " disk."
            ),
        ),
        (
            (1.0, 4e9, 6e9),
            "direct",
            (
                "Here the disk is faster than the copy out of the cache: with modern drives and"
                " slow memory that happens."
            ),
        ),
    ):
        got = answer(*case)
        if got != wanted:
            raise WrongAnswer(
                f"For {case[0]:.0%} resident, memory {case[1] / 1e9:.0f} GB/s, disk"
                f" {case[2] / 1e9:.0f} GB/s you say {got!r}; it should be {wanted!r}. {why}"
            )
    return (
        "The lab's streamer asks cachestat(2) file by file and chunk by chunk; and it knows a read"
        " path without the copy, next."
    )


def connections_for(
    rate_bytes_per_s: float, connection_bytes_per_s: float, first_byte_s: float, part_bytes: int
) -> int:
    import math

    effective = part_bytes / (first_byte_s + part_bytes / connection_bytes_per_s)
    return math.ceil(rate_bytes_per_s / effective)


def _check_connections(answer: Callable[..., int]) -> str:
    expect(
        answer(500e6, 50e6, 0.0, 8_000_000), 10, "500 MB/s in all, 50 MB/s a connection, no wait"
    )
    expect(
        answer(500e6, 50e6, 0.030, 8_000_000),
        12,
        "the same with 30 ms to the first byte of every part of 8 MB",
        {
            (
                "Each part begins with 30 ms in which its connection carries nothing: its "
                "effective rate is below 50 MB/s."
            ): (10)
        },
    )
    expect(
        answer(500e6, 50e6, 0.030, 1_000_000),
        25,
        "parts of 1 MB",
        {"Small parts wait more often: 1 MB takes 20 ms to carry and 30 ms to begin.": 12},
    )
    return "Parts that are too small cost connections, parts that are too large leave a long tail."


EXERCISES = [
    Exercise(
        "streaming.plan",
        "plan the reads",
        2,
        4,
        6,
        (
            "Round `begin` down to a multiple of `align`.",
            "range(first, end, chunk_bytes) gives the starts; the last length is what is left.",
        ),
        plan,
        _check_plan,
    ),
    Exercise(
        "streaming.read_fully",
        "reads that come short",
        2,
        5,
        6,
        (
            "Loop until the memory is full; memory[done:] is the rest.",
            "A read of 0 bytes is the end of the file: raise EOFError.",
        ),
        read_fully,
        _check_read_fully,
    ),
    Exercise(
        "streaming.choose",
        "disk or cache?",
        3,
        4,
        6,
        (
            "Seconds a byte through the cache: share ÷ memory rate + (1 − share) ÷ disk rate.",
            "Compare with 1 ÷ disk rate.",
        ),
        choose,
        _check_choose,
    ),
    Exercise(
        "streaming.connections_for",
        "how many connections?",
        3,
        3,
        8,
        (
            "A part takes first_byte_s + part_bytes ÷ connection rate.",
            "Its effective rate is part_bytes ÷ that time; divide the link by it and round up.",
        ),
        connections_for,
        _check_connections,
    ),
]

"""Exercises of 03_lazy_pull: a footer by hand, the order of a layer, the share at which laziness
loses."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, expect


def toc_offset(footer: bytes) -> int:
    return int(footer[16:32], 16)


def _check_footer(answer: Callable[[bytes], int]) -> str:
    from labkit.image.estargz.layout import pack_footer

    for offset in (353_000_123, 7):
        got = answer(pack_footer(offset))
        expect(
            got,
            offset,
            f"a TOC at byte {offset:,}",
            {
                "The 16 digits are hexadecimal.": (
                    int(f"{offset:x}", 10) if f"{offset:x}".isdigit() else None
                ),
                "That is still text: make it a number.": f"{offset:016x}",
            },
        )
    return "Fifty-one bytes from the end, and you know where everything is."


def prioritised(accesses: list, landmark: str, names: list) -> list:
    first = [name for name in dict.fromkeys(accesses) if name in names]
    return [*first, landmark, *(name for name in names if name not in first)]


def _check_order(answer: Callable[[list, str, list], list]) -> str:
    names, accesses = ["a", "b", "c", "d"], ["c", "a", "c", "x"]
    expect(
        answer(accesses, "|", names),
        ["c", "a", "|", "b", "d"],
        "accesses c, a, c, x to a layer of a, b, c, d",
        {
            "A file that was touched twice is stored once.": ["c", "a", "c", "|", "b", "d"],
            "x is in no layer: leave it out.": ["c", "a", "x", "|", "b", "d"],
            "In the order of first touch, not in the layer's.": ["a", "c", "|", "b", "d"],
            "The landmark stands between the two parts.": ["c", "a", "b", "d", "|"],
        },
    )
    expect(answer([], "|", names), ["|", "a", "b", "c", "d"], "no accesses at all")
    return "One request now brings what the start will ask for, in the order in which it asks."


def break_even(full_s: float, files: int, round_trip_s: float, file_s: float) -> float:
    return min(1.0, full_s / (files * (round_trip_s + file_s)))


def _check_break_even(answer: Callable[[float, int, float, float], float]) -> str:
    expect(
        answer(1.2, 200, 0.020, 0.010),
        0.2,
        "a pull of 1.2 s against 200 files of 30 ms each",
        {
            "A file costs its round trip as well as its bytes.": 0.6,
            "That is a number of files; a share is asked for.": 40,
        },
    )
    expect(
        answer(60.0, 200, 0.020, 0.010),
        1.0,
        "a pull of a minute against 6 s of reading everything",
        {"A share is at most 1: here laziness never loses.": 10.0},
    )
    return (
        "A round trip a file is the price; prefetching the recorded files in one request is what"
        " removes it."
    )


EXERCISES = [
    Exercise(
        "lazy.toc_offset",
        "find the table of contents",
        1,
        5,
        5,
        (
            (
                "The footer is an empty gzip member: 10 bytes of header, 2 of length, then an extra"
                " field: `S`, `G`, 2 bytes of length."
            ),
            "So the subfield begins at byte 16: 16 hexadecimal digits, then `STARGZ`.",
            "`int(text, 16)` reads bytes, too.",
        ),
        toc_offset,
        _check_footer,
    ),
    Exercise(
        "lazy.prioritised",
        "put a layer in order",
        2,
        4,
        6,
        (
            "First touches only: `dict.fromkeys` keeps order and drops repeats.",
            "Names that the layer does not hold cannot be stored.",
            "first + [landmark] + the rest in its old order.",
        ),
        prioritised,
        _check_order,
    ),
    Exercise(
        "lazy.break_even",
        "when does laziness lose?",
        2,
        5,
        6,
        (
            (
                "Reading a share s of `files` one by one takes s × files × (round trip + time of a"
                " file's bytes)."
            ),
            "Set it equal to full_s and solve for s.",
            "A share above 1 means: it never loses.",
        ),
        break_even,
        _check_break_even,
    ),
]

"""Exercises of 04_model_formats: a header by hand, places that contradict each other, what a pickle
would call."""

from __future__ import annotations

import json
from collections.abc import Callable

from labkit.core.beside import scratch
from labkit.lessons.check import Exercise, WrongAnswer, expect


def header_of(path: str) -> dict:
    import json
    import struct

    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + about["data_offsets"][0] for name, about in header.items()}


def _check_header(answer: Callable[[str], dict]) -> str:
    doc = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]},
        "b": {"dtype": "U8", "shape": [2], "data_offsets": [4, 6]},
    }
    raw = json.dumps(doc).encode()
    with scratch("labkit-exercise-") as home:
        path = home / "x.safetensors"
        path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"123456")
        got = answer(str(path))
    if isinstance(got, dict) and "__metadata__" in got:
        raise WrongAnswer("`__metadata__` is not a tensor: leave it out.")
    begin = 8 + len(raw)
    expect(
        got,
        {"a": begin, "b": begin + 4},
        "a file of two tensors",
        {
            "data_offsets count from the end of the header, not from the start of the file.": {
                "a": 0,
                "b": 4,
            },
            "You forgot the eight bytes of length in front of the header.": {
                "a": begin - 8,
                "b": begin - 4,
            },
            "You give where the tensors end.": {"a": begin + 4, "b": begin + 6},
        },
    )
    return "Eight bytes, some JSON, then bytes: nothing in this format can run."


def is_sound(places: list, size_bytes: int) -> bool:
    reached = 0
    for begin, end in sorted(places):
        if begin != reached or end < begin:
            return False
        reached = end
    return reached == size_bytes


def _check_sound(answer: Callable[[list, int], bool]) -> str:
    _say(
        answer([(0, 4), (4, 10)], 10),
        True,
        "two tensors, one after the other",
        "Nothing is wrong with this one.",
    )
    _say(
        answer([(4, 10), (0, 4)], 10),
        True,
        "the same two, named in another order",
        "A header is a map: the order of its names means nothing. Sort first.",
    )
    _say(
        answer([(0, 4), (2, 10)], 10),
        False,
        "two tensors that share bytes 2 and 3",
        "Writing to one would change the other.",
    )
    _say(
        answer([(0, 4), (4, 12)], 10),
        False,
        "a tensor that ends behind the file",
        "A reader that trusts it reads past its buffer.",
    )
    _say(
        answer([(0, 4), (6, 10)], 10),
        False,
        "a hole between two tensors",
        "The format allows none: anything could be hidden in it.",
    )
    _say(
        answer([(0, 4)], 10),
        False,
        "six bytes behind the last tensor",
        "The last tensor ends the file; what follows it was put there by somebody.",
    )
    _say(
        answer([(0, 6), (6, 4), (4, 10)], 10),
        False,
        "a tensor that ends before it begins",
        "Its length is negative: an unsigned reader sees 18 quintillion.",
    )
    return "labkit.formats.layout.check_places does the same for every file it reads."


def _say(got: bool, wanted: bool, case: str, why: str) -> None:
    if got is not wanted:
        raise WrongAnswer(f"For {case} you say {got!r}; it should be {wanted}. {why}")


def would_call(program: bytes) -> list:
    import pickletools

    found: list[str] = []
    texts: list[str] = []
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "GLOBAL":
            found.append(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(texts[-2:]))
        elif isinstance(argument, str):
            texts.append(argument)
    return found


def _check_would_call(answer: Callable[[bytes], list]) -> str:
    import pickle

    class Payload:
        def __reduce__(self) -> tuple:
            return (print, ("this text shows that your function ran the pickle",))

    expect(
        list(answer(pickle.dumps({"weights": [1.0, 2.0]}, protocol=4))),
        [],
        "a pickle of plain values",
    )
    expect(
        list(answer(b"cos\nsystem\n(S'true'\ntR.")),
        ["os.system"],
        "protocol 0, where GLOBAL carries both names",
        {"GLOBAL's argument is one text with a space between module and name.": ["os system"]},
    )
    expect(
        list(answer(pickle.dumps(Payload(), protocol=4))),
        ["builtins.print"],
        "protocol 4, where STACK_GLOBAL takes module and name from the stack",
        {"STACK_GLOBAL has no argument: its two names are the last two texts pushed.": []},
    )
    return (
        "A list of names is enough for `weights_only`: it knows the few that rebuild tensors, and"
        " refuses all others."
    )


EXERCISES = [
    Exercise(
        "formats.header",
        "a header by hand",
        2,
        5,
        6,
        (
            "The first eight bytes are the header's length, little-endian: struct.unpack('<Q', …).",
            (
                "json.loads gives a dict; each tensor has data_offsets [begin, end], counted from"
                " the end of the header."
            ),
            "Position in the file = 8 + length + begin. Leave `__metadata__` out.",
        ),
        header_of,
        _check_header,
    ),
    Exercise(
        "formats.is_sound",
        "places that contradict each other",
        2,
        4,
        6,
        (
            "Sort the places; then each must begin exactly where the one before ended.",
            "The first begins at 0, the last ends at size_bytes.",
        ),
        is_sound,
        _check_sound,
    ),
    Exercise(
        "formats.would_call",
        "what would this pickle import?",
        3,
        4,
        8,
        (
            "pickletools.genops(program) yields (opcode, argument, position) and runs nothing.",
            (
                "Two opcodes import: GLOBAL (argument 'module name') and STACK_GLOBAL (takes two"
                " texts from the stack)."
            ),
            "Keep every text argument you pass; at STACK_GLOBAL the last two are module and name.",
        ),
        would_call,
        _check_would_call,
    ),
]

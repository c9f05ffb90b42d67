"""Exercises of 02_image_pull: layers merged by hand, the floor of a pull, which codec for which
link."""

from __future__ import annotations

from collections.abc import Callable

from labkit.lessons.check import Exercise, WrongAnswer, expect


def merged(layers: list) -> set:
    seen: set = set()
    for layer in layers:
        hidden = [path for path in layer if path.rpartition("/")[2].startswith(".wh.")]
        for path in hidden:
            folder, _, name = path.rpartition("/")
            target = f"{folder}/{name[4:]}" if folder else name[4:]
            seen = {p for p in seen if p != target and not p.startswith(target + "/")}
        seen |= set(layer) - set(hidden)
    return seen


def _check_merged(answer: Callable[[list], set]) -> str:
    def got(layers: list) -> list:
        return sorted(answer(layers))

    expect(
        got([["etc/a", "etc/b"], ["etc/c"]]),
        ["etc/a", "etc/b", "etc/c"],
        "two layers without whiteouts",
    )
    expect(
        got([["etc/a", "etc/b"], ["etc/.wh.a"]]),
        ["etc/b"],
        "a layer that removes etc/a",
        {
            "The whiteout itself is a mark, not a file: the container must not see it.": [
                "etc/.wh.a",
                "etc/b",
            ]
        },
    )
    expect(
        got([["etc/a"], ["etc/.wh.a"], ["etc/a"]]),
        ["etc/a"],
        "a file removed by one layer and brought back by the next",
        {"Go through the layers in order: a later one may bring the file back.": []},
    )
    expect(
        got([["opt/x/1", "opt/x/2", "opt/xy"], ["opt/.wh.x"]]),
        ["opt/xy"],
        "a whiteout of a directory",
        {
            "Removing a directory removes everything below it.": ["opt/x/1", "opt/x/2", "opt/xy"],
            "opt/xy is a neighbour of opt/x, not below it: compare with the slash.": [],
        },
    )
    expect(
        got([["a"], [".wh.a", "a"]]),
        ["a"],
        "a layer that hides the old file and brings a new one of the same name",
        {"A whiteout hides what lower layers brought, never what its own layer brings.": []},
    )
    return "So an image never gets smaller by another layer: the bytes below are still pulled."


def pull_floor(
    packed_bytes: float,
    plain_bytes: float,
    link_bytes_per_s: float,
    decompress_bytes_per_s: float,
    write_bytes_per_s: float,
    pipelined: bool,
) -> float:
    parts = [
        packed_bytes / link_bytes_per_s,
        plain_bytes / decompress_bytes_per_s,
        plain_bytes / write_bytes_per_s,
    ]
    return max(parts) if pipelined else sum(parts)


def _check_pull_floor(answer: Callable[..., float]) -> str:
    case = (350e6, 1200e6, 125e6, 300e6, 1000e6)
    expect(
        answer(*case, False),
        2.8 + 4.0 + 1.2,
        "350 MB for 1.2 GB of files, 1 Gbit/s, gunzip 300 MB/s, disk 1 GB/s, one after the other",
        {
            "gunzip's rate counts the bytes that come out, so divide the plain bytes by it.": (
                2.8 + 350 / 300 + 1.2
            ),
            "The disk gets the plain bytes, not the packed ones.": 2.8 + 4.0 + 0.35,
            "One after the other: the times add up.": 4.0,
        },
    )
    expect(
        answer(*case, True),
        4.0,
        "the same, all three at once",
        {
            "At once, the slowest hides the others: the largest counts, not the sum.": 8.0,
            "The smallest is the one that waits.": 1.2,
        },
    )
    return "Here gunzip is the limit, and a faster network would gain nothing."


def best_codec(codecs: dict, plain_bytes: float, link_bytes_per_s: float) -> str:
    def seconds(name: str) -> float:
        packed_bytes, decompress_bytes_per_s = codecs[name]
        return max(packed_bytes / link_bytes_per_s, plain_bytes / decompress_bytes_per_s)

    return min(codecs, key=seconds)


def _check_best_codec(answer: Callable[..., str]) -> str:
    codecs = {"gzip": (350e6, 300e6), "zstd": (310e6, 900e6), "none": (1200e6, float("inf"))}
    for rate, wanted, why in (
        (25e6, "zstd", "On a slow link only the packed size counts."),
        (125e6, "zstd", "gunzip needs 4 s for what the link brings in 2.8."),
        (2500e6, "none", "The link is faster than any decompression: nothing to unpack is best."),
    ):
        got = answer(codecs, 1200e6, rate)
        if got != wanted:
            raise WrongAnswer(
                f"At {rate * 8 / 1e9:g} Gbit/s you say {got!r}; it should be {wanted!r}. {why} The"
                " parts run at once: take the larger of the two times."
            )
    if answer({"gzip": (350e6, 400e6), "none": (1200e6, float("inf"))}, 1200e6, 125e6) != "gzip":
        raise WrongAnswer(
            "With gzip (400 MB/s) against none at 1 Gbit/s it is gzip: 3.0 s against 9.6 s. No"
            " compression wins only when the link outruns the decompressor."
        )
    return (
        "No compression begins to win where the link carries more bytes than the decompressor"
        " gives."
    )


EXERCISES = [
    Exercise(
        "pull.merged",
        "what the container sees",
        2,
        4,
        8,
        (
            (
                "A layer is a list of paths. A path whose last part begins with .wh. hides"
                " something below."
            ),
            (
                "Go through the layers from the lowest. First remove what this layer hides, then"
                " add what it brings."
            ),
            (
                "The hidden path is the folder of the mark and its name without the first four"
                " letters; everything that starts with that path and a slash goes too."
            ),
        ),
        merged,
        _check_merged,
    ),
    Exercise(
        "pull.pull_floor",
        "the floor of a pull",
        1,
        5,
        5,
        (
            "Three resources, three times: bytes ÷ rate each.",
            "Which bytes cross the link, which leave the decompressor, which reach the disk?",
            "One after the other: the sum. At once: the largest.",
        ),
        pull_floor,
        _check_pull_floor,
    ),
    Exercise(
        "pull.best_codec",
        "which codec for which link",
        3,
        3,
        8,
        (
            (
                "codecs maps a name to (packed bytes, bytes per second that come out of the"
                " decompressor)."
            ),
            "For each codec: how long does the link need, how long the decompressor?",
            (
                "They run at once, so a codec's time is the larger of the two; take the codec with"
                " the smallest time."
            ),
        ),
        best_codec,
        _check_best_codec,
    ),
]

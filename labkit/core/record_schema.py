"""What a run record looks like: checked once, where it is read, so that nobody who uses one has to.

Types, and ranges: a duration is finite, not negative and no longer than thirty years; an outcome is
one that is known; a good trial has a total. Keys that are not named here are kept and never looked
at, but for three things that hold anywhere in a document: numbers are finite, none is beyond 10³⁰,
and nothing is nested deeper than a record ever is. The first thing that is wrong is named by its
place.

    document("run.json")               # the parsed JSON of a regular file, or BadInput
    check(doc, "run.json")             # BadInput: run.json: trials[3].phases.load: -1.2 is not a
        time

It checks shapes, not truth: a record that was edited by hand into another valid one is not found
out. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import json
import math
import os
import stat
from collections.abc import Callable
from typing import Any

from labkit.core import printable
from labkit.errors import BadInput

OUTCOMES = (
    "ok",
    "timeout",
    "oom",
    "killed",
    "crashed",
    "wrong_tokens",
    "no_evidence",
    "cache_unproven",
    "interrupted",
    "unavailable",
)
STATES = ("cold", "warm", "unverified")
FIX = "give the JSON file that labkit run --out wrote"

# shorter than a nanosecond is no measurement; ratios of what is between stay finite
MOST_S, LEAST_S = 1e9, 1e-9
MOST_BYTES = 1e18
MOST = 1e30
MOST_COUNT = 1_000_000
DEEPEST = 48
LARGEST_FILE_BYTES = 256 << 20

Check = Callable[[Any, str], None]


class InvalidField(Exception):
    """`at`: the place in the document; `what`: what is wrong there."""

    def __init__(self, at: str, what: str):
        super().__init__(f"{at or 'the document'}: {what}")


def document(path: str | os.PathLike[str], fix: str = FIX) -> Any:
    """The JSON document in a regular file. Raises BadInput for anything else: never waits at a
    pipe, never fills memory."""
    name = printable.line(path)
    try:
        # O_NONBLOCK: opening a pipe that nobody writes to would wait for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                raise BadInput(f"{name} is not a file", why="a record is a regular file", fix=fix)
            if found.st_size > LARGEST_FILE_BYTES:
                raise BadInput(f"{name} has {found.st_size} bytes: no record is so large", fix=fix)
            raw = file.read()
        return json.loads(raw.decode("utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no run at {name}", fix="labkit run naive --out FILE makes one") from None
    except OSError as error:
        raise BadInput(f"{name} cannot be read: {error.strerror}", fix=fix) from None
    except RecursionError:
        raise BadInput(f"{name} is nested too deep for a record", fix=fix) from None
    except ValueError as error:
        # not JSON, not UTF-8, a path with a null byte, a number of thousands of digits
        raise BadInput(f"{name} is not a run record: {printable.line(error)}", fix=fix) from None


def check(doc: Any, name: str | os.PathLike[str], fix: str = FIX) -> None:
    """Raises BadInput that names the place, unless the document is a run."""
    shown = printable.line(name)
    if not isinstance(doc, dict) or "trials" not in doc or "schema" not in doc:
        raise BadInput(f"{shown} is JSON but not a run record", fix=fix)
    if "kind" in doc:  # a run has none
        raise BadInput(
            f"{shown} is a record of {printable.line(doc['kind'])[:60]}, not of a run",
            why="it has no arms and no cold starts that could be compared",
            fix="labkit show FILE; the runs among GPU trials have records of their own beside it",
        )
    try:
        sound(doc)
        RUN(doc, "")
    except InvalidField as wrong:
        raise BadInput(
            f"{shown} is a damaged run record: {wrong}",
            why="nothing is read from a record that is not sound",
            fix="run it again, or restore the file",
        ) from None


def sound(doc: Any) -> None:
    """What holds anywhere in a document. Without recursion: this is what stands between a deep
    document and code that has it."""
    left: list[tuple[Any, str, int]] = [(doc, "", 0)]
    while left:
        value, at, depth = left.pop()
        if depth > DEEPEST:
            raise InvalidField(at[:200], f"nested deeper than {DEEPEST}")
        if isinstance(value, dict):
            left += [(v, _inside(at, k), depth + 1) for k, v in value.items()]
        elif isinstance(value, list):
            left += [(v, f"{at}[{i}]", depth + 1) for i, v in enumerate(value)]
        elif _is_number(value) and not -MOST <= value <= MOST:
            raise InvalidField(at, f"{_said(value)} is not a finite number")


def _inside(at: str, key: str) -> str:
    return f"{at}.{printable.line(key)[:60]}" if at else printable.line(key)[:60]


def _said(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and not -MOST <= value <= MOST:
        return "an integer of some hundred digits" if abs(value) > 10**60 else str(value)
    whole = printable.line(repr(value))
    return whole if len(whole) <= 60 else whole[:57] + "…"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def number(what: str, low: float, high: float) -> Check:
    def checked(value: Any, at: str) -> None:
        if not _is_number(value) or not (low <= value <= high):
            raise InvalidField(at, f"{_said(value)} is not {what}")

    return checked


def whole(what: str, low: int, high: int) -> Check:
    def checked(value: Any, at: str) -> None:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InvalidField(at, f"{_said(value)} is not {what}")

    return checked


def time_s(value: Any, at: str) -> None:
    if not _is_number(value) or math.isnan(value) or not (value == 0 or LEAST_S <= value <= MOST_S):
        raise InvalidField(at, f"{_said(value)} is not a time")


def text(value: Any, at: str) -> None:
    if not isinstance(value, str):
        raise InvalidField(at, f"{_said(value)} is not text")


def flag(value: Any, at: str) -> None:
    if not isinstance(value, bool):
        raise InvalidField(at, f"{_said(value)} is not true or false")


def one_of(*words: str) -> Check:
    def checked(value: Any, at: str) -> None:
        if not isinstance(value, str) or value not in words:
            raise InvalidField(at, f"{_said(value)} is none of {', '.join(words)}")

    return checked


def maybe(check: Check) -> Check:
    """The same, or null."""
    return lambda value, at: None if value is None else check(value, at)


def listed(check: Check) -> Check:
    def checked(value: Any, at: str) -> None:
        if not isinstance(value, list):
            raise InvalidField(at, f"{_said(value)} is not a list")
        for i, item in enumerate(value):
            check(item, f"{at}[{i}]")

    return checked


def mapped(check: Check | None = None) -> Check:
    """An object of any keys, each value checked."""

    def checked(value: Any, at: str) -> None:
        if not isinstance(value, dict):
            raise InvalidField(at, f"{_said(value)} is not an object")
        for key, item in value.items():
            if check:
                check(item, _inside(at, key))

    return checked


def shaped(known: dict[str, Check], needed: tuple[str, ...] = ()) -> Check:
    """An object of named fields; others are let pass."""

    def checked(value: Any, at: str) -> None:
        mapped()(value, at)
        for name in needed:
            if name not in value:
                raise InvalidField(at, f"{name} is missing")
        for name, check in known.items():
            if name in value:
                check(value[name], _inside(at, name))

    return checked


moment_s = number("a moment", -MOST_S, MOST_S)
size_bytes = number("a number of bytes", 0, MOST_BYTES)
_any_number = number("a number", -MOST_BYTES, MOST_BYTES)
count = whole("a count", 0, MOST_COUNT)


def _span(value: Any, at: str) -> None:
    shaped(
        {"name": text, "start_s": moment_s, "end_s": moment_s, "source": text, "detail": mapped()},
        ("name", "start_s", "end_s"),
    )(value, at)
    if value["end_s"] < value["start_s"]:
        raise InvalidField(
            at, f"ends at {_said(value['end_s'])}, before it starts at {_said(value['start_s'])}"
        )


def _transfers(value: Any, at: str) -> None:
    """labkit.core.transfers."""
    shaped({"paths": listed(listed(text)), "rows": listed(listed(_any_number)), "left_out": count})(
        value, at
    )
    paths = value.get("paths", [])
    for i, path in enumerate(paths):
        if len(path) != 2:
            raise InvalidField(f"{at}.paths[{i}]", f"{_said(path)} is not a store and a path")
    for i, row in enumerate(value.get("rows", [])):
        where = f"{at}.rows[{i}]"
        if len(row) != 4:
            raise InvalidField(where, f"{_said(row)} is not path, start_s, end_s, bytes")
        whole("a path's index", 0, len(paths) - 1)(row[0], where)
        moment_s(row[1], where)
        moment_s(row[2], where)
        size_bytes(row[3], where)


def _trial(value: Any, at: str) -> None:
    _TRIAL(value, at)
    if value.get("outcome", "ok") == "ok" and not value.get("total_s"):
        raise InvalidField(
            _inside(at, "total_s"),
            f"{_said(value.get('total_s'))} is not the time of a trial that passed",
        )


def _arms(value: Any, at: str) -> None:
    listed(
        shaped({"name": text, "stack": mapped(text), "scenario": text, "link": text}, ("name",))
    )(value, at)
    names = [arm["name"] for arm in value]
    for i, name in enumerate(names):
        if not name or name in names[:i]:
            raise InvalidField(
                f"{at}[{i}].name",
                f"{_said(name)} " + ("names no arm" if not name else "is another arm's name too"),
            )


def _floors(value: Any, at: str) -> None:
    """Rates, and words that say how they were measured."""
    mapped()(value, at)
    for name, rate in value.items():
        if rate is not None and (
            _is_number(rate) or name.endswith("_s") or name in ("cpus", "disk_read_depth")
        ):
            # bytes ÷ a rate stay finite
            number("a rate", LEAST_S if rate else 0, MOST_BYTES)(rate, _inside(at, name))


_TRIAL = shaped(
    {
        "arm": text,
        "block": count,
        "order": count,
        "outcome": one_of(*OUTCOMES),
        "total_s": maybe(time_s),
        "phases": mapped(time_s),
        "unaccounted_s": maybe(time_s),
        "spans": listed(_span),
        "floors": mapped(time_s),
        "tokens": listed(whole("a token", 0, 1 << 63)),
        "cache": shaped(
            {
                "state": one_of(*STATES),
                "method": text,
                "note": text,
                "files": maybe(whole("a count", 0, 1 << 53)),
                "total_bytes": size_bytes,
                "resident_bytes": size_bytes,
            }
        ),
        "evidence": listed(
            shaped(
                {"technique": text, "layer": text, "engaged": flag, "how": text, "facts": mapped()},
                ("technique", "engaged", "how"),
            )
        ),
        "facts": shaped({"steps": mapped(mapped()), "transfers": _transfers}),
        "samples": mapped(),
        "disturbed": text,
        "error": mapped(text),
        "log_tail": text,
    },
    ("arm", "block", "order"),
)

RUN = shaped(
    {
        "id": text,
        "created": text,
        "lab_version": text,
        "schema": whole("a schema", 1, MOST_COUNT),
        "trials": listed(_trial),
        "host": shaped(
            {
                "id": text,
                "title": text,
                "name": text,
                "gpus": listed(mapped()),
                "kernel": text,
                "python": text,
                "torch": maybe(text),
            }
        ),
        "experiment": shaped(
            {
                "arms": _arms,
                "blocks": count,
                "seed": whole("a seed", -(1 << 63), 1 << 64),
                "preset": text,
                "model_dir": text,
                "store": text,
                "max_tokens": count,
                "image_extra_bytes": whole("a number of bytes", 0, int(MOST_BYTES)),
                "simulated": text,
                "replayed_from": text,
                "notes": mapped(),
                "conditions": shaped(
                    {
                        **dict.fromkeys(
                            (
                                "preset",
                                "model_dir",
                                "model_identity",
                                "image",
                                "image_digest",
                                "store",
                                "command",
                                "url",
                                "device",
                                "prompt",
                                "model_name",
                                "at_t0",
                            ),
                            text,
                        ),
                        "image_extra_bytes": whole("a number of bytes", 0, int(MOST_BYTES)),
                        "server_args": listed(text),
                        "timeout_s": time_s,
                        "max_tokens": count,
                        "instrument": flag,
                        "environment": mapped(text),
                    }
                ),
            }
        ),
        "floors": _floors,
    },
    ("id", "created"),
)

"""The two plans of GPU trials: what is run for the article's table, in which order and how long.

    PLANS["second"].parts["wake"].command         # module and arguments, {out} and {preset} in them

The first says what works on a host, with the 1b shape (2.2 GB), under 6 minutes; the second what it
is worth for the 8b shape (16 GB), in 8, what is asked for most first. Limit: the seconds of each
plan. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

PARTS, CRIU = "labkit.device.gpu_parts", "labkit.snapshot.cuda"
LOADERS = (
    "safetensors,safetensors-device,runai-streamer,fastsafetensors,instanttensor,labkit-streamer"
)


@dataclass(frozen=True)
class TrialPart:
    """One trial: `python -m command…`, ended after `limit_s`, not begun with less than `least_s`
    left or without `after` (another trial).

    In the command, "{out}" is the directory of the record, "{preset}" the plan's shape."""

    limit_s: int
    command: tuple[str, ...]
    least_s: int = 20
    after: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


def _run(
    name: str, *stacks: str, blocks: int, scenario: str = "warm-node", timeout: int = 90
) -> tuple[str, ...]:
    """`labkit run` of these stacks over the no-image one ("" is that one itself), into
    {out}/NAME-{preset}.json."""
    return (
        "labkit",
        "run",
        *(",".join(("no-image", *filter(None, (stack,)))) for stack in stacks),
        "--device",
        "cuda",
        "--preset",
        "{preset}",
        "--scenario",
        scenario,
        "--blocks",
        str(blocks),
        "--timeout",
        str(timeout),
        "--out",
        f"{{out}}/{name}-{{preset}}.json",
        "--overwrite",
        "--json",
    )


def _resumed(command: tuple[str, ...]) -> tuple[str, ...]:
    """The same, into the record that is there."""
    return tuple("--resume" if word == "--overwrite" else word for word in command)


def _load(cache: str, blocks: int) -> tuple[str, ...]:
    return (
        "labkit",
        "bench",
        "load",
        "--preset",
        "{preset}",
        "--cache",
        cache,
        "--device",
        "cuda",
        "--blocks",
        str(blocks),
        "--loaders",
        LOADERS,
        "--json",
    )


STREAMED = "weights=labkit-streamer"
RESIDENT = "weights=device-resident"
DECODE = (
    *(PARTS, "decode", "--preset", "{preset}"),
    *("--arms", "eager,fewer-graphs,all-graphs,cudnn", "--tokens", "48"),
)

#: What works on this host, and the article's rows with the 1b shape (2.2 GB).
FIRST: dict[str, TrialPart] = {
    "facts": TrialPart(75, ("labkit.device.gpu_facts",)),
    "model": TrialPart(
        60, (PARTS, "model", "--preset", "{preset}", "--formats", "safetensors,pickle"), 15, "facts"
    ),
    "cuda-checkpoint": TrialPart(
        70, (PARTS, "checkpoint", "--preset", "{preset}", "--times", "5"), 25, "model"
    ),
    "cuda-checkpoint-criu": TrialPart(100, (CRIU, "--preset", "{preset}"), 40, "model"),
    "stack": TrialPart(
        150,
        _run(
            "stack",
            "",
            STREAMED,
            f"{STREAMED},device=fewer-graphs",
            "device=warm-standby",
            blocks=1,
            timeout=60,
        ),
        50,
        "model",
    ),
    "decode": TrialPart(
        70,
        DECODE,
        30,
        "model",
    ),
    "wake": TrialPart(45, (PARTS, "wake", "--preset", "{preset}", "--times", "3"), 20, "model"),
    "load-warm": TrialPart(90, _load("warm", 1), 40, "model"),
    "context": TrialPart(90, (PARTS, "context", "--times", "3"), 40),
    "resident": TrialPart(60, _run("resident", RESIDENT, blocks=2, timeout=45), 30, "model"),
    "compile": TrialPart(
        120,
        _run(
            "compile",
            f"{STREAMED},device=compile-cold",
            f"{STREAMED},device=compile-cache",
            blocks=1,
            scenario="hot-node",
            timeout=100,
        ),
        60,
        "model",
    ),
}
OVERLAP = "weights=overlap"
STANDBY = f"{STREAMED},device=warm-standby"

#: The 8b shape (16 GB). The naive arm draws 8 billion random numbers first, on one core: it comes
#: after what it is compared with, into the same record (`--resume`), and once.
SECOND: dict[str, TrialPart] = {
    "model": TrialPart(
        110, (PARTS, "model", "--preset", "{preset}", "--formats", "safetensors,pickle"), 60
    ),
    "stack": TrialPart(130, _run("stack", STREAMED, OVERLAP, blocks=1, timeout=170), 60, "model"),
    "cuda-checkpoint": TrialPart(
        70, (PARTS, "checkpoint", "--preset", "{preset}", "--times", "2"), 45, "model"
    ),
    "naive": TrialPart(
        190,
        _resumed(_run("stack", STREAMED, OVERLAP, STANDBY, "", blocks=1, timeout=170)),
        120,
        "stack",
    ),
    "cuda-checkpoint-criu": TrialPart(
        100, (CRIU, "--preset", "{preset}", "--warm", "0"), 70, "model"
    ),
    "wake": TrialPart(45, (PARTS, "wake", "--preset", "{preset}", "--times", "3"), 30, "model"),
    "context": TrialPart(60, (PARTS, "context", "--times", "3", "--arms", "lazy,eager"), 30),
    "load-cold": TrialPart(120, _load("cold", 1), 40, "model"),
    "resident": TrialPart(60, _run("resident", RESIDENT, blocks=1, timeout=50), 40, "model"),
    "decode": TrialPart(
        90,
        DECODE,
        40,
        "model",
    ),
    "compile": TrialPart(
        150,
        _run(
            "compile",
            f"{STREAMED},device=compile-cold",
            f"{STREAMED},device=compile-cache",
            blocks=1,
            scenario="hot-node",
            timeout=140,
        ),
        80,
        "model",
    ),
}


class TrialPlan(NamedTuple):
    """`limit_s`: for all of it."""

    parts: Mapping[str, TrialPart]
    preset: str
    limit_s: float


PLANS = {"first": TrialPlan(FIRST, "1b", 330.0), "second": TrialPlan(SECOND, "8b", 480.0)}

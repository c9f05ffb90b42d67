"""Restoring a snapshot against starting, against the cheap rival (a zygote), and against the floor.
Caches cold, blocks randomised.

    labkit bench restore --preset small,1b --blocks 5

Floor of a restore: every byte that must be read (image, and the ranges of libraries and model
touched before the first token) ÷ the disk's rate measured here with a queue; on a fresh node the
bytes that cross the link ÷ its rate come on top. Goal: restore to first token ≤ 1.25 × floor + 0.3
s (`goal_s`, `within_goal`). Each trial needs the identity of the dumped process and equal greedy
tokens. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from labkit.bench.engine import Arm, Measured, among, document, interleave
from labkit.bench.trials import of_trial, prepared_or_reason
from labkit.core.arguments import names
from labkit.core.json_types import JsonObject
from labkit.net.arguments import link
from labkit.subject.arguments import preset

STACKS = {
    "criu-process": "no-image,snapshot=criu-process",
    "criu-process-whole": "no-image,snapshot=criu-process-whole",
    "criu-process-packed": "no-image,snapshot=criu-process-packed",
    "criu-container": "naive,snapshot=criu-container",
    "criu-container-packed": "naive,snapshot=criu-container-packed",
    "zygote": "no-image,process=zygote",
    "naive": "naive",
    "naive-process": "no-image",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset",
        type=presets_of,
        default="small",
        help="one or more checkpoints, comma-separated (default small)",
    )
    parser.add_argument(
        "--arms", type=names("--arms", STACKS), default=",".join(STACKS), help="default: all"
    )
    parser.add_argument(
        "--scenario", default="warm-node", choices=["warm-node", "hot-node", "fresh-node"]
    )
    parser.add_argument(
        "--link",
        type=link,
        default="loopback",
        help="fresh-node: the link that the snapshot crosses",
    )


def presets_of(text: str) -> str:
    return ",".join(preset(one) for one in names("--preset", example="small")(text).split(","))


#: By name: the two stacks of a ratio.
RATIOS = {
    **{f"{arm}_vs_floor": (arm, "floor") for arm in STACKS if arm.startswith("criu-")},
    **{
        f"{a}_vs_{b}": (a, b)
        for a, b in (
            ("criu-container", "naive"),
            ("criu-container-packed", "naive"),
            ("criu-process-packed", "criu-process"),
            ("criu-process", "naive-process"),
            ("zygote", "naive-process"),
        )
    },
}


def run(args: argparse.Namespace) -> JsonObject:
    presets = [p.strip() for p in args.preset.split(",")]
    arms: dict[str, Arm | str] = {}
    ratios: dict[str, tuple[str, str]] = {}
    with ExitStack() as ends:
        for preset in presets:
            suffix = f"/{preset}" if len(presets) > 1 else ""
            for arm in (a.strip() for a in args.arms.split(",")):
                arms[arm + suffix] = _arm(ends, arm, preset, args)
            for name, (a, b) in RATIOS.items():
                ratios[name + suffix] = (a + suffix, b if b == "floor" else b + suffix)
        results = interleave(arms, blocks=args.blocks, seed=args.seed)
    return document(
        "restore",
        results,
        among(arms, ratios),
        presets=presets,
        scenario=args.scenario,
        link=args.link,
    )


def _arm(ends: ExitStack, arm: str, preset: str, args: argparse.Namespace) -> Arm | str:
    if arm not in STACKS:
        return f"no arm called {arm}; arms: {', '.join(STACKS)}"
    trial = prepared_or_reason(
        ends, STACKS[arm], preset=preset, scenario=args.scenario, link=args.link
    )
    if isinstance(trial, str):
        return trial

    def measure() -> Measured:
        done = trial()
        # A fresh node fetches before it restores: the floors of both.
        floor_s = sum(done.floors.values()) if "restore" in done.floors else None
        extra: JsonObject = {}
        if floor_s and done.total_s:
            goal_s = 1.25 * floor_s + 0.3
            extra = {
                "goal_s": goal_s,
                "within_goal": float(done.total_s <= goal_s),
                "restore_s": done.phases.get("restore", 0.0),
                "first_token_s": done.phases.get("first_token", 0.0),
            }
        evidence = done.evidence[-1]["how"] if done.evidence else ""
        return of_trial(done, args.link, evidence=evidence, floor_s=floor_s, extra=extra)

    return measure

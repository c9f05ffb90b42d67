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
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from labkit.bench.engine import Measured, document, interleave
from labkit.core.arguments import names
from labkit.errors import LabError
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


def run(args: argparse.Namespace) -> dict[str, Any]:
    presets, arms = (
        [p.strip() for p in args.preset.split(",")],
        [a.strip() for a in args.arms.split(",")],
    )
    name = (
        (lambda arm, preset: arm) if len(presets) == 1 else (lambda arm, preset: f"{arm}/{preset}")
    )
    prepared_arms: dict[str, Callable[[], Measured] | str] = {}
    ratios: dict[str, tuple[str, str]] = {}
    with ExitStack() as ends:
        for preset in presets:
            for arm in arms:
                prepared_arms[name(arm, preset)] = _arm(ends, arm, preset, args)
            for arm in (a for a in STACKS if a.startswith("criu-")):
                ratios[name(f"{arm}_vs_floor", preset)] = (name(arm, preset), "floor")
            ratios[name("criu-container_vs_naive", preset)] = (
                name("criu-container", preset),
                name("naive", preset),
            )
            ratios[name("criu-container-packed_vs_naive", preset)] = (
                name("criu-container-packed", preset),
                name("naive", preset),
            )
            ratios[name("criu-process-packed_vs_criu-process", preset)] = (
                name("criu-process-packed", preset),
                name("criu-process", preset),
            )
            ratios[name("criu-process_vs_naive-process", preset)] = (
                name("criu-process", preset),
                name("naive-process", preset),
            )
            ratios[name("zygote_vs_naive-process", preset)] = (
                name("zygote", preset),
                name("naive-process", preset),
            )
        results = interleave(prepared_arms, blocks=args.blocks, seed=args.seed)
    wanted = {
        k: v
        for k, v in ratios.items()
        if v[0] in prepared_arms and (v[1] == "floor" or v[1] in prepared_arms)
    }
    return document(
        "restore", results, wanted, presets=presets, scenario=args.scenario, link=args.link
    )


def _arm(
    ends: ExitStack, arm: str, preset: str, args: argparse.Namespace
) -> Callable[[], Measured] | str:
    from labkit.stack.experiment import prepared

    try:
        trial = ends.enter_context(
            prepared(STACKS[arm], preset=preset, scenario=args.scenario, link=args.link)
        )
    except LabError as error:
        return error.what
    except KeyError:
        return f"no arm called {arm}; arms: {', '.join(STACKS)}"

    def one() -> Measured:
        done = trial()
        # A fresh node fetches before it restores: the floors of both.
        floor_s = sum(done.floors.values()) if "restore" in done.floors else None
        extra: dict[str, Any] = {}
        if floor_s and done.total_s:
            goal_s = 1.25 * floor_s + 0.3
            extra = {
                "goal_s": goal_s,
                "within_goal": float(done.total_s <= goal_s),
                "restore_s": done.phases.get("restore", 0.0),
                "first_token_s": done.phases.get("first_token", 0.0),
            }
        evidence = done.evidence[-1]["how"] if done.evidence else ""
        return Measured(
            done.total_s or float("nan"),
            cache=done.cache.get("state", "unverified"),
            link=args.link,
            floor_s=floor_s,
            evidence=evidence,
            failed="" if done.ok else f"{done.outcome}: {done.error.get('what', '')}",
            extra=extra,
        )

    return one

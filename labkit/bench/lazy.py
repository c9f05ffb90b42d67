"""From nothing to the first token: full pull, our lazy mount, the reference lazy mount, on slow and
fast links.

    labkit bench lazy --links 200mbit,1gbit,loopback --blocks 5
    labkit bench lazy --links 1gbit --arms full,lazy --blocks 2 --preset tiny

Each measurement is a whole trial of the lab (fresh processes, empty node, tokens checked, evidence
from outside); arms differ in the image technique only. Goals: `lazy_vs_full.1gbit` ≤ 0.35,
`lazy_vs_stargz.*` ≤ 1.0. The links are emulated by the server of the layers, and can only slow it
down; `loopback` is not shaped. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from functools import partial

from labkit.bench.engine import Arm, Measured, among, document, interleave
from labkit.bench.trials import PreparedTrial, of_trial, prepared_or_reason
from labkit.core import host
from labkit.core.arguments import names
from labkit.core.json_types import JsonObject
from labkit.net.arguments import link
from labkit.stack.compose import Stack
from labkit.subject.arguments import preset

ARMS = {"full": "full-pull", "lazy": "estargz-lazy", "stargz": "containerd-stargz"}
LINKS = ("200mbit", "1gbit", "loopback")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--links",
        type=links_of,
        default=",".join(LINKS),
        help="emulated links (default 200mbit,1gbit,loopback)",
    )
    parser.add_argument(
        "--arms",
        type=names("--arms", ARMS),
        default=",".join(ARMS),
        help="default: full,lazy,stargz",
    )
    parser.add_argument(
        "--preset",
        type=preset,
        default="tiny",
        help="checkpoint; small ones leave the image as the cost (default tiny)",
    )
    parser.add_argument("--stack", default="naive", help="what the arms share (default naive)")


def links_of(text: str) -> str:
    return ",".join(
        link(one) for one in names("--links", example="1gbit,loopback")(text).split(",")
    )


def run(args: argparse.Namespace) -> JsonObject:
    wanted, links = args.arms.split(","), args.links.split(",")
    with ExitStack() as ends:
        trials = {name: _trial(ends, args, ARMS[name], links[0]) for name in wanted}
        arms: dict[str, Arm | str] = {
            f"{name}.{link}": trial if isinstance(trial, str) else partial(_measure, trial, link)
            for link in links
            for name, trial in trials.items()
        }
        results = interleave(arms, args.blocks, args.seed)
    ratios = {
        f"lazy_vs_{other}.{_short(link)}": (f"lazy.{link}", f"{other}.{link}")
        for link in links
        for other in ("full", "stargz")
    }
    return document("lazy", results, among(arms, ratios), preset=args.preset, stack=args.stack)


def _short(link: str) -> str:
    return "unthrottled" if link == "loopback" else link


def _trial(
    ends: ExitStack, args: argparse.Namespace, technique: str, link: str
) -> PreparedTrial | str:
    """A trial a call, prepared once for all links; or the reason why there is none here."""
    shared = "" if args.stack == "naive" else f"{args.stack},"
    stack = Stack.parse(f"{shared}image={technique}")
    found = stack.available(host.card())
    if not found:
        return f"{found.missing} ({found.fix})"
    return prepared_or_reason(ends, stack, preset=args.preset, scenario="fresh-node", link=link)


def _measure(trial: PreparedTrial, link: str) -> Measured:
    record = trial(link=link)
    none: JsonObject = {"how": "", "facts": {}}
    image = next((e for e in record.evidence if e["layer"] == "image"), none)
    facts: JsonObject = image["facts"]
    extra = {f"{phase}_s": seconds for phase, seconds in record.phases.items()}
    extra["registry_bytes"] = facts.get("registry_bytes", 0)
    if mount := facts.get("mount"):
        extra["blocked_s"] = mount.get("blocked_s", 0.0)
    return of_trial(record, link, evidence=image["how"], extra=extra)

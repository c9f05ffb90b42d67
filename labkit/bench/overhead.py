"""`labkit bench overhead`: the same cold start with and without the instrument, interleaved
(`instrumented_vs_bare`).

Bare keeps the client, the node agent and the cache state – without them there is no cold start to
time – and leaves out spans, sampling, counters and observation. Goal: 1.02 at most. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import argparse

from labkit.bench.engine import Measured, document, interleave
from labkit.bench.trials import of_trial
from labkit.core.arguments import scenario
from labkit.core.json_types import JsonObject
from labkit.subject.arguments import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stack", default="naive")
    parser.add_argument("--preset", type=preset, default="small")
    parser.add_argument("--scenario", type=scenario, default="fresh-node")


def run(args: argparse.Namespace) -> JsonObject:
    from labkit.stack.experiment import prepared

    with prepared(args.stack, preset=args.preset, scenario=args.scenario) as trial:

        def measure(instrument: bool) -> Measured:
            done = trial(instrument=instrument)
            evidence = f"{len(done.spans)} spans, {len(done.evidence)} pieces of evidence"
            return of_trial(done, evidence=evidence)

        results = interleave(
            {"instrumented": lambda: measure(True), "bare": lambda: measure(False)},
            blocks=args.blocks,
            seed=args.seed,
        )
    return document(
        "overhead",
        results,
        {"instrumented_vs_bare": ("instrumented", "bare")},
        stack=args.stack,
        scenario=args.scenario,
    )

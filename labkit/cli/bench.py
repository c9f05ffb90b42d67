"""`labkit bench NAME`: interleaved measurement; a table for people, one JSON line for machines."""

from __future__ import annotations

import argparse
import importlib
import sys
from functools import partial

from labkit.bench import BENCHES, module_of
from labkit.core.arguments import count
from labkit.core.json_types import JsonObject
from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, help_text in BENCHES.items():
        sub = names.add_parser(
            name, help=help_text, description=help_text, fill=partial(_fill, name)
        )
        sub.add_argument(
            "--blocks",
            type=count("--blocks"),
            default=5,
            help="each arm once per block (default 5)",
        )
        sub.add_argument("--seed", type=int, default=0, help="order of arms within the blocks")
        add_json(sub)


def _fill(name: str, sub: argparse.ArgumentParser) -> None:
    importlib.import_module(module_of(name)).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    from labkit.bench.engine import render
    from labkit.core.stdout import last_line, say
    from labkit.core.turn import turn

    with turn(lambda text: print(text, file=sys.stderr)):
        doc = importlib.import_module(module_of(args.bench)).run(args)
    if not args.json:
        say(render(doc))
    last_line(doc)
    return outcome(doc)


def outcome(doc: JsonObject) -> int:
    """The exit code: 3 where no arm can run here, 1 where a trial failed or none succeeded. What
    is left out is said on stderr."""
    left_out = [r for r in doc["results"] if "missing" in r]
    for row in left_out:
        print(f"not measured: {row['arm']}: {row['missing']}", file=sys.stderr)
    if any(r.get("failed") for r in doc["results"]):
        return 1
    if len(left_out) < len(doc["results"]):
        return 0
    print(
        "labkit bench: no arm can run here, so nothing was measured\n  why: a bench without a"
        " number shows nothing\n  fix: see above; labkit doctor",
        file=sys.stderr,
    )
    return 3

"""`labkit bench NAME`: interleaved measurement; a table for people, one JSON line for machines."""

from __future__ import annotations

import argparse
import importlib
import sys

from labkit.bench import BENCHES, module_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    names = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for name, help_text in BENCHES.items():
        sub = names.add_parser(name, help=help_text, description=help_text)
        sub.add_argument("--blocks", type=int, default=5, help="each arm once per block (default 5)")
        sub.add_argument("--seed", type=int, default=0, help="order of arms within the blocks")
        sub.add_argument("--json", action="store_true", help="only the JSON line")
        if name in sys.argv:
            importlib.import_module(module_of(name)).add_arguments(sub)


def run(args: argparse.Namespace) -> int:
    from labkit.bench.engine import render
    from labkit.cli.output import last_line

    doc = importlib.import_module(module_of(args.bench)).run(args)
    if not args.json:
        print(render(doc))
    last_line(doc)
    return 1 if any(r.get("failed") for r in doc["results"]) else 0

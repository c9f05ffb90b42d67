"""`labkit show RUN`: a recorded run – the waterfall of each arm in words, its cache proof, evidence, failures.

    labkit show run.json
    labkit show run.json --figure waterfall.png --theme dark
    labkit show run.json --trials            every trial, one line each
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the JSON file that labkit run wrote")
    parser.add_argument("--arm", default="", help="only this arm")
    parser.add_argument("--trials", action="store_true", help="every trial, one line each")
    parser.add_argument("--figure", default="", metavar="FILE", help="also draw the waterfall of the arm (.png, .svg)")
    parser.add_argument("--theme", default="light", choices=["light", "dark"], help="of the figure")
    parser.add_argument("--json", action="store_true", help="the record's summary as one JSON line")


def run(args: argparse.Namespace) -> int:
    from labkit.cli.output import last_line, say
    from labkit.core import printable, records

    made = records.read(args.run)
    if args.figure:
        from labkit.face.waterfall import waterfall

        waterfall(made, args.arm).save(Path(args.figure), theme=args.theme)
    if args.json:
        from labkit.cli.run import summary

        last_line(summary(made))
        return 0
    from labkit.face.account import text

    say(text(printable.every(made), arm=printable.line(args.arm), trials=args.trials))
    return 0

"""`labkit report`: the whole lab, headless, as one HTML page.

labkit report --out report
labkit report --preset tiny --blocks 2 --notebook 01_anatomy        a quick one
labkit report --record ablate.json                                  with a further record's figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli import ci
from labkit.cli.experiments import add_device, sound_records
from labkit.core.arguments import count, output_directory, seconds
from labkit.net.arguments import link
from labkit.subject.arguments import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="report", metavar="DIR", help="where the page goes (default: report)"
    )
    parser.add_argument(
        "--preset",
        type=preset,
        default="small",
        help="checkpoint of the naive run: tiny, small (default), 1b",
    )
    parser.add_argument(
        "--blocks",
        type=count("--blocks"),
        default=5,
        help="cold starts of the naive stack (default 5)",
    )
    parser.add_argument(
        "--link", type=link, default="loopback", help="emulated link of the naive run"
    )
    add_device(parser, "the servers, the notebooks' too")
    parser.add_argument(
        "--notebook",
        action="append",
        default=[],
        metavar="NAME",
        help="only these notebooks (default: all)",
    )
    parser.add_argument(
        "--notebook-preset",
        default="ci",
        help='parameters of the notebooks: ci (default, short) or "" for their own defaults',
    )
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="FILE",
        help="a run record or one of GPU trials to show as well; may be given several times",
    )
    parser.add_argument(
        "--timeout",
        type=seconds("--timeout"),
        default=900.0,
        help="seconds for one notebook (default 900)",
    )
    ci.add_options(parser)
    parser.add_argument("--json", action="store_true", help="only the JSON line on stdout")


def run(args: argparse.Namespace) -> int:
    from labkit.cli.notebooks import find
    from labkit.core.stdout import last_line, say
    from labkit.lessons.report import Options, report

    records = sound_records(args.record)
    output_directory(args.out, "--out")
    ci.refuse_strangers(args)
    notebooks = find(args.notebook)
    result = report(
        Path(args.out),
        notebooks,
        Options(
            preset=args.preset,
            blocks=args.blocks,
            link=args.link,
            device=args.device,
            notebook_preset=args.notebook_preset,
            timeout_s=args.timeout,
            records=records,
        ),
        say=(lambda _: None) if args.json else say,
    )
    ci.deliver(args, ci.of_report(result, notebooks))
    if not args.json:
        for line in result.failed:
            say(f"FAILED {line}")
        print(f"report: {result.page.resolve()}")
    last_line(result.as_json())
    return 1 if result.failed else 0

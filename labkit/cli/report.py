"""`labkit report`: what the article's advice is worth on this host, as one HTML page: the study,
then the notebooks over its record.

labkit report --out report                 about a quarter of an hour
labkit report --study DIR                  the page of a study that is there; no study is measured
labkit report --minutes 60 --open          more of everything, and the page in your browser
labkit report --record ablate.json         with a further record's figures
"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli import ci
from labkit.cli.experiments import add_device, sound_records
from labkit.cli.study import add_conditions
from labkit.core.arguments import number, output_directory, seconds
from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="report", metavar="DIR", help="where the page goes (default: report)"
    )
    parser.add_argument(
        "--minutes",
        type=number("--minutes", most=10_000, example="12.6"),
        default=12.6,
        help="for study and notebooks together (default 12.6: 15 with make setup)",
    )
    parser.add_argument(
        "--study",
        default="",
        metavar="DIR",
        help="what labkit study left there, in place of a new study",
    )
    add_conditions(parser)
    add_device(parser, "the servers, the notebooks' too")
    parser.add_argument(
        "--notebook",
        action="append",
        default=[],
        metavar="NAME",
        help="only these notebooks (default: all)",
    )
    parser.add_argument("--no-notebooks", action="store_true", help="the study's page alone")
    parser.add_argument(
        "--notebook-preset",
        default="report",
        help='parameters of the notebooks: report (default: they read the study), ci, or "" for'
        " their own defaults",
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
    parser.add_argument(
        "--open",
        action="store_true",
        help="show the page in your browser, where there is a desktop",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.cli.notebooks import find
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput
    from labkit.lessons.report import Options, report

    records = sound_records(args.record)
    output_directory(args.out, "--out")
    ci.refuse_strangers(args)
    if args.no_notebooks and args.notebook:
        raise BadInput(
            "--no-notebooks and --notebook",
            why="one leaves out what the other names",
            fix="give one of them",
        )
    notebooks = None if args.no_notebooks else find(args.notebook)
    result = report(
        Path(args.out),
        notebooks,
        Options(
            minutes=args.minutes,
            preset=args.preset or "",
            link=args.link or "",
            store=(args.store or "").rstrip("/"),
            device=args.device,
            study=Path(args.study) if args.study else None,
            notebook_preset=args.notebook_preset,
            timeout_s=args.timeout,
            records=records,
        ),
        say=(lambda _: None) if args.json else say,
    )
    ci.deliver(args, ci.of_report(result, notebooks or ()))
    if not args.json:
        for line in result.failed:
            say(f"FAILED {line}")
        say(f"report: {result.page.resolve()}")
    if args.open:
        from labkit.core import desktop

        unseen = desktop.show(result.page)
        if unseen and not args.json:
            say(unseen)
    last_line(result.as_json())
    return 1 if result.failed else 0

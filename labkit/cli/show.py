"""`labkit show RUN`: a recorded run – the waterfall of each arm in words, its cache proof,
evidence, failures.

    labkit show run.json
    labkit show run.json --figure waterfall.png --theme dark
    labkit show run.json --trials            every trial, numbered, one line each
    labkit show gpu-trials-first.json        a record of GPU trials: outcomes, reasons, every table
        (--figure FILE --arm rates)

What lies below a trial's phases – spans of every process, transfers, counters – is what `labkit
trace run.json --trial N` writes for Perfetto; N as --trials numbers them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.stdout import add_json

if TYPE_CHECKING:
    from labkit.core.records import Run
    from labkit.viz.theme import Picture


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the JSON file that labkit run wrote")
    parser.add_argument(
        "--arm",
        default="",
        help="only this arm; of GPU trials the figure: context, rates, loads, decode, restore",
    )
    parser.add_argument(
        "--trials", action="store_true", help="every trial, numbered, one line each"
    )
    parser.add_argument(
        "--figure",
        default="",
        metavar="FILE",
        help="also draw the waterfall of the arm, or a study's ladder (.png, .svg)",
    )
    parser.add_argument("--theme", default="light", choices=["light", "dark"], help="of the figure")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core import printable, records
    from labkit.core.stdout import last_line, say
    from labkit.stack.replay import of_gpu_trials

    if of_gpu_trials(Path(args.run)):
        return _trials(args)
    record = records.read(args.run)
    ladder = None if args.arm else _ladder(record)
    if args.figure:
        from labkit.viz.waterfall import waterfall

        drawn = ladder or waterfall(record, args.arm)
        drawn.save(Path(args.figure), theme=args.theme)
    if args.json:
        from labkit.cli.experiments import summary

        last_line(summary(record))
        return 0
    from labkit.viz.text_summary import text

    if ladder:
        say(ladder.text + "\n")
    say(text(printable.every(record), arm=printable.line(args.arm), trials=args.trials))
    return 0


def _ladder(record: Run) -> Picture | None:
    """The article's ladder, where the record is a study's."""
    from labkit.errors import BadInput
    from labkit.study.answers import answered
    from labkit.study.record import of_run
    from labkit.viz.ladder import ladder

    try:
        return ladder(answered(of_run(record)))
    except BadInput:  # no study's, or one without a naive start
        return None


def _trials(args: argparse.Namespace) -> int:
    """A record of GPU trials."""
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput
    from labkit.lessons import gpu_figures, gpu_record, gpu_summary

    records = (gpu_record.read(Path(args.run)),)
    if args.arm and args.arm not in gpu_figures.FIGURES:
        raise BadInput(
            f"no figure {args.arm!r} of GPU trials", fix="one of: " + ", ".join(gpu_figures.FIGURES)
        )
    if args.figure:
        gpu_figures.FIGURES[args.arm or "rates"](records).save(Path(args.figure), theme=args.theme)
    if not args.json:
        say(gpu_summary.text(records))
        return 0
    trials = [
        {k: t[k] for k in ("name", "outcome", "seconds", "error") if k in t}
        for t in records[0].trials
    ]
    last_line(
        {
            "command": "show",
            "kind": gpu_record.KIND,
            "plan": records[0].plan,
            "preset": records[0].preset,
            "created": records[0].created,
            "host": dict(records[0].host),
            "trials": trials,
        }
    )
    return 0

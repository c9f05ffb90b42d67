"""`labkit trace RUN`: one trial as a Chrome trace – phases, spans of every process, single
transfers, the machine's counters – for ui.perfetto.dev and chrome://tracing.

    labkit trace run.json                       the median trial of the first arm
    labkit trace run.json --trial 7             the trial that labkit show run.json --trials calls 7
    labkit trace run.json --arm naive --out naive.trace.json.gz

Perfetto works in the browser and uploads nothing. A Chromium that calls chrome://tracing a disabled
debugging page opens it after chrome://chrome-urls has enabled those."""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from labkit.core.arguments import count

    parser.add_argument("run", metavar="RUN", help="the JSON file that labkit run wrote")
    parser.add_argument(
        "--arm", default="", help="the median trial of this arm (default: of the first)"
    )
    parser.add_argument(
        "--trial",
        type=count("--trial"),
        default=0,
        metavar="N",
        help="the trial of this number, as labkit show RUN --trials prints it",
    )
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="the trace, compressed if it ends in .gz (default: RUN-trial-N.trace.json, here)",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core import records
    from labkit.core.arguments import new_file
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput
    from labkit.stack.replay import of_gpu_trials
    from labkit.viz import chrome_trace

    source = Path(args.run)
    if of_gpu_trials(source):
        raise BadInput(
            f"{source.name} is a record of GPU trials",
            why="they keep results, not spans",
            fix="give one of the runs beside it; labkit show RUN prints the results",
        )
    record = records.read(source)
    chosen = chrome_trace.choose(record, args.trial, args.arm)
    name = args.out or f"{source.stem}-trial-{chosen.number}.trace.json"
    out = new_file(name, "--out")
    private = not source.stat().st_mode & 0o077  # as the record is
    doc = chrome_trace.save(record, chosen, out, private)
    if args.json:
        last_line(
            {
                "command": "trace",
                "out": str(out),
                "run": record.id,
                "arm": chosen.trial.arm,
                "trial": chosen.number,
                "outcome": chosen.trial.outcome,
                "events": len(doc["traceEvents"]),
            }
        )
        return 0
    say(chrome_trace.written(chosen, out))
    return 0

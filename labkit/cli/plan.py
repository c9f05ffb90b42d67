"""`labkit plan`: your model, your image, your budget – predicted cold start by phase, break-evens,
waiting and cost, what to do first.

    labkit study; labkit plan                  # fitted from this host's study; asks for your values
    labkit plan --image-size 5GB --model-size 16GB --link 10gbit --rate 120/h --gpu-hour 2.5
    labkit plan --study DIR --hold-out         # each size left out, predicted and measured
    labkit plan --study DIR --hold-out RUN     # the same of a size that was measured apart
    labkit plan --host epyc-2                  # from starts recorded on another host, stamped so
    labkit plan --records a.json b.json --trace arrivals.csv --json

Inputs that you do not give are taken from the records (`measured`) or marked `assumed`; traffic and
prices are never assumed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.core.arguments import number, readable_file
from labkit.core.stdout import add_json

if TYPE_CHECKING:
    from labkit.core.json_types import JsonObject
    from labkit.decide.sources import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sizes = parser.add_argument_group("sizes (not given: as in the largest record)")
    for flag, meaning in (
        ("--image-size", "compressed image, as pulled"),
        ("--unpacked-size", "image on disk"),
        ("--model-size", "weights"),
        ("--snapshot-size", "checkpoint images"),
    ):
        sizes.add_argument(flag, metavar="SIZE", help=meaning + ", like 5GB")
    rates = parser.add_argument_group("resources (not given: as in the records)")
    rates.add_argument(
        "--link", metavar="RATE", help="from registry and bucket to a node, like 10gbit or 500MB/s"
    )
    rates.add_argument(
        "--disk", metavar="RATE", help="sequential read of a node's disk, like 2GB/s"
    )
    load = parser.add_argument_group("traffic and cost (not given: left out)")
    load.add_argument(
        "--rate", metavar="N/UNIT", help="mean requests, like 120/h, 0.5/s or 2000/day"
    )
    load.add_argument(
        "--trace",
        metavar="FILE",
        help="a CSV of arrivals (seconds or ISO 8601) in place of a generated trace",
    )
    load.add_argument(
        "--shape",
        default="poisson",
        choices=["poisson", "bursty", "diurnal"],
        help="of the generated trace",
    )
    load.add_argument(
        "--gpu-hour",
        type=number("--gpu-hour", zero=True, most=1e9, example="2.5"),
        metavar="PRICE",
        help="price of one GPU-hour, in your currency",
    )
    for flag, meaning in (
        ("--service-s", "seconds a request keeps its slot"),
        ("--concurrency", "requests one replica serves at once"),
        ("--keep-alive-s", "idle seconds before scale to zero"),
        ("--max-replicas", "the most replicas"),
        ("--duration-s", "length of the generated trace"),
    ):
        load.add_argument(
            flag,
            type=number(flag, zero=flag == "--keep-alive-s", most=1e9, example="60"),
            metavar="N",
            help=meaning,
        )
    source = parser.add_argument_group(
        "what to fit (not given: this host's newest study, else its records)"
    )
    source.add_argument("--records", nargs="+", default=[], metavar="RUN", help="records of runs")
    source.add_argument(
        "--study", default="", metavar="DIR", help="a study's directory (labkit study --out DIR)"
    )
    source.add_argument(
        "--host",
        default="",
        metavar="NAME",
        help="a recorded host, by name; every output says that it was recorded there",
    )
    source.add_argument("--arm", default="", help="the stack to forecast (default: naive)")
    source.add_argument(
        "--scenario",
        default="",
        help="use only records of this scenario (default: the one with most sizes)",
    )
    parser.add_argument(
        "--hold-out",
        nargs="*",
        default=None,
        metavar="RUN",
        help="in place of a plan: predicted against measured, for each size left out of the fit in"
        " turn, or for records of sizes that were measured apart",
    )
    parser.add_argument("--seed", type=int, default=0, help="of traces and draws")
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    import sys

    from labkit.core import question
    from labkit.core.arguments import directory
    from labkit.core.stdout import last_line, say
    from labkit.decide import plan as decide
    from labkit.decide.form import ask, not_given
    from labkit.decide.plan_text import show, show_hold_out
    from labkit.decide.sources import Wanted, choose
    from labkit.decide.traces import read_trace

    for path in args.records:
        readable_file(path, "--records", "labkit run naive --out FILE makes one")
    if args.study:
        directory(args.study, "--study", "labkit study --out DIR makes one")
    trace = read_trace(args.trace) if args.trace else None
    given = _given(args)
    source = choose(Wanted(tuple(args.records), args.study, args.host, args.arm, args.scenario))
    if unknown := decide.unreported(source.runs, source.arm):
        print(f"note: {question.said_unknown(unknown)}", file=sys.stderr)
    if args.hold_out is not None:
        rows = _hold_out(args, source)
        if not args.json:
            say(show_hold_out(rows, source.words) + "\n")
        last_line({"command": "plan", "from": source.words, "arm": source.arm, "hold_out": rows})
        return 0
    if _a_person_reads(args) and given["image_bytes"] is None and given["model_bytes"] is None:
        given = ask(given, input)
    plan = decide.make(
        source.runs, given, arm=source.arm, trace=trace, traffic=args.shape, seed=args.seed
    )
    missing = not_given(given if trace is None else {**given, "rate_per_s": 0.0})
    if not args.json:
        say(show(plan, source.words, missing) + "\n")
    last_line({"command": "plan", "from": source.words, "not_given": missing, **plan.as_json()})
    return 0


def _given(args: argparse.Namespace) -> dict[str, float | None]:
    """The reader's values by their names in a plan. Raises BadInput."""
    from labkit.core.units import parse_bytes, parse_rate
    from labkit.decide.form import requests_per_s

    return {
        "image_bytes": parse_bytes(args.image_size) if args.image_size else None,
        "unpacked_bytes": parse_bytes(args.unpacked_size) if args.unpacked_size else None,
        "model_bytes": parse_bytes(args.model_size) if args.model_size else None,
        "snapshot_bytes": parse_bytes(args.snapshot_size) if args.snapshot_size else None,
        "link_bytes_per_s": parse_rate(args.link) if args.link else None,
        "disk_bytes_per_s": parse_rate(args.disk) if args.disk else None,
        "rate_per_s": requests_per_s(args.rate) if args.rate else None,
        "price_per_gpu_hour": args.gpu_hour,
        "service_s": args.service_s,
        "concurrency": args.concurrency,
        "keep_alive_s": args.keep_alive_s,
        "max_replicas": args.max_replicas,
        "duration_s": args.duration_s,
    }


def _a_person_reads(args: argparse.Namespace) -> bool:
    """Somebody who can answer: never in a pipe, never with --json."""
    import sys

    return not args.json and sys.stdin.isatty() and sys.stdout.isatty()


def _hold_out(args: argparse.Namespace, source: Source) -> list[JsonObject]:
    from labkit.core import records
    from labkit.decide.holdout import against, hold_out

    for path in args.hold_out:
        readable_file(path, "--hold-out", "labkit run naive --preset small --out FILE makes one")
    if not args.hold_out:
        return hold_out(source.runs, source.arm)
    return against(source.runs, [records.read(path) for path in args.hold_out], source.arm)

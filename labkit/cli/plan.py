"""`labkit plan`: your model, your image, your budget – predicted cold start by phase, break-evens,
waiting and cost, what to do first.

    labkit run naive --preset tiny --blocks 3; labkit run naive --preset small --blocks 3
    labkit plan --image-size 5GB --model-size 16GB --link 10gbit --rate 120/h --gpu-hour 2.5
    labkit plan --records a.json b.json --trace arrivals.csv --json
    labkit plan --measure                      # measures five sizes of model and image first
        (minutes)

Inputs that you do not give are taken from the records (`measured`) or marked `assumed`; traffic and
prices are never assumed."""

from __future__ import annotations

import argparse

from labkit.core.arguments import count, number, readable_file

_PER = {"s": 1.0, "min": 60.0, "h": 3600.0, "day": 86_400.0, "d": 86_400.0}


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
    parser.add_argument(
        "--records",
        nargs="+",
        default=[],
        metavar="RUN",
        help="records to fit (default: this host's, in the workspace's runs/)",
    )
    parser.add_argument("--arm", default="", help="the stack to forecast (default: naive)")
    parser.add_argument(
        "--scenario",
        default="",
        help="use only records of this scenario (default: the one with most sizes)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="first measure three sizes of the model and two of the image",
    )
    parser.add_argument(
        "--blocks", type=count("--blocks"), default=3, help="with --measure: repeats (default 3)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of traces and draws")
    parser.add_argument("--json", action="store_true", help="only the JSON line")


def run(args: argparse.Namespace) -> int:
    import sys

    from labkit.core import question, records
    from labkit.core.stdout import last_line, say
    from labkit.core.units import parse_bytes, parse_rate
    from labkit.decide import plan as decide
    from labkit.decide.measure import gather, measure, succeeded
    from labkit.decide.plan_text import show
    from labkit.decide.traces import read_trace

    for path in args.records:
        readable_file(path, "--records", "labkit run naive --out FILE makes one")
    trace = read_trace(args.trace) if args.trace else None
    given: dict[str, float | None] = {
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
    if args.records:
        runs = [records.read(path) for path in args.records]
    elif args.measure:
        from labkit.viz.live import progress

        arm = args.arm or "naive"
        runs = succeeded(
            measure(
                arm, blocks=args.blocks, scenario=args.scenario or "fresh-node", progress=progress()
            ),
            arm,
        )
    else:
        runs = gather(args.arm, args.scenario)
    if unknown := decide.unreported(runs, args.arm):
        print(f"note: {question.said_unknown(unknown)}", file=sys.stderr)
    plan = decide.make(runs, given, arm=args.arm, trace=trace, traffic=args.shape, seed=args.seed)
    if not args.json:
        say(show(plan) + "\n")
    last_line({"command": "plan", **plan.as_json()})
    return 0


def requests_per_s(text: str) -> float:
    """`"120/h"` → requests per second. Raises BadInput."""
    from labkit.errors import BadInput

    number, _, unit = text.partition("/")
    try:
        value = float(number) / _PER[unit.strip() or "s"]
    except (ValueError, KeyError):
        value = -1.0
    if not 0 < value < 1e6:
        raise BadInput(
            f"not a rate of requests: {text!r}", fix="write it like 120/h, 0.5/s or 2000/day"
        )
    return value

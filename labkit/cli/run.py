"""`labkit run STACK…`: cold starts of one or more stacks, in randomised blocks, recorded.

labkit run naive --blocks 5
labkit run naive image=estargz-lazy --link 1gbit --json
labkit run --command 'transformers serve …' --url http://127.0.0.1:8000 --weights DIR
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from labkit.cli import ci, experiments
from labkit.core.arguments import (
    bucket_url,
    count,
    directory,
    free_port,
    new_file,
    port,
    scenario,
    seconds,
)
from labkit.core.stdout import add_json
from labkit.net.arguments import link
from labkit.subject.arguments import preset

if TYPE_CHECKING:
    from labkit.core.records import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stacks",
        nargs="*",
        metavar="STACK",
        help="a named stack (naive, article, best-here, no-image) or LAYER=TECHNIQUE,…",
    )
    parser.add_argument(
        "--stack",
        action="append",
        default=[],
        metavar="STACK",
        help="the same as an option; may be given several times",
    )
    parser.add_argument(
        "--blocks",
        type=count("--blocks"),
        default=5,
        help="repeats: every arm once per block, in random order (default 5)",
    )
    parser.add_argument(
        "--scenario",
        type=scenario,
        default="fresh-node",
        help="fresh-node (default), warm-node or hot-node: what the host has at t0",
    )
    parser.add_argument(
        "--link",
        type=link,
        default="loopback",
        help=(
            "emulated link: loopback (default), 200mbit, 1gbit, 1gbit-bucket … (it can only slow"
            " things down)"
        ),
    )
    parser.add_argument(
        "--store",
        type=bucket_url,
        default="",
        metavar="URL",
        help=(
            "s3://BUCKET/PREFIX or gs://…: a fresh node's weights come from there, with this"
            " environment's credentials"
        ),
    )
    parser.add_argument(
        "--preset", type=preset, default="small", help="checkpoint: tiny, small (default), 1b, 8b"
    )
    parser.add_argument(
        "--model-dir",
        default="",
        help="a public model directory in place of the synthetic checkpoint",
    )
    parser.add_argument(
        "--timeout",
        type=seconds("--timeout"),
        default=300.0,
        help="seconds until a trial is a time-out (default 300)",
    )
    parser.add_argument("--seed", type=int, default=0, help="order of arms within blocks")
    experiments.add_record_options(parser)
    ci.add_options(parser)
    add_json(parser)
    parser.add_argument(
        "--port", type=port(), default=None, help="port of the server (default: a free one)"
    )
    parser.add_argument(
        "--at-t0",
        default="",
        metavar="CMD",
        help="a shell command started at t0 with LABKIT_URL set: a client outside the lab",
    )
    experiments.add_device(parser, "the server")
    byo = parser.add_argument_group(
        "bring your own server", "It is measured from outside; nothing in it is changed."
    )
    byo.add_argument(
        "--command",
        dest="own_command",
        default="",
        metavar="CMD",
        help="an OpenAI-compatible server's command line",
    )
    byo.add_argument("--url", default="", help="where it will answer")
    byo.add_argument(
        "--weights",
        default="",
        metavar="DIR",
        help="the files it will read: evicted and proven cold before each trial",
    )
    byo.add_argument(
        "--image", default="", metavar="REF", help="the image it runs in, for the record"
    )
    byo.add_argument(
        "--model-name",
        default="",
        help="the `model` field of its requests (default: what /v1/models lists)",
    )


def run(args: argparse.Namespace) -> int:
    from labkit.core import printable
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput

    if args.model_dir:
        directory(args.model_dir, "--model-dir", "labkit model make --preset small DIR makes one")
    if args.out:
        new_file(args.out, "--out")
    ci.refuse_strangers(args)
    free_port(args.port)
    if args.own_command and (args.stacks or args.stack):
        raise BadInput(
            "both stacks and --command",
            why="one of them would be left out",
            fix="two runs, then labkit compare",
        )
    if not args.own_command and (
        own := [
            f"--{n.replace('_', '-')}"
            for n in ("url", "weights", "image", "model_name")
            if getattr(args, n)
        ]
    ):
        raise BadInput(
            f"{own[0]} without --command",
            why="it is about a server of your own, and none was named",
            fix="labkit run --command CMD --url URL --weights DIR",
        )
    record = _own(args) if args.own_command else _stacks(args)
    ci.deliver(args, ci.of_run(record, "run"))
    if not args.json:
        from labkit.viz.text_summary import text

        say(text(printable.every(record)))
    last_line(experiments.summary(record))
    return 1 if record.failed or not record.trials else 0


def _own(args: argparse.Namespace) -> Run:
    from labkit.byo.trials import OwnOptions, run
    from labkit.viz.live import progress

    options = OwnOptions(
        command=args.own_command,
        url=args.url,
        weights=args.weights,
        image=args.image,
        model_name=args.model_name,
        blocks=args.blocks,
        scenario=args.scenario,
        timeout_s=args.timeout,
        out=args.out,
        resume=args.resume,
        overwrite=args.overwrite,
    )
    with progress() as watching:
        return run(options, progress=watching)


def _stacks(args: argparse.Namespace) -> Run:
    from labkit.errors import BadInput
    from labkit.viz.live import progress

    stacks = [*args.stacks, *args.stack]
    if not stacks:
        raise BadInput("no stack named", why="a run takes at least one", fix="labkit run naive")
    with progress() as watching:
        return experiments.run_experiment(
            args,
            stacks,
            watching,
            timeout_s=args.timeout,
            model_dir=args.model_dir,
            at_t0=args.at_t0,
            port=args.port,
            store=args.store.rstrip("/"),
        )

"""`labkit study`: the article's ladder on this host – naive, each technique of the article alone,
one more each rung, the best found – over a link that is named, in blocks that end in a verdict.

labkit study                                  about a quarter of an hour, over an emulated 1 Gbit/s
labkit study --minutes 60                     more techniques alone, more blocks, a larger model
labkit study --store s3://BUCKET/PREFIX       weights out of your own bucket, over its own link
labkit study --out DIR --resume               go on with one that was interrupted
"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli import ci
from labkit.cli.experiments import add_device
from labkit.core.arguments import bucket_url, number, output_directory
from labkit.core.stdout import add_json
from labkit.net.arguments import link
from labkit.subject.arguments import preset


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        default="",
        metavar="DIR",
        help="the study's directory (default: a new one in the workspace's runs/)",
    )
    parser.add_argument(
        "--minutes",
        type=number("--minutes", most=10_000, example="15"),
        default=15.0,
        help="how long all of it may take: the ladder first, then what else fits (default 15)",
    )
    add_conditions(parser)
    parser.add_argument(
        "--sizes",
        default=None,
        metavar="SIZE,…",
        help='naive at these sizes too, for plans, such as tiny+200MB,1GB+600MB ("" for none)',
    )
    parser.add_argument("--seed", type=int, default=0, help="order of arms within blocks")
    parser.add_argument("--resume", action="store_true", help="go on with the study in --out")
    parser.add_argument("--overwrite", action="store_true", help="begin the study in --out anew")
    add_device(parser, "the servers")
    ci.add_options(parser)
    add_json(parser)


def add_conditions(parser: argparse.ArgumentParser) -> None:
    """What of a study is chosen before its minutes: model, link, where the weights lie."""
    parser.add_argument(
        "--preset",
        type=preset,
        default=None,
        help="checkpoint: small, 1b, 8b (default: by minutes and memory)",
    )
    parser.add_argument(
        "--link", type=link, default=None, help="emulated link of the fresh node (default 1gbit)"
    )
    parser.add_argument(
        "--store",
        type=bucket_url,
        default=None,
        metavar="URL",
        help="s3://BUCKET/PREFIX or gs://…: weights from there, with your credentials",
    )


def run(args: argparse.Namespace) -> int:
    from labkit.cli import experiments
    from labkit.core import printable
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput
    from labkit.study.conduct import StudyOptions, conduct
    from labkit.viz.live import progress

    ci.refuse_strangers(args)
    if args.out:
        output_directory(args.out, "--out")
    elif args.resume or args.overwrite:
        raise BadInput(
            f"--{'resume' if args.resume else 'overwrite'} without --out",
            why="it names no study",
            fix="--out DIR",
        )
    sizes = None
    if args.sizes is not None:
        sizes = tuple(s.strip() for s in args.sizes.split(",") if s.strip())
    with progress() as watching:
        study = conduct(
            StudyOptions(
                out=Path(args.out) if args.out else None,
                minutes=args.minutes,
                preset=args.preset or "",
                link=args.link or "",
                store=(args.store or "").rstrip("/"),
                device=args.device,
                sizes=sizes,
                seed=args.seed,
                resume=args.resume,
                overwrite=args.overwrite,
            ),
            progress=watching,
        )
    ci.deliver(args, ci.of_run(study.run, "study"))
    started = bool(study.run.of_arm(study.naive))
    if not args.json:
        from labkit.study.answers import answered
        from labkit.viz.ladder import ladder

        if started:
            say(ladder(answered(study)).text)
        for trial in study.failed:
            say(f"FAILED {printable.line(trial.failure)}")
        for arm, why in study.left_out.items():
            say(f"left out: {printable.line(arm)}: {printable.line(why)}")
        say(f"study: {study.path}")
    last_line(
        {
            "command": "study",
            "study": str(study.path),
            **experiments.summary(study.run),
            "left_out": study.left_out,
            "sizes": [run.experiment["preset"] for run in study.sizes],
        }
    )
    return 1 if study.failed or not started else 0

"""`labkit model make|verify|convert|inspect`: checkpoints to start, and what is in them.

labkit model make --preset tiny DIR
labkit model make --bytes 500MB --format pickle --shards 4 DIR
labkit model verify DIR
"""

from __future__ import annotations

import argparse
import sys
import time
from functools import partial
from pathlib import Path

from labkit.core.arguments import count
from labkit.core.stdout import add_json
from labkit.core.units import parse_bytes, show_bytes, show_rate, show_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    subs = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = subs.add_parser("make", help="make a checkpoint, deterministic, of any size")
    make.add_argument("directory", metavar="DIR", help="made whole under this name, or not at all")
    size = make.add_mutually_exclusive_group(required=True)
    size.add_argument(
        "--preset", choices=["tiny", "small", "1b", "8b"], help="5 MB, 250 MB, 2.2 GB, 16 GB"
    )
    size.add_argument("--bytes", metavar="N", help="any size of tensors: 500MB, 3GiB")
    make.add_argument("--family", choices=["llama", "qwen2"], default="llama")
    make.add_argument("--format", choices=["safetensors", "pickle"], default="safetensors")
    make.add_argument(
        "--shards",
        type=count("--shards", 0, 10_000),
        default=0,
        help="number of files (default: as few as 1.1 GB each allow)",
    )
    make.add_argument("--seed", type=int, default=None, help="other values, same shape")
    add_json(make)
    verify = subs.add_parser("verify", help="check every tensor's digest")
    verify.add_argument("directory", metavar="DIR")
    add_json(verify)
    for name, text in (
        ("convert", "the same tensors in another format"),
        ("inspect", "what is in a file, from its header alone"),
    ):
        subs.add_parser(
            name, help=text, description=text.capitalize() + ".", fill=partial(_fill, name)
        )


def _fill(name: str, sub: argparse.ArgumentParser) -> None:
    from labkit.weights import commands

    getattr(commands, f"add_{name}")(sub)


def run(args: argparse.Namespace) -> int:
    from labkit.weights import commands

    actions = {
        "make": _make,
        "verify": _verify,
        "convert": commands.convert,
        "inspect": commands.inspect,
    }
    return actions[args.action](args)


def _make(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.subject.checkpoint import make_checkpoint
    from labkit.viz.live import where

    live = where(sys.stderr) == "terminal" and not args.json
    last_s = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last_s
        if live and (time.monotonic() - last_s > 0.1 or done == total):
            last_s = time.monotonic()
            print(
                f"\r{show_bytes(done)} of {show_bytes(total)}",
                end="\n" if done == total else "",
                file=sys.stderr,
                flush=True,
            )

    facts = make_checkpoint(
        args.directory,
        args.preset or "",
        size_bytes=parse_bytes(args.bytes) if args.bytes else 0,
        family=args.family,
        fmt=args.format,
        shards=args.shards,
        seed=args.seed,
        progress=progress,
    )
    if not args.json:
        say(
            f"{facts['path']}: {facts['parameters'] / 1e6:.1f} M parameters,"
            f" {show_bytes(facts['size_bytes'])} in {len(facts['files'])} {facts['format']}"
            f" file(s), {show_s(facts['seconds'])}"
            f" ({show_rate(facts['size_bytes'] / max(facts['seconds'], 1e-3))})"
        )
    last_line(facts)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say, table
    from labkit.subject.verify import verify

    report = verify(Path(args.directory).expanduser())
    if not args.json:
        if report["wrong"]:
            say(
                table(
                    [[w["tensor"], w["file"], w["what"]] for w in report["wrong"]],
                    ["tensor", "file", "what"],
                )
            )
            say("fix: fetch or make these files again; the others are in order")
        else:
            say(
                f"{report['path']}: {report['tensors']} tensors, {show_bytes(report['bytes'])},"
                " every digest as it was made"
            )
    last_line(report)
    return 1 if report["wrong"] else 0

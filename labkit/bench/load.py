"""`labkit bench load`: every loader installed here, from disk in each cache state or from a bucket,
against the floor.

    labkit bench load --preset 1b --cache cold,warm,tmpfs --blocks 5
    labkit bench load --preset 1b --from s3 --link 4gbit-bucket
    labkit bench load --preset 1b --store s3://my-bucket/lab         # a real bucket: no link is
        emulated, no floor is known

One fresh process a measurement. Its clock starts when torch is imported, the model stands on the
meta device (or initialised, where that is the loader's way) and the bench has prefaulted free
memory (`labkit.core.free_memory`: else a trial is as fast as what happened to run before it),
before the loader's own library is imported, and stops when **all bytes are in place**: load() has
returned and one byte of every page of every parameter has been read, for views of a mapping as for
everything else. Then one token. Interpreter exit is not in it. Afterwards every parameter is
summed: loaders of one format must agree to the bit, and one that does not has failed. On a GPU
(`--device cuda`) the context is there before the clock starts, the parameters are on the device
when it stops, and only the files' pages are cold, not the host's other caches.

Floors: cold, the fastest plain read of the same files (`labkit.bench.read_paths`), just before and
after · warm and tmpfs, one copy of the bytes in memory (a loader that maps pages instead of copying
comes below it) · on a GPU the slower of disk and bus (cold), the bus from pinned memory (warm) ·
s3, the emulated link's own.

Goals: labkit-streamer_vs_floor.cold ≤ 1.05, labkit-streamer_vs_best_other.{cold,warm,tmpfs} ≤ 1.0
within noise, labkit-streamer_vs_floor.s3 ≤ 1.05, …_faulty_vs_clean.s3 ≤ 1.2. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import argparse
import compileall
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.bench.engine import Results, document
from labkit.bench.load_disk import Facts, from_disk
from labkit.bench.load_results import OURS
from labkit.core import shipped
from labkit.core.arguments import bucket_url, directory, names
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.net.arguments import link
from labkit.subject.arguments import preset
from labkit.technique import Subject
from labkit.weights.catalog import LOADERS
from labkit.weights.techniques import WeightsTechnique  # noqa: F401 - other packages' loaders join

STATES = ("cold", "warm", "tmpfs")
FROM_S3 = ("safetensors", "sdk-download", "runai-streamer", OURS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--preset", type=preset, default="1b", help="checkpoint: tiny, small, 1b (default), 8b"
    )
    parser.add_argument(
        "--model-dir", default="", help="a public model directory in place of the preset"
    )
    parser.add_argument(
        "--cache",
        type=names("--cache", STATES),
        default="cold,warm,tmpfs",
        help="cache states, comma-separated (default: all three)",
    )
    parser.add_argument("--from", dest="origin", choices=("disk", "s3"), default="disk")
    parser.add_argument(
        "--link",
        type=link,
        default="4gbit-bucket",
        help="emulated link of the bucket (with --from s3)",
    )
    parser.add_argument(
        "--store",
        type=bucket_url,
        default="",
        metavar="URL",
        help=(
            "s3://BUCKET/PREFIX or gs://…, with this environment's credentials, in place of the"
            " embedded store"
        ),
    )
    parser.add_argument(
        "--loaders",
        type=names("--loaders", LOADERS),
        default=None,
        help="only these, comma-separated",
    )
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="cpu or cuda")


def compare_loaders(
    *names: str,
    preset: str = "small",
    states: tuple[str, ...] = ("cold",),
    blocks: int = 3,
    origin: str = "disk",
    link: str = "4gbit-bucket",
    device: str = "cpu",
    progress: Callable[[str], object] | None = None,
) -> JsonObject:
    """The same from Python, for the notebooks: the document of the last line. `progress(line)` is
    called a measurement."""
    return run(
        argparse.Namespace(
            preset=preset,
            model_dir="",
            cache=",".join(states),
            origin=origin,
            link=link,
            loaders=",".join(names),
            device=device,
            store="",
            blocks=blocks,
            seed=0,
            progress=progress or (lambda line: None),
        )
    )


def run(args: argparse.Namespace) -> JsonObject:
    """The document. LABKIT_CUMULATIVE=1, or --json on a GPU, prints a line with all that was
    measured so far after each measurement: a bench that is ended keeps it."""
    if args.store:
        args.origin = "s3"
    states = [s.strip() for s in args.cache.split(",") if s.strip()]
    unknown = [s for s in states if s not in STATES]
    names = [n.strip() for n in (args.loaders or "").split(",") if n.strip()] or (
        list(FROM_S3) if args.origin == "s3" else [n for n in LOADERS if n != "sdk-download"]
    )
    unknown += [n for n in names if n not in LOADERS]
    if unknown:
        raise BadInput(
            f"neither a cache state nor a loader: {', '.join(unknown)}",
            fix=f"states {', '.join(STATES)}; loaders {', '.join(LOADERS)}",
        )
    if args.model_dir:
        directory(args.model_dir, "--model-dir", "labkit model make --preset small DIR makes one")
    workspace = Workspace.default()
    from labkit.subject.checkpoint import ensure

    # As pip did for every rival: from a checkout, under PYTHONDONTWRITEBYTECODE, each of our
    # children would compile the lab's own modules anew.
    compileall.compile_dir(shipped.PACKAGE, quiet=2)
    subject = Subject(
        model_dir=Path(args.model_dir).expanduser().resolve()
        if args.model_dir
        else ensure(workspace, args.preset),
        preset=args.preset,
    )
    with Ledger.open(workspace) as ledger:
        if args.origin == "s3":
            from labkit.bench import load_remote

            facts = (load_remote.from_store if args.store else load_remote.from_bucket)(
                args, names, subject, workspace, ledger
            )
        else:
            facts = from_disk(args, names, states, subject, workspace, ledger, keeping)
    return _document(args, **facts)


def _document(
    args: argparse.Namespace,
    *,
    results_raw: Results,
    ratios: dict[str, tuple[str, str]],
    **more: Any,
) -> JsonObject:
    return document(
        "load",
        results_raw,
        ratios,
        preset=args.preset,
        origin=args.origin,
        device=args.device,
        **more,
    )


def keeping(args: argparse.Namespace, facts_of: Facts) -> Callable[[Results], None] | None:
    """For `interleave`: `facts_of(results)` as a document on a line of its own, where somebody
    asked for that. None: nobody did."""
    if not (
        os.environ.get("LABKIT_CUMULATIVE")
        or (getattr(args, "json", False) and args.device != "cpu")
    ):
        return None
    from labkit.core.host import card
    from labkit.core.stdout import last_line

    here = card()
    return lambda results: last_line(_document(args, **facts_of(results), host=here, partial=True))

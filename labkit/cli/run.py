"""`labkit run STACK…`: cold starts of one or more stacks, in randomised blocks, recorded.

labkit run naive --blocks 5
labkit run naive image=estargz-lazy --link 1gbit --json
labkit run --command 'transformers serve …' --url http://127.0.0.1:8000 --weights DIR
"""

from __future__ import annotations

import argparse
from typing import Any

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
from labkit.net.arguments import link
from labkit.subject.arguments import preset


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
    parser.add_argument(
        "--out",
        default="",
        metavar="FILE",
        help="the record (default: a new file in the workspace's runs/)",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the record in --out")
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="begin the record in --out anew, where there is one",
    )
    parser.add_argument("--json", action="store_true", help="only the JSON line on stdout")
    parser.add_argument(
        "--port", type=port(), default=None, help="port of the server (default: a free one)"
    )
    parser.add_argument(
        "--at-t0",
        default="",
        metavar="CMD",
        help="a shell command started at t0 with LABKIT_URL set: a client outside the lab",
    )
    parser.add_argument(
        "--device",
        default="",
        choices=["", "cpu", "cuda"],
        help=(
            "device of the server (default: cuda where a GPU is here and torch is built for it,"
            " else cpu)"
        ),
    )
    byo = parser.add_argument_group(
        "bring your own server (measured from outside, nothing in it is changed)"
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
    from labkit.core.records import Run
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput

    if args.model_dir:
        directory(args.model_dir, "--model-dir", "labkit model make --preset small DIR makes one")
    if args.out:
        new_file(args.out, "--out")
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
    record: Run = _own(args) if args.own_command else _stacks(args)
    if not args.json:
        from labkit.viz.text_summary import text

        say(text(printable.every(record)))
    last_line(summary(record))
    return 1 if record.failed or not record.trials else 0


def _own(args: argparse.Namespace) -> Any:
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
    return run(options, progress=progress())


def _stacks(args: argparse.Namespace) -> Any:
    from labkit.errors import BadInput
    from labkit.stack import experiment
    from labkit.viz.live import progress

    stacks = [*args.stacks, *args.stack]
    if not stacks:
        raise BadInput("no stack named", why="a run takes at least one", fix="labkit run naive")
    return experiment(
        stacks,
        preset=args.preset,
        blocks=args.blocks,
        scenario=args.scenario,
        link=args.link,
        seed=args.seed,
        out=args.out or None,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=progress(),
        timeout_s=args.timeout,
        model_dir=args.model_dir,
        at_t0=args.at_t0,
        port=args.port,
        device=args.device,
        store=args.store.rstrip("/"),
    )


def summary(run: Any) -> dict[str, Any]:
    """The last line of `labkit run`: the bench language, with failed, trials, first_token_s,
    phases, unaccounted_share."""
    from labkit.core import printable, question, stats
    from labkit.errors import BadInput

    results, ratios = [], {}
    for arm in run.arms:
        good, every = run.of_arm(arm["name"]), run.of_arm(arm["name"], only_ok=False)
        row: dict[str, Any] = {
            "arm": arm["name"],
            "stack": arm["stack"],
            "link": arm["link"],
            "scenario": arm["scenario"],
            "n": len(good),
            "failed": len(every) - len(good),
        }
        if good:
            totals = [t.total_s for t in good]
            low, high = stats.interval(totals)
            states = sorted({t.cache.get("state", "unverified") for t in good})
            row |= {
                "cache": states[0] if len(states) == 1 else "mixed: " + ", ".join(states),
                "median_s": stats.median(totals),
                "low_s": low,
                "high_s": high,
                "floor_s": sum(good[-1].floors.values()) or None,
                "evidence": "; ".join(e["how"] for e in good[-1].evidence),
                "phases": {
                    p: stats.median([t.phases[p] for t in good if p in t.phases])
                    for p in good[-1].phases
                },
                "unaccounted_share": max(
                    (t.unaccounted_s / t.total_s for t in good if t.unaccounted_s is not None),
                    default=None,
                ),
            }
        else:
            row["missing"] = (
                "no trial came through: "
                + "; ".join(sorted({t.error.get("what", t.outcome) for t in every}))[:500]
            )
        results.append(row)
    if not results:
        raise BadInput(
            f"run {printable.line(run.id)} has no arms", fix="labkit run naive --out FILE"
        )
    first = results[0]["arm"]
    for other in results[1:]:
        in_block = {t.block: t.total_s for t in run.of_arm(first)}
        pairs = [
            (t.total_s, in_block[t.block]) for t in run.of_arm(other["arm"]) if t.block in in_block
        ]
        if pairs and not question.not_from_one_start(run, other["arm"], first):
            ratios[f"{other['arm']}_vs_{first}"] = stats.paired_ratio(pairs)
    placement = run.experiment.get("placement") or {}
    return {
        "bench": "run",
        "host": run.host,
        "device": question.asked(run).get("device"),
        "device_why": placement.get("why"),
        "blocks": run.experiment.get("blocks", max((t.block + 1 for t in run.trials), default=0)),
        "failed": len(run.failed),
        "trials": len(run.trials),
        "first_token_s": results[0].get("median_s"),
        "phases": results[0].get("phases", {}),
        "unaccounted_share": results[0].get("unaccounted_share"),
        "floors": run.floors,
        "results": results,
        "ratios": ratios,
    }

"""`labkit ablate`: each technique alone, taken out, or one more each rung, against the naive stack,
in randomised blocks.

labkit ablate --preset small --scenario fresh-node --link 1gbit --kinds add-one,ladder --blocks 3
labkit ablate --search --scenario warm-node        # find best-here, and say how sure
"""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from labkit.cli import ci, experiments
from labkit.core.arguments import count, names, new_file, scenario
from labkit.core.json_types import JsonMapping
from labkit.core.stdout import add_json
from labkit.net.arguments import link
from labkit.subject.arguments import preset

if TYPE_CHECKING:
    from labkit.core.records import Run
    from labkit.stack.compose import Stack


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--kinds",
        type=names("--kinds", ("add-one", "drop-one", "ladder", "factorial")),
        default="add-one,ladder",
        help="add-one, drop-one, ladder, factorial (default add-one,ladder)",
    )
    parser.add_argument(
        "--only",
        default="",
        help="techniques to use, comma-separated (default: all that can run here)",
    )
    parser.add_argument(
        "--best",
        default="",
        metavar="STACK",
        help="the stack drop-one takes apart (default best-here)",
    )
    parser.add_argument(
        "--search", action="store_true", help="search for best-here on measured trials, and save it"
    )
    parser.add_argument("--scenario", type=scenario, default="fresh-node")
    parser.add_argument("--link", type=link, default="1gbit", help="emulated link (default 1gbit)")
    parser.add_argument("--preset", type=preset, default="small")
    parser.add_argument("--blocks", type=count("--blocks"), default=5)
    parser.add_argument("--seed", type=int, default=0)
    experiments.add_device(parser, "the servers")
    experiments.add_record_options(parser)
    ci.add_options(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core import host, records
    from labkit.errors import BadInput, MissingCapability
    from labkit.stack.ablate import arms, candidates
    from labkit.stack.compose import Stack
    from labkit.viz.live import progress

    if args.out:
        new_file(args.out, "--out")
        if not args.search:
            records.refuse_overwriting(args.out, args.resume, args.overwrite)
    ci.refuse_strangers(args)
    if args.best and args.best != "best-here":
        Stack.parse(args.best)
    only = tuple(n.strip() for n in args.only.split(",") if n.strip())
    if args.search:
        if args.junit or args.summary:
            raise BadInput(
                f"--{'junit' if args.junit else 'summary'} with --search",
                why="a search has several records, and no trial of it is a verdict",
                fix="leave it out, and give it to labkit run naive best-here",
            )
        return _search(args, only)
    names, missing = candidates(host.card(), scenario=args.scenario, only=only, device=args.device)
    for name, why in missing.items():
        print(f"not here: {name}: {why}", file=sys.stderr)
    kinds = [k.strip() for k in args.kinds.split(",")]
    stacks = arms(kinds, names, best=_best(args) if "drop-one" in kinds else None)
    if len(stacks) == 1:
        raise MissingCapability(
            "nothing but the naive stack can run here",
            why="an ablation compares techniques with it; "
            + ("; ".join(f"{k}: {v}" for k, v in missing.items()) or "none was asked for"),
            fix="labkit doctor, or another --scenario or --only",
        )
    print(
        f"{len(stacks)} arms × {args.blocks} blocks on {args.scenario}, link {args.link}; the first"
        " block tells how long the rest takes; --resume goes on after an interruption",
        file=sys.stderr,
    )
    with progress() as watching:
        measured = experiments.run_experiment(args, stacks, watching)
    ci.deliver(args, ci.of_run(measured, "ablate"))
    return _report(measured, args.json)


def _best(args: argparse.Namespace) -> Stack:
    from labkit.core.workspace import Workspace
    from labkit.stack.best_here import best_here
    from labkit.stack.compose import Stack

    if args.best:
        return Stack.parse(args.best)
    return best_here(Workspace.default(), args.scenario, args.link, args.preset)


def _search(args: argparse.Namespace, only: tuple[str, ...]) -> int:
    from labkit.core.host import card
    from labkit.core.stdout import last_line, say
    from labkit.stack.search import SearchOptions, search
    from labkit.viz.live import progress

    options = SearchOptions(
        scenario=args.scenario,
        link=args.link,
        preset=args.preset,
        device=args.device,
        only=only,
        blocks=(2, 2, args.blocks),
        seed=args.seed,
    )
    with progress() as watching:
        found = search(options, progress=watching)
    layers = ", ".join(f"{k}={v}" for k, v in found.stack.layers.items() if v)
    if not args.json:
        say(f"best here ({args.scenario}, {args.link}, {args.preset}): {layers}")
        say(
            f"  {found.ratio['median']:.3f} of naive ({found.ratio['low']:.3f} –"
            f" {found.ratio['high']:.3f}); the fastest of the last round in {found.confidence:.0%}"
            " of resamples" + (f", against {found.runner_up}" if found.runner_up else "")
        )
        for name, why in found.missing.items():
            say(f"  not tried: {name}: {why}")
    last_line(
        {
            "bench": "search",
            "host": card(),
            "blocks": args.blocks,
            "best": dict(found.stack.layers),
            "confidence": found.confidence,
            "tried": found.tried,
            "missing": found.missing,
            "records": found.runs,
            "results": [],
            "ratios": {f"best-here_vs_naive.{args.scenario}": found.ratio},
        }
    )
    return 0


def _interval(ratio: JsonMapping) -> str:
    significance = "" if ratio["significant"] else "  not significant"
    return f"{ratio['low']:.3f} – {ratio['high']:.3f}{significance}"


def _report(run: Run, only_json: bool) -> int:
    from labkit.core.stdout import last_line, say, table
    from labkit.core.units import show_s
    from labkit.stack.ablate import effects, predict
    from labkit.stack.claims import HEAD, as_rows, claims

    found = effects(run)
    predictions = [p for p in (predict(run, e.arm) for e in found) if p]
    rows = claims([run])
    if not only_json:
        say(
            table(
                [
                    [
                        e.arm,
                        show_s(sum(e.phases.values())) if e.phases else "",
                        f"{e.ratio['median']:.3f}" if e.ratio else "missing",
                        _interval(e.ratio) if e.ratio else "",
                        show_s(e.saved_s) if e.ratio else e.missing[:90],
                    ]
                    for e in found
                ],
                ["arm", "phases' sum", "to naive", "interval", "saved"],
            )
        )
        if predictions:
            say("\npredicted against measured (what adding up separate gains gets wrong)")
            say(
                table(
                    [
                        [
                            p.arm,
                            show_s(p.measured_s),
                            show_s(p.sum_s),
                            f"{p.sum_error:+.0%}",
                            show_s(p.path_s),
                            f"{p.path_error:+.0%}",
                        ]
                        for p in predictions
                    ],
                    ["arm", "measured", "sum of gains", "error", "critical path", "error"],
                )
            )
        say("\nclaimed against measured")
        say(table(as_rows(rows), HEAD))
    last_line(
        {
            **experiments.summary(run),
            "bench": "ablate",
            "predictions": [
                {"arm": p.arm, "measured_s": p.measured_s, "sum_s": p.sum_s, "path_s": p.path_s}
                for p in predictions
            ],
            "claims": [
                {
                    "row": r.label,
                    "technique": r.technique,
                    "claimed": r.claim.text,
                    "ratio": dict(r.ratio),
                    "verdict": r.verdict,
                }
                for r in rows
            ],
        }
    )
    if not any(e.ratio and e.arm != "naive" for e in found):
        print(
            "no technique was measured beside the naive stack: nothing was compared",
            file=sys.stderr,
        )
        return 1
    return 1 if any(t.outcome not in ("ok", "unavailable") for t in run.trials) else 0

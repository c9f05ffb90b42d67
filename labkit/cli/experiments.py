"""What the commands that run experiments share: options, the call, the last line.

    add_record_options(parser)
    with progress() as watching:
        run = run_experiment(args, ["naive"], watching)
    last_line(summary(run))

Lesson: none."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.arguments import readable_file
from labkit.core.json_types import JsonObject

if TYPE_CHECKING:
    from labkit.core.records import Run
    from labkit.stack.compose import Stack


def add_device(parser: argparse.ArgumentParser, whose: str) -> None:
    parser.add_argument(
        "--device",
        default="",
        choices=["", "cpu", "cuda"],
        metavar="{cpu,cuda}",
        help=(
            f"device of {whose} (default: cuda where a GPU is here and torch is built for it, else"
            " cpu)"
        ),
    )


def add_record_options(parser: argparse.ArgumentParser) -> None:
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


def sound_records(paths: Sequence[str]) -> list[Path]:
    """The files given by --record. Raises BadInput for one that is no record."""
    from labkit.lessons import gpu_record

    for path in paths:
        gpu_record.refuse_unsound(
            Path(readable_file(path, "--record", "labkit run naive --out FILE makes one"))
        )
    return [Path(path) for path in paths]


def run_experiment(
    args: argparse.Namespace,
    stacks: Sequence[str | Stack],
    progress: object | None,
    **further: Any,
) -> Run:
    """The experiment that `args` choose by the options that all have; `further`: what one command
    adds, as `labkit.stack.experiment` takes it, which says what it raises."""
    from labkit.stack import experiment

    return experiment(
        stacks,
        preset=args.preset,
        blocks=args.blocks,
        scenario=args.scenario,
        link=args.link,
        seed=args.seed,
        device=args.device,
        out=args.out or None,
        resume=args.resume,
        overwrite=args.overwrite,
        progress=progress,
        **further,
    )


def summary(run: Run) -> JsonObject:
    """The last line of what runs an experiment: the bench language, with failed, trials,
    first_token_s, phases, unaccounted_share. Raises BadInput for a run without arms."""
    from labkit.core import printable, question, stats
    from labkit.core.trend import trend
    from labkit.errors import BadInput

    results, ratios = [], {}
    for arm in run.arms:
        good, every = run.of_arm(arm["name"]), run.of_arm(arm["name"], only_ok=False)
        row: JsonObject = {
            "arm": arm["name"],
            "stack": arm["stack"],
            "link": arm["link"],
            "scenario": arm["scenario"],
            "n": len(good),
            "failed": len(every) - len(good),
            "disturbed": sum(bool(t.disturbed) for t in good),
        }
        if good:
            totals = [t.total_s for t in good if t.total_s is not None]
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
                    (
                        t.unaccounted_s / t.total_s
                        for t in good
                        if t.unaccounted_s is not None and t.total_s
                    ),
                    default=None,
                ),
            }
        else:
            row["missing"] = (
                "no trial succeeded: "
                + "; ".join(sorted({t.error.get("what", t.outcome) for t in every}))[:500]
            )
        results.append(row)
    if not results:
        raise BadInput(
            f"run {printable.line(run.id)} has no arms", fix="labkit run naive --out FILE"
        )
    first = results[0]["arm"]
    for other in results[1:]:
        in_block = {t.block: t.total_s for t in run.of_arm(first) if t.total_s is not None}
        pairs = [
            (t.total_s, in_block[t.block])
            for t in run.of_arm(other["arm"])
            if t.block in in_block and t.total_s is not None
        ]
        if pairs and not question.not_from_one_start(run, other["arm"], first):
            ratios[f"{other['arm']}_vs_{first}"] = stats.paired_ratio(pairs)
    placement = run.experiment.get("placement") or {}
    return {
        "bench": "run",
        "host": run.host,
        "device": question.conditions_of(run).get("device"),
        "device_why": placement.get("why"),
        "blocks": run.experiment.get("blocks", max((t.block + 1 for t in run.trials), default=0)),
        "failed": len(run.failed),
        "disturbed": len(run.disturbed),
        "trend": found.words if (found := trend(run)) else "",
        "trials": len(run.trials),
        "first_token_s": results[0].get("median_s"),
        "phases": results[0].get("phases", {}),
        "unaccounted_share": results[0].get("unaccounted_share"),
        "floors": run.floors,
        "results": results,
        "ratios": ratios,
    }

"""`labkit bench forecast`: the planner's prediction for sizes left out of its fit, against what was
measured.

One stack at several sizes of model and image, taking turns; each is predicted from the others
(`predicted_vs_measured.SIZE`, goal 0.8 to 1.2). Sizes are written MODEL or MODEL+EXTRA, extra bytes
in the image. A row says which size no other run had, and whether it lies between the others'
(interpolated) or beyond them (extrapolated).

    labkit bench forecast --blocks 5
    labkit bench forecast --blocks 1 --name f; labkit bench forecast --blocks 2 --name f     # in
        pieces: the second adds one block

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import argparse

from labkit.bench.engine import Measured, document
from labkit.bench.trials import of_trial
from labkit.core import stats
from labkit.core.arguments import scenario
from labkit.core.json_types import JsonObject
from labkit.core.units import show_s
from labkit.net.arguments import link


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stack", default="naive")
    parser.add_argument(
        "--sizes",
        default="tiny,80MB,160MB,small,tiny+400MB,tiny+800MB",
        help="MODEL or MODEL+EXTRA (presets or bytes), at least three",
    )
    parser.add_argument("--scenario", type=scenario, default="fresh-node")
    parser.add_argument("--link", type=link, default="1gbit")
    parser.add_argument(
        "--name",
        default="",
        help="keep the records under this name, and go on with those that are there",
    )


def run(args: argparse.Namespace) -> JsonObject:
    from labkit.decide.holdout import hold_out
    from labkit.decide.measure import measure
    from labkit.viz.live import progress

    sizes = [s.strip() for s in args.sizes.split(",") if s.strip()]
    with progress() as watching:
        runs = measure(
            args.stack,
            sizes,
            blocks=args.blocks,
            scenario=args.scenario,
            link=args.link,
            progress=watching,
            name=args.name,
        )
    name = runs[0].arm_names[0]
    good = [r for r in runs if r.of_arm(name)]
    rows = {r["run"]: r for r in hold_out(good, name)} if len(good) > 1 else {}
    results: dict[str, list[Measured] | str] = {}
    ratios: JsonObject = {}
    for size, measured_run in zip(sizes, runs, strict=True):
        row = rows.get(measured_run.id)
        results[size] = [
            of_trial(trial, args.link, evidence=_evidence(row)) for trial in measured_run.trials
        ]
        ratios[f"predicted_vs_measured.{size}"] = _ratio(
            row, [t.total_s for t in measured_run.of_arm(name) if t.total_s]
        )
    return {
        **document(
            "forecast",
            results,
            {},
            stack=name,
            scenario=args.scenario,
            hold_out=list(rows.values()),
        ),
        "ratios": ratios,
    }


def _evidence(row: JsonObject | None) -> str:
    """What was predicted, and how far the fit had to reach for it."""
    if row is None:
        return "not predicted"
    words = {
        "image_bytes": "image",
        "unpacked_bytes": "image",
        "model_bytes": "model",
        "snapshot_bytes": "snapshot",
    }
    kinds = {
        kind: sorted(
            {words[d] for d in row["unseen"] if (d in row["beyond"]) == (kind == "EXTRAPOLATED")}
        )
        for kind in ("interpolated", "EXTRAPOLATED")
    }
    reach = (
        "; ".join(f"{' and '.join(of)} {kind}" for kind, of in kinds.items() if of)
        or "both sizes known, not together"
    )
    return f"predicted {show_s(row['predicted_s'])} ({row['error_share']:+.0%}), {reach}" + (
        " from one size: a guess" if row["from_one_size"] else ""
    )


def _ratio(row: JsonObject | None, measured_s: list[float]) -> JsonObject:
    """Predicted ÷ measured; the interval is that of the measured median."""
    if row is None or not measured_s:
        return {"missing": "not enough sizes succeeded"}
    low_s, high_s = stats.interval(measured_s)
    ratio = {
        "median": row["predicted_s"] / row["measured_s"],
        "low": row["predicted_s"] / high_s,
        "high": row["predicted_s"] / low_s,
        "n": len(measured_s),
    }
    return {
        **ratio,
        "extrapolated": row["beyond"],
        "significant": (
            len(measured_s) >= stats.MIN_PAIRS and not ratio["low"] <= 1 <= ratio["high"]
        ),
    }

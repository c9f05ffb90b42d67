"""`labkit bench forecast`: the planner's prediction for sizes left out of its fit, against what was measured.

One stack at several model sizes, taking turns; each size is predicted from the others (`predicted_vs_measured.SIZE`, goal
0.8 to 1.2). The smallest and largest are extrapolations, those between them are not, and the row says which. The image is
the same in all of them. Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import argparse
from typing import Any

from labkit.bench.engine import Measured, document
from labkit.core import stats
from labkit.core.units import show_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--stack", default="naive")
    parser.add_argument("--sizes", default="tiny,80MB,160MB,small", help="presets or bytes, at least three")
    parser.add_argument("--scenario", default="fresh-node")
    parser.add_argument("--link", default="1gbit")


def run(args: argparse.Namespace) -> dict[str, Any]:
    from labkit.decide.measure import measure
    from labkit.decide.predict import hold_out
    from labkit.face.live import progress

    sizes = [s.strip() for s in args.sizes.split(",") if s.strip()]
    runs = measure(args.stack, sizes, blocks=args.blocks, scenario=args.scenario, link=args.link, progress=progress())
    name = runs[0].arm_names[0]
    good = [r for r in runs if r.of_arm(name)]
    rows = {r["run"]: r for r in hold_out(good, name)} if len(good) > 1 else {}
    results: dict[str, list[Measured] | str] = {}
    ratios: dict[str, Any] = {}
    for size, made in zip(sizes, runs, strict=True):
        row = rows.get(made.id)
        said = (f"predicted {show_s(row['predicted_s'])} ({row['error_share']:+.0%}), {'between' if size not in (sizes[0], sizes[-1]) else 'beyond'} the sizes fitted"
                if row else "not predicted")
        results[size] = [Measured(t.total_s or float("nan"), cache=t.cache.get("state", "unverified"), link=args.link, evidence=said,
                                  failed="" if t.ok else f"{t.outcome}: {t.error.get('what', '')}") for t in made.trials]
        ratios[f"predicted_vs_measured.{size}"] = _ratio(row, [t.total_s for t in made.of_arm(name) if t.total_s])
    return {**document("forecast", results, {}, stack=name, scenario=args.scenario), "ratios": ratios}


def _ratio(row: dict[str, Any] | None, measured_s: list[float]) -> dict[str, Any]:
    """Predicted ÷ measured; the interval is that of the measured median."""
    if row is None or not measured_s:
        return {"missing": "not enough sizes came through"}
    low_s, high_s = stats.interval(measured_s)
    ratio = {"median": row["predicted_s"] / row["measured_s"], "low": row["predicted_s"] / high_s, "high": row["predicted_s"] / low_s, "n": len(measured_s)}
    return {**ratio, "significant": len(measured_s) >= stats.MIN_PAIRS and not ratio["low"] <= 1 <= ratio["high"]}

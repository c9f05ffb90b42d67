"""`labkit show RUN`: a recorded run – the waterfall of each arm in words, its cache proof, evidence, failures.

    labkit show run.json
    labkit show run.json --figure waterfall.png --theme dark
    labkit show run.json --trials            every trial, one line each
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from labkit.core.records import Run
from labkit.core.units import show_bytes, show_s


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the JSON file that labkit run wrote")
    parser.add_argument("--arm", default="", help="only this arm")
    parser.add_argument("--trials", action="store_true", help="every trial, one line each")
    parser.add_argument("--figure", default="", metavar="FILE", help="also draw the waterfall of the arm (.png, .svg)")
    parser.add_argument("--theme", default="light", choices=["light", "dark"], help="of the figure")
    parser.add_argument("--json", action="store_true", help="the record's summary as one JSON line")


def run(args: argparse.Namespace) -> int:
    from labkit.core import records

    made = records.read(args.run)
    if args.figure:
        from labkit.face.waterfall import waterfall

        waterfall(made, args.arm).save(Path(args.figure), theme=args.theme)
    if args.json:
        from labkit.cli.output import last_line
        from labkit.cli.run import summary

        last_line(summary(made))
        return 0
    print(text(made, arm=args.arm, trials=args.trials))
    return 0


def text(made: Run, arm: str = "", trials: bool = False) -> str:
    """What a person reads of a run. Says of every failed trial why it failed."""
    from labkit.face import words

    parts = [f"run {made.id} of {made.created}, {words.host_name(made.host)}"]
    for name in [arm] if arm else made.arm_names:
        good = made.of_arm(name)
        if good:
            shown = words.choose(made, name)
            parts += [words.waterfall_text(shown), _cache(shown.trial.cache), *_evidence(shown.trial.evidence)]
        else:
            parts.append(f"{name}: no good trial")
    if trials:
        parts.append(_every(made, arm))
    for t in made.failed:
        if not arm or t.arm == arm:
            parts.append(f"FAILED {t.arm}, block {t.block + 1}: {t.outcome}" + (f" – {t.error['what']}" if t.error.get("what") else ""))
    if len(made.arm_names) > 1 and not arm:
        parts.append(words.strip_text(made, made.arm_names))
    return "\n".join(p for p in parts if p)


def _cache(cache: dict[str, Any]) -> str:
    if not cache:
        return ""
    proof = f"cache {cache.get('state', 'unverified')}"
    if cache.get("files") is not None:
        proof += f": {show_bytes(cache.get('resident_bytes', 0))} of {show_bytes(cache.get('total_bytes', 0))} in {cache['files']} files resident at t0"
    return proof + (f", by {cache['method']}" if cache.get("method") else "")


def _evidence(found: list[dict[str, Any]]) -> list[str]:
    return [f"  {'engaged' if e.get('engaged') else 'NOT ENGAGED'}: {e.get('technique', '')} – {e.get('how', '')}" for e in found]


def _every(made: Run, arm: str) -> str:
    from labkit.cli.output import table

    rows = [[t.block + 1, t.arm, t.outcome, show_s(t.total_s) if t.total_s is not None else "", t.cache.get("state", ""),
             ", ".join(f"{p} {show_s(s)}" for p, s in t.phases.items())] for t in made.trials if not arm or t.arm == arm]
    return table(rows, ["block", "arm", "outcome", "total", "cache", "phases"])

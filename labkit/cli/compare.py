"""`labkit compare`: runs against each other, or why they cannot be.

    labkit compare run.json                       arms of one run, paired block by block, against its first arm
    labkit compare before.json after.json         the same arms on the same host, scenario, link: after ÷ before, unpaired
    labkit compare --rank *.json                  participants' records by host: one ranking a question, ties named

Two runs share no blocks, so drift of the machine between them counts; arms in one run are the better experiment. Runs that
do not measure the same thing are refused with every difference named (exit 2).
"""

from __future__ import annotations

import argparse
from typing import Any

from labkit.core.records import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="files that labkit run --out wrote")
    parser.add_argument("--against", metavar="ARM", help="the arm the others are divided by (one run; default its first)")
    parser.add_argument("--phase", default="", help="compare one phase instead of the total")
    parser.add_argument("--rank", action="store_true", help="rank hosts that ran the same arm in the same scenario")
    parser.add_argument("--json", action="store_true", help="only the JSON line")


def run(args: argparse.Namespace) -> int:
    from labkit.cli.output import last_line
    from labkit.core import records
    from labkit.errors import BadInput

    runs = [records.read(path) for path in args.runs]
    if args.rank:
        doc = {"command": "compare", "kind": "rank", "rankings": rank(runs, args.phase)}
        text = _show_rank(doc["rankings"])
    elif len(runs) == 1:
        doc = {"command": "compare", "kind": "paired", "run": runs[0].id, "rows": within(runs[0], args.against, args.phase)}
        text = _show_rows(doc["rows"], f"run {runs[0].id} on {runs[0].host.get('title', '?')}, paired by block")
    elif len(runs) == 2:
        doc = {"command": "compare", "kind": "unpaired", "runs": [r.id for r in runs], "rows": between(*runs, args.phase)}
        text = _show_rows(doc["rows"], f"{runs[1].id} against {runs[0].id}, unpaired")
    else:
        raise BadInput(f"{len(runs)} runs to compare", why="a difference has two sides", fix="give one or two runs, or --rank")
    if not args.json:
        print(text)
    last_line(doc)
    return 0


def times(run: Run, arm: str, phase: str = "") -> list[float]:
    """Seconds of the good trials of one arm, in total or in one phase."""
    found = [t.phases.get(phase) if phase else t.total_s for t in run.of_arm(arm)]
    return [t for t in found if t is not None]


def _summary(run: Run, arm: str, phase: str) -> dict[str, Any]:
    from labkit.core import stats

    values = times(run, arm, phase)
    made: dict[str, Any] = {"arm": arm, "n": len(values), "failed": len(run.of_arm(arm, only_ok=False)) - len(run.of_arm(arm))}
    if values:
        low, high = stats.interval(values)
        made |= {"median_s": stats.median(values), "low_s": low, "high_s": high}
    return made


def within(run: Run, against: str | None, phase: str = "") -> list[dict[str, Any]]:
    """Arms of one run: each with its own summary, and its time ÷ the reference's, paired within blocks."""
    from labkit.core import stats
    from labkit.errors import BadInput, LabError

    names = run.arm_names
    base = against or names[0]
    if base not in names:
        raise BadInput(f"no arm {base!r} in run {run.id}", fix="one of: " + ", ".join(names))
    rows = []
    for name in names:
        row = _summary(run, name, phase)
        if name != base:
            try:
                row["ratio"] = stats.speedup(run, base, name, phase)  # time of `name` ÷ time of the reference
            except LabError as error:
                row["refused"] = str(error)
        rows.append(row)
    return rows


def between(before: Run, after: Run, phase: str = "") -> list[dict[str, Any]]:
    """Arms that both runs hold: after ÷ before. Raises IncomparableRecords with every difference, BadInput without a common arm."""
    from labkit.core import records, stats
    from labkit.errors import BadInput

    records.comparable(before, after)
    common = [a for a in before.arm_names if a in after.arm_names]
    if not common:
        raise BadInput(f"these runs share no arm: {', '.join(before.arm_names)} against {', '.join(after.arm_names)}",
                       why="two runs are compared arm by arm", fix="run both arms in one experiment: labkit run A B --blocks 5")
    rows = []
    for arm in common:
        old, new = times(before, arm, phase), times(after, arm, phase)
        row = _summary(after, arm, phase) | {"before_s": stats.median(old) if old else None}
        if old and new:
            row["ratio"] = stats.unpaired_ratio(new, old)
            row["moved"] = moved(before, after, arm)
        rows.append(row)
    return rows


def moved(before: Run, after: Run, arm: str) -> dict[str, Any]:
    """The phase whose median changed most, in seconds: where to look first."""
    from labkit.core import stats

    names = {p for r in (before, after) for t in r.of_arm(arm) for p in t.phases}
    changes = {}
    for phase in names:
        old, new = times(before, arm, phase), times(after, arm, phase)
        changes[phase] = (stats.median(new) if new else 0.0) - (stats.median(old) if old else 0.0)
    worst = max(changes, key=lambda p: abs(changes[p]), default="")
    return {"phase": worst, "by_s": changes[worst]} if worst else {}


def rank(runs: list[Run], phase: str = "") -> list[dict[str, Any]]:
    """One ranking for each question (arm, scenario, link, preset, cache state): hosts by median, with ties where the next is not significantly slower.

    Records of one host are pooled. It ranks hosts, not techniques."""
    from labkit.core import stats

    questions: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for one in runs:
        for arm in one.experiment.get("arms", []):
            values = times(one, arm["name"], phase)
            if not values:
                continue
            states = sorted({t.cache.get("state", "unverified") for t in one.of_arm(arm["name"])})
            key = (arm["name"], arm.get("scenario", ""), arm.get("link", ""), str(one.experiment.get("preset", "")), "+".join(states))
            host = questions.setdefault(key, {}).setdefault(one.host.get("id", "?"), {"host": one.host.get("id", "?"), "title": one.host.get("title", "?"), "values": []})
            host["values"] += values
    made = []
    for key, hosts in questions.items():
        ordered = sorted(hosts.values(), key=lambda h: stats.median(h["values"]))
        rows: list[dict[str, Any]] = []
        for place, host in enumerate(ordered, 1):
            low, high = stats.interval(host["values"])
            tie = bool(rows) and not stats.unpaired_ratio(host["values"], ordered[place - 2]["values"])["significant"]
            rows.append({"place": rows[-1]["place"] if tie else place, "tie": tie, "host": host["host"], "title": host["title"],
                         "n": len(host["values"]), "median_s": stats.median(host["values"]), "low_s": low, "high_s": high})
        made.append(dict(zip(("arm", "scenario", "link", "preset", "cache"), key, strict=True)) | {"phase": phase or "total", "hosts": rows})
    return made


def _ratio_text(ratio: dict[str, Any]) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} – {ratio['high']:.3f})" + ("" if ratio["significant"] else "  not significant")


def _show_rows(rows: list[dict[str, Any]], title: str) -> str:
    from labkit.cli.output import table
    from labkit.core.units import show_s

    cells = []
    for r in rows:
        known = "median_s" in r
        moved = r.get("moved") or {}
        cells.append([r["arm"], r["n"], r["failed"], show_s(r["median_s"]) if known else "", f"{show_s(r['low_s'])} – {show_s(r['high_s'])}" if known else "no good trial",
                      _ratio_text(r["ratio"]) if "ratio" in r else ("refused" if "refused" in r else ""), f"{moved['phase']} {moved['by_s']:+.3f} s" if moved else ""])
    text = title + "\n" + table(cells, ["arm", "n", "failed", "median", "95 % interval", "ratio of times", "most moved"])
    return "\n".join([text, *(f"{r['arm']}: {r['refused']}" for r in rows if "refused" in r)])


def _show_rank(rankings: list[dict[str, Any]]) -> str:
    from labkit.cli.output import table
    from labkit.core.units import show_s

    blocks = []
    for r in rankings:
        rows = [[f"={h['place']}" if h["tie"] else h["place"], h["title"], h["host"], h["n"], show_s(h["median_s"]), f"{show_s(h['low_s'])} – {show_s(h['high_s'])}"] for h in r["hosts"]]
        blocks.append(f"{r['arm']}, {r['scenario']}, {r['link']}, preset {r['preset']}, cache {r['cache']} ({r['phase']})\n"
                      + table(rows, ["place", "host", "kind", "n", "median", "95 % interval"]))
    return "\n\n".join(blocks + ["Hosts are ranked, not techniques; = is a tie: not significantly slower than the one above."])

"""`labkit compare`: runs against each other, or why they cannot be.

    labkit compare run.json                       arms of one run, paired block by block, against
        its first arm
    labkit compare before.json after.json         the same arms on the same host, scenario, link:
        after ÷ before, unpaired
    labkit compare --rank *.json                  participants' records by host: one ranking a
        question, ties named

Two runs share no blocks, so drift of the machine between them counts; arms in one run are the
better experiment. Runs that do not measure the same thing (labkit.core.question) are refused with
every difference named (exit 2); what a record does not tell is said on stderr."""

from __future__ import annotations

import argparse
import sys

from labkit.cli.ranking import rank, show_rankings, times
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.stdout import add_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="files that labkit run --out wrote")
    parser.add_argument(
        "--against",
        metavar="ARM",
        help="the arm the others are divided by (one run; default its first)",
    )
    parser.add_argument("--phase", default="", help="compare one phase instead of the total")
    parser.add_argument(
        "--rank", action="store_true", help="rank hosts that ran the same arm in the same scenario"
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core import printable, question, records
    from labkit.core.stdout import last_line, say
    from labkit.errors import BadInput

    runs = [records.read(path) for path in args.runs]
    if args.rank:
        rankings = rank(runs, args.phase)
        doc: JsonObject = {"command": "compare", "kind": "rank", "rankings": rankings}
        text = show_rankings(rankings)
        if unknown := [name for r in rankings for name in r["unknown"]]:
            print(f"note: {question.said_unknown(unknown)}", file=sys.stderr)
    elif len(runs) == 1:
        rows = within(runs[0], args.against, args.phase)
        doc = {"command": "compare", "kind": "paired", "run": runs[0].id, "rows": rows}
        text = _show_rows(
            rows,
            printable.line(
                f"run {runs[0].id} on {runs[0].host.get('title', '?')}, paired by block"
            ),
        )
    elif len(runs) == 2:
        old, new = runs
        rows, not_told = between(old, new, args.phase), list(question.comparable(old, new))
        doc = {
            "command": "compare",
            "kind": "unpaired",
            "runs": [r.id for r in runs],
            "rows": rows,
            "unknown": not_told,
        }
        text = _show_rows(rows, printable.line(f"{new.id} against {old.id}, unpaired"))
        if not_told:
            print(f"note: {question.said_unknown(not_told)}", file=sys.stderr)
    else:
        raise BadInput(
            f"{len(runs)} runs to compare",
            why="a difference has two sides",
            fix="give one or two runs, or --rank",
        )
    if not args.json:
        say(text)
    last_line(doc)
    return 0


def _summary(run: Run, arm: str, phase: str) -> JsonObject:
    from labkit.core import stats

    values = times(run, arm, phase)
    row: JsonObject = {
        "arm": arm,
        "n": len(values),
        "failed": len(run.of_arm(arm, only_ok=False)) - len(run.of_arm(arm)),
        "disturbed": sum(bool(t.disturbed) for t in run.of_arm(arm)),
    }
    if values:
        low, high = stats.interval(values)
        row |= {"median_s": stats.median(values), "low_s": low, "high_s": high}
    return row


def within(run: Run, against: str | None, phase: str = "") -> list[JsonObject]:
    """Arms of one run: each with its own summary, and its time ÷ the reference's, paired within
    blocks."""
    from labkit.core import printable
    from labkit.core.speedup import speedup
    from labkit.errors import BadInput, LabError

    names = run.arm_names
    if not names:
        raise BadInput(
            f"run {printable.line(run.id)} holds no trial", fix="labkit run naive --out FILE"
        )
    base = against or names[0]
    if base not in names:
        raise BadInput(
            f"no arm {base!r} in run {printable.line(run.id)}",
            fix=printable.line("one of: " + ", ".join(names)),
        )
    rows = []
    for name in names:
        row = _summary(run, name, phase)
        if name != base:
            try:
                # time of `name` ÷ time of the reference
                row["ratio"] = speedup(run, base, name, phase)
            except LabError as error:
                row["refused"] = str(error)
        rows.append(row)
    return rows


def between(before: Run, after: Run, phase: str = "") -> list[JsonObject]:
    """Arms that both runs hold: after ÷ before. Raises IncomparableRecords with every difference,
    BadInput without a common arm."""
    from labkit.core import printable, question, stats
    from labkit.errors import BadInput

    question.comparable(before, after)
    common = [a for a in before.arm_names if a in after.arm_names]
    if not common:
        raise BadInput(
            printable.line(
                f"these runs share no arm: {', '.join(before.arm_names)} against"
                f" {', '.join(after.arm_names)}"
            ),
            why="two runs are compared arm by arm",
            fix="run both arms in one experiment: labkit run A B --blocks 5",
        )
    rows = []
    for arm in common:
        old, new = times(before, arm, phase), times(after, arm, phase)
        row = _summary(after, arm, phase) | {"before_s": stats.median(old) if old else None}
        if old and new:
            try:
                row["ratio"] = stats.unpaired_ratio(new, old)
            except BadInput as error:  # a phase of no length has no ratio
                row["refused"] = str(error)
            row["moved"] = moved(before, after, arm)
        rows.append(row)
    return rows


def moved(before: Run, after: Run, arm: str) -> JsonObject:
    """The phase whose median changed most, in seconds: where to look first."""
    from labkit.core import stats

    names = dict.fromkeys(p for r in (before, after) for t in r.of_arm(arm) for p in t.phases)
    changes = {}
    for phase in names:
        old, new = times(before, arm, phase), times(after, arm, phase)
        changes[phase] = (stats.median(new) if new else 0.0) - (stats.median(old) if old else 0.0)
    worst = max(changes, key=lambda p: abs(changes[p]), default="")
    return {"phase": worst, "by_s": changes[worst]} if worst else {}


def _ratio_text(ratio: JsonObject) -> str:
    return f"{ratio['median']:.3f} ({ratio['low']:.3f} – {ratio['high']:.3f})" + (
        "" if ratio["significant"] else "  not significant"
    )


def _show_rows(rows: list[JsonObject], title: str) -> str:
    from labkit.core import printable
    from labkit.core.stdout import table
    from labkit.core.units import show_s

    cells = []
    for r in rows:
        known = "median_s" in r
        moved = r.get("moved") or {}
        ratio = "refused" if "refused" in r else ""
        if "ratio" in r:
            ratio = _ratio_text(r["ratio"])
        cells.append(
            [
                r["arm"],
                r["n"],
                f"{r['failed']}" + (f", {n} disturbed" if (n := r.get("disturbed")) else ""),
                show_s(r["median_s"]) if known else "",
                f"{show_s(r['low_s'])} – {show_s(r['high_s'])}" if known else "no good trial",
                ratio,
                f"{moved['phase']} {moved['by_s']:+.3f} s" if moved else "",
            ]
        )
    text = (
        title
        + "\n"
        + table(
            cells, ["arm", "n", "failed", "median", "95 % interval", "ratio of times", "most moved"]
        )
    )
    return "\n".join(
        [text, *(f"{printable.line(r['arm'])}: {r['refused']}" for r in rows if "refused" in r)]
    )

"""Tables of recorded GPU trials as Markdown, and the page that holds them: the command
`python -m labkit.lessons.gpu_record`.

    with_tables(page, tables)              # the page with the tables between its two marks

Lesson: none."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.core import printable
from labkit.core.beside import replacing
from labkit.errors import BadInput
from labkit.lessons import gpu_stacks, gpu_summary
from labkit.lessons.gpu_record import recorded, runs

BEGIN, END = (
    "<!-- tables: python -m labkit.lessons.gpu_record --into FILE -->",
    "<!-- end of tables -->",
)


def with_tables(page: str, tables: str) -> str:
    """A Markdown page with what stands between its marks replaced. Raises BadInput for a page
    without them."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise BadInput(
            "the page has no place for tables",
            why="they are written between two marks",
            fix=f"{BEGIN} … {END}",
        )
    return f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}"


def main(argv: Sequence[str] | None = None) -> int:
    """Markdown of every table, or of the named ones; the waterfall of the largest run."""
    parser = argparse.ArgumentParser(
        prog="python -m labkit.lessons.gpu_record",
        description="Tables of recorded GPU trials, as Markdown.",
    )
    parser.add_argument(
        "tables", nargs="*", metavar="TABLE", help="only these: " + ", ".join(gpu_summary.TABLES)
    )
    parser.add_argument(
        "--host",
        default="",
        help="folder below data/recorded (default: the one with the newest record)",
    )
    parser.add_argument(
        "--into", type=Path, metavar="FILE", help="write the tables between the marks of this page"
    )
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help=(
            "also draw the waterfall of the fastest start from nothing, of the largest model"
            " recorded"
        ),
    )
    args = parser.parse_args(argv)
    if unknown := [t for t in args.tables if t not in gpu_summary.TABLES]:
        parser.error(f"no table {', '.join(unknown)}")
    records = recorded(args.host)
    if not records:
        print("no GPU trials are recorded", file=sys.stderr)
        return 1
    tables = gpu_summary.markdown(records, args.tables)
    try:
        if args.figure:
            from labkit.viz.waterfall import waterfall

            drawn = [
                (run, arm)
                for run in runs("stack", args.host)
                if (arm := gpu_stacks.best_stack(run))
            ]
            if not drawn:
                raise BadInput(
                    "no run on that GPU is recorded beside its trials",
                    fix="make gpu on a GPU host makes one",
                )
            waterfall(*drawn[-1]).save(args.figure)
        if args.into:
            page = with_tables(args.into.read_text(encoding="utf-8"), tables)
            with replacing(args.into) as part:
                part.write_text(page, encoding="utf-8")
        else:
            print(tables)
    except BadInput as error:
        print(printable.text(error), file=sys.stderr)
        return 2
    print(json.dumps({"records": [r.name for r in records]}), file=sys.stderr)
    return 0

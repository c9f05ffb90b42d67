"""`labkit site`: the gallery of executed notebooks and figures, as static HTML.

labkit site --out site                       from report/notebooks (run `labkit report` or `labkit
notebooks run` first) labkit site --execute --preset ci            execute the notebooks first"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli.experiments import sound_records
from labkit.core.arguments import output_directory


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", default="site", metavar="DIR", help="where the gallery goes (default: site)"
    )
    parser.add_argument(
        "--executed",
        default="report/notebooks",
        metavar="DIR",
        help="folder of executed notebooks (default: report/notebooks)",
    )
    parser.add_argument(
        "--execute",
        action="store_true",
        help="execute all notebooks into that folder first; done by itself when it is empty",
    )
    parser.add_argument("--preset", default="ci", help="parameters for --execute (default: ci)")
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="FILE",
        help="a run record or one of GPU trials of this host to add",
    )


def run(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.lessons import gallery, pages

    records = sound_records(args.record)
    output_directory(args.out, "--out")
    pages.refuse_strangers([Path(args.out) / "index.html"])
    executed, failed = Path(args.executed), 0
    if args.execute or not list(executed.glob("*.ipynb")):
        from labkit.cli.notebooks import find
        from labkit.lessons.batch import run_all

        batch = run_all(find([]), executed, preset=args.preset, say=print)
        failed = sum(r.outcome != "ok" for r in batch.results)
    built = gallery.build(Path(args.out), executed, records)
    if not built.runs:
        print("not drawn: no recorded run was found (LABKIT_RECORDED says where they are)")
    for line in built.skipped:
        say(f"not drawn: {line}")
    print(f"gallery: {built.page.resolve()}")
    last_line(
        {
            "site": str(built.page),
            "notebooks": built.notebooks,
            "runs": built.runs,
            "skipped": len(built.skipped),
            "failed": failed,
        }
    )
    return 1 if failed else 0

"""`labkit site`: the gallery of executed notebooks and figures, as static HTML.

labkit site --out site              from report/notebooks, as `labkit report` left them
labkit site --execute               run `labkit report` first: its study, then the notebooks
"""

from __future__ import annotations

import argparse
from pathlib import Path

from labkit.cli.experiments import sound_records
from labkit.core.arguments import output_directory
from labkit.core.stdout import add_json
from labkit.errors import BadInput


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
        help="run labkit report first, into the folder above; done by itself when none is there",
    )
    parser.add_argument(
        "--record",
        action="append",
        default=[],
        metavar="FILE",
        help="a run record or one of GPU trials of this host to add",
    )
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    from labkit.core.stdout import last_line, say
    from labkit.lessons import gallery, pages

    records = sound_records(args.record)
    output_directory(args.out, "--out")
    pages.refuse_strangers([Path(args.out) / "index.html"])
    executed, failed = Path(args.executed), 0
    if args.execute or not list(executed.glob("*.ipynb")):
        failed = len(_reported(executed))
    built = gallery.build(Path(args.out), executed, records)
    if not built.runs:
        say("not drawn: no recorded run was found (LABKIT_RECORDED says where they are)")
    for line in built.skipped:
        say(f"not drawn: {line}")
    say(f"gallery: {built.page.resolve()}")
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


def _reported(executed: Path) -> tuple[str, ...]:
    """Run the report whose executed notebooks lie there; what failed in it. Raises BadInput for a
    folder that no report leaves."""
    from labkit.cli.notebooks import find
    from labkit.core.stdout import say
    from labkit.lessons.report import report

    notebooks = find([])
    if executed.name != "notebooks":
        raise BadInput(
            f"no executed notebook in {executed}",
            why="a report leaves them in a folder of its own that is called notebooks",
            fix=f"--executed {executed / 'notebooks'}, or labkit notebooks run --out {executed}",
        )
    return report(executed.parent, notebooks, say=say).failed

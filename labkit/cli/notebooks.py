"""`labkit notebooks`: run them headless and say what happened, or check that they are in canonical
form.

labkit notebooks run                      all of them, report in report/notebooks/
labkit notebooks run 01_anatomy --preset ci -p blocks=3 --timeout 600
labkit notebooks run 01_anatomy --save-baseline FILE
labkit notebooks run 01_anatomy --baseline FILE --junit junit.xml
    exit code 1 when a stack got slower than its baseline, and the phase is named; 5 when the two
    cannot be compared, which is found out before anything runs where it can be
labkit notebooks check [--fix]"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from labkit.cli import ci
from labkit.core import shipped
from labkit.core.arguments import new_file, output_directory, readable_file, seconds
from labkit.core.stdout import add_json
from labkit.errors import BadInput, IncomparableRecords


def add_arguments(parser: argparse.ArgumentParser) -> None:
    commands = parser.add_subparsers(dest="notebooks", metavar="COMMAND", required=True)
    run_parser = commands.add_parser("run", help="execute headless; the outcome is the exit status")
    run_parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="01_anatomy, a prefix such as 01, or a path (default: all)",
    )
    run_parser.add_argument(
        "--preset",
        default="",
        help="parameters from the notebook's own presets: report (to be read), ci (a test)",
    )
    run_parser.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="K=V",
        help="one parameter; unknown names are an error",
    )
    run_parser.add_argument(
        "--timeout",
        type=seconds("--timeout"),
        default=900.0,
        help="seconds for one notebook (default 900); its children are ended too",
    )
    run_parser.add_argument(
        "--out",
        default="report/notebooks",
        metavar="DIR",
        help="executed notebooks and the report page",
    )
    run_parser.add_argument(
        "--baseline",
        default="",
        metavar="FILE",
        help="fail when a stack got slower than in this record, beyond the noise",
    )
    run_parser.add_argument(
        "--save-baseline", default="", metavar="FILE", help="write what was measured as a baseline"
    )
    run_parser.add_argument(
        "--save-seconds",
        default="",
        metavar="FILE",
        help="keep the machine's seconds a notebook, for the syllabi; adds to what the file has",
    )
    ci.add_options(run_parser)
    add_json(run_parser)
    check_parser = commands.add_parser(
        "check",
        help="canonical form: no outputs, sorted metadata, one parameters cell, short cells",
    )
    check_parser.add_argument("names", nargs="*", metavar="NAME", help="as for run (default: all)")
    check_parser.add_argument("--fix", action="store_true", help="rewrite what has one right form")


def run(args: argparse.Namespace) -> int:
    return _check(args) if args.notebooks == "check" else _run(args)


def folder() -> Path:
    """notebooks/ of the working directory, else what ships with the lab."""
    here = Path("notebooks")
    return here if here.is_dir() else shipped.notebooks()


def find(names: list[str], syllabi: bool = False) -> list[Path]:
    """Paths of notebooks by name, prefix or path. Raises BadInput with what there is."""
    every = sorted(folder().glob("*.ipynb"))
    if syllabi:
        every += sorted(folder().glob("syllabi/*.ipynb"))
    if not every and not all(Path(n).suffix == ".ipynb" for n in names or [""]):
        raise BadInput(
            f"no notebook in {folder()}",
            why="with nothing to run or check, nothing would be shown",
            fix="call it where a notebooks/ is, or give paths of notebooks",
        )
    if not names:
        return every
    found = []
    for name in names:
        path = Path(name)
        if path.suffix == ".ipynb" and path.exists():
            hits = [path]
        else:
            hits = [p for p in every if p.stem == name or p.stem.startswith(name + "_")]
        if not hits:
            raise BadInput(
                f"no notebook {name!r}",
                why="nothing else is run in its place",
                fix="one of: " + ", ".join(p.stem for p in every),
            )
        found += hits
    return list(dict.fromkeys(found))


def _check(args: argparse.Namespace) -> int:
    from labkit.core.stdout import say
    from labkit.lessons import canonical

    problems, looked = [], find(args.names, syllabi=True)
    for path in looked:
        if args.fix and canonical.fix(path):
            say(f"{path}: fixed")
        problems += canonical.look(path)
    for problem in problems:
        say(str(problem))
    if problems:
        say(f"{len(problems)} problem{'' if len(problems) == 1 else 's'}")
        return 1
    say(f"{len(looked)} notebook{'' if len(looked) == 1 else 's'} in canonical form")
    return 0


def _run(args: argparse.Namespace) -> int:
    from labkit.core import printable
    from labkit.core.stdout import last_line, say, table
    from labkit.core.units import show_s
    from labkit.lessons import parameters
    from labkit.lessons.batch import run_all

    if args.save_seconds:
        from labkit.lessons import syllabus

        syllabus.refuse_overwriting(args.save_seconds)
    if args.baseline:
        readable_file(
            args.baseline, "--baseline", "labkit notebooks run --save-baseline FILE makes one"
        )
    for option in ("--save-baseline", "--save-seconds"):
        if path := getattr(args, option[2:].replace("-", "_")):
            new_file(path, option)
    output_directory(args.out, "--out")
    ci.refuse_strangers(args)
    given = dict(parameters.parse_parameter(text) for text in args.parameter)
    paths = find(args.names)
    try:
        batch = run_all(
            paths,
            Path(args.out),
            preset=args.preset,
            given=given,
            timeout_s=args.timeout,
            baseline=args.baseline,
            save_baseline=args.save_baseline,
            say=None if args.json else say,
        )
    except IncomparableRecords as error:  # before anything ran
        ci.deliver(args, ci.of_refusal(error, "notebooks run"))
        last_line({"notebooks": [], "not_comparable": error.as_json()})
        raise
    ci.deliver(args, ci.of_notebooks(batch, paths))
    if args.save_seconds:
        from labkit.lessons import syllabus

        syllabus.save_measured(args.save_seconds, batch.results, args.preset)
    if not args.json:
        rows = [
            [r.name, r.outcome, show_s(r.seconds), r.slowest, r.error.split("\n")[0][:100]]
            for r in batch.results
        ]
        say(table(rows, ["notebook", "outcome", "took", "slowest cell", "error"]))
        if batch.compared:
            say(
                "slower than the baseline:"
                if batch.slower
                else "no stack got slower than the baseline, as far as these trials can show"
            )
            for line in (*batch.slower, *batch.compared.visible):
                say(f"  {line}")
            for line in batch.compared.left_out:
                say(f"  not compared: {line}")
        say(f"report: {batch.page}")
    if batch.not_comparable:
        print(f"labkit notebooks: {printable.text(batch.not_comparable)}", file=sys.stderr)
    last_line(batch.as_json())
    return batch.code

"""What commands that measure leave for a CI service: JUnit XML, a summary in Markdown, annotations.

    add_options(parser)                    # --junit FILE, --summary FILE
    refuse_strangers(args)                 # before anything runs
    deliver(args, of_run(run, "study"))    # after it; `labkit run`, `ablate` and `study` have a run

The summary goes to FILE, and to the job's page where GITHUB_STEP_SUMMARY names one, which other
steps write to as well. Where GITHUB_ACTIONS is true, what failed is also annotated, on stderr: the
service reads both streams, and stdout ends with the JSON line. Lesson: none; see docs/ci.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.cli import experiments
from labkit.core import github, junit, markdown, outputs, printable, secrets
from labkit.core.arguments import new_file
from labkit.core.beside import replacing
from labkit.core.junit import ERROR, FAILED, PASSED, SKIPPED, Case, Suite
from labkit.core.units import show_s

if TYPE_CHECKING:
    from labkit.core.records import Run, Trial
    from labkit.errors import LabError
    from labkit.lessons.batch import Batch
    from labkit.lessons.execute import Result
    from labkit.lessons.report import Reported

MARK = "<!-- labkit summary -->"
ARMS = ["arm", "outcome", "trials", "median", "interval", "cache", "floor"]


@dataclass(frozen=True)
class Outcome:
    """What one command came to. `summary`: Markdown, of which everything quoted is escaped."""

    suite: Suite
    summary: str


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--junit", default="", metavar="FILE", help="the outcomes as JUnit XML, for a CI service"
    )
    parser.add_argument(
        "--summary",
        default="",
        metavar="FILE",
        help="the figures in Markdown (also appended to $GITHUB_STEP_SUMMARY where it is set)",
    )


def refuse_strangers(args: argparse.Namespace) -> None:
    """Raises BadInput where a file cannot be written, or would replace what is none of ours."""
    if args.junit:
        new_file(args.junit, "--junit")
        junit.refuse_stranger(args.junit)
    if args.summary:
        new_file(args.summary, "--summary")
        if not _is_step_summary(args.summary):
            outputs.refuse_stranger(args.summary, _is_summary, "a summary of the lab", "--summary")


def _is_summary(head: bytes) -> bool:
    return head.startswith(MARK.encode())


def _is_step_summary(path: str) -> bool:
    step = github.summary_file()
    return step is not None and Path(path).resolve() == step.resolve()


def deliver(args: argparse.Namespace, outcome: Outcome) -> None:
    """Write what was asked for, and what the service reads."""
    if args.junit:
        junit.write(outcome.suite, args.junit)
    text = secrets.mask(f"{MARK}\n{outcome.summary}\n")
    if args.summary and not _is_step_summary(args.summary):
        outputs.refuse_stranger(args.summary, _is_summary, "a summary of the lab", "--summary")
        Path(args.summary).parent.mkdir(parents=True, exist_ok=True)
        with replacing(args.summary) as part:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
    if step := github.summary_file():
        try:
            github.append_summary(text, step)
        except OSError as error:
            print(f"labkit: GITHUB_STEP_SUMMARY: {error.strerror}", file=sys.stderr)
    if github.active():
        _annotate(outcome.suite.bad)


def _annotate(bad: Sequence[Case]) -> None:
    """As many lines as are shown; the last one counts those left out."""
    sys.stdout.flush()
    shown = bad if len(bad) <= github.ANNOTATIONS else bad[: github.ANNOTATIONS - 1]
    for case in shown:
        title = f"{case.classname}: {case.name}: {case.kind}"
        print(github.error(case.message or case.kind, title=title, file=case.file), file=sys.stderr)
    if len(shown) < len(bad):
        print(
            github.error("the summary names them", title=f"{len(bad) - len(shown)} more failed"),
            file=sys.stderr,
        )


# -- a run -----------------------------------------------------------------------------------------


def of_run(run: Run, command: str) -> Outcome:
    """A run's trials, one case each; an arm that cannot run here is skipped."""
    cases = tuple(_of_trial(trial, f"labkit.{command}") for trial in run.trials)
    parts = [f"## labkit {markdown.inline(command)}", run_summary(run), _failures(cases)]
    return Outcome(Suite(command, cases, run.created), _joined(parts))


def _of_trial(trial: Trial, classname: str) -> Case:
    name = trial.place
    if trial.ok:
        return Case(classname, name, trial.total_s or 0.0)
    error = trial.error
    return Case(
        classname,
        name,
        trial.total_s or 0.0,
        SKIPPED if trial.outcome == "unavailable" else FAILED,
        trial.outcome,
        error.get("what", trial.outcome),
        "\n".join(filter(None, (error.get("why"), error.get("fix"), trial.log_tail))),
    )


def run_summary(run: Run) -> str:
    """Where it was measured, the arms as a table, and how each mechanism was seen at work."""
    title = str(run.host.get("title") or run.host.get("name") or run.host.get("id") or "")
    stamps = [
        f"{word}: {run.experiment[key]}"
        for key, word in (("simulated", "simulated"), ("replayed_from", "replayed from"))
        if run.experiment.get(key)
    ]
    if not run.arms:
        return markdown.inline(title)
    rows = experiments.summary(run)["results"]
    where = [title, *dict.fromkeys(f"{r['scenario']}, link {r['link']}" for r in rows)]
    head = f"{markdown.inline(' · '.join(filter(None, where)))}"
    return _joined(
        [
            "".join(f"**{markdown.inline(stamp)}**\n\n" for stamp in stamps) + head,
            markdown.table([_arm(run, row) for row in rows], ARMS),
            markdown.folded(
                "evidence",
                markdown.items(f"{r['arm']}: {r['evidence']}" for r in rows if r.get("evidence")),
            )
            if any(row.get("evidence") for row in rows)
            else "",
        ]
    )


def _arm(run: Run, row: dict[str, Any]) -> list[str]:
    others = [t.outcome for t in run.of_arm(row["arm"], only_ok=False) if not t.ok]
    counted = [f"{others.count(o)} {o}" for o in dict.fromkeys(others)]
    outcome = ", ".join([*([f"{row['n']} ok"] if row["n"] else []), *counted]) or "not measured"
    if not row["n"]:
        return [row["arm"], outcome, "0", "", "", "", ""]
    floor_s = row["floor_s"]
    return [
        row["arm"],
        outcome,
        str(row["n"]),
        show_s(row["median_s"]),
        f"{show_s(row['low_s'])} – {show_s(row['high_s'])}",
        row["cache"],
        show_s(floor_s) if floor_s else "",
    ]


# -- notebooks -------------------------------------------------------------------------------------


def of_notebooks(batch: Batch, paths: Iterable[Path]) -> Outcome:
    """Notebooks, one case each, and one a stack that was compared with the baseline."""
    files = {path.stem: str(path) for path in paths}
    cases = [_of_notebook(result, files.get(result.name, "")) for result in batch.results]
    cases += _of_baseline(batch, *(files.values() if len(files) == 1 else ()))
    parts = ["## labkit notebooks run", _notebooks_table(batch.results), _verdict(batch)]
    parts += [
        f"### {markdown.inline(result.name)}\n\n{run_summary(run)}"
        for result in batch.results
        for run in _runs(result)
    ]
    return Outcome(Suite("notebooks run", tuple(cases)), _joined([*parts, _failures(cases)]))


def of_refusal(error: LabError, command: str) -> Outcome:
    """What was found out before anything ran."""
    parts = [f"## labkit {markdown.inline(command)}", _not_comparable(error)]
    return Outcome(Suite(command, (_of_error(error),)), _joined(parts))


def _of_error(error: LabError, file: str = "") -> Case:
    message = ": ".join(filter(None, (error.what, error.why)))
    return Case("baseline", "comparison", 0.0, ERROR, "not_comparable", message, error.fix, file)


def _of_notebook(result: Result, file: str) -> Case:
    if result.outcome == "ok":
        return Case(result.name, "executes", result.seconds)
    first_line = result.error.partition("\n")[0]
    return Case(
        result.name,
        "executes",
        result.seconds,
        FAILED,
        result.outcome,
        first_line[:500] or result.outcome,
        result.error,
        file,
    )


def _of_baseline(batch: Batch, file: str = "") -> list[Case]:
    if error := batch.not_comparable:
        return [_of_error(error, file)]
    if not batch.compared:
        return []
    phases, cases = batch.compared.slower_phases, []
    for stack, of in batch.compared.shifts.items():
        if stack not in phases:
            cases.append(Case("baseline", stack, of["total"].now_s))
            continue
        lost = "; ".join(
            f"{p} took {show_s(of[p].now_s)}, was {show_s(of[p].before_s)}" for p in phases[stack]
        )
        kind = f"{phases[stack][0]} is slower"
        cases.append(Case("baseline", stack, of["total"].now_s, FAILED, kind, lost, "", file))
    return cases


def _runs(result: Result) -> list[Run]:
    from labkit.core import records
    from labkit.errors import BadInput

    found = []
    for path in result.records:
        try:
            found.append(records.read(path))
        except BadInput:
            continue  # a record that is gone, or was damaged since, has no figures
    return found


def _notebooks_table(results: Sequence[Result]) -> str:
    rows = [
        [r.name, r.outcome, show_s(r.seconds), r.slowest, r.error.partition("\n")[0][:200]]
        for r in results
    ]
    return markdown.table(rows, ["notebook", "outcome", "took", "slowest cell", "error"])


def _verdict(batch: Batch) -> str:
    if batch.not_comparable:
        return _not_comparable(batch.not_comparable)
    if not batch.compared:
        return ""
    title = "Slower than the baseline" if batch.slower else "No stack got slower than the baseline"
    parts = [f"### {title}", markdown.items(batch.slower)]
    parts.append(markdown.folded("what would have shown", markdown.items(batch.compared.visible)))
    parts.append(markdown.items(f"not compared: {line}" for line in batch.compared.left_out))
    return _joined(parts)


def _not_comparable(error: LabError) -> str:
    return f"### Not compared with the baseline\n\n{markdown.block(str(error))}"


# -- the report ------------------------------------------------------------------------------------


def of_report(reported: Reported, paths: Iterable[Path]) -> Outcome:
    """The report's run and its notebooks; what failed besides is a case by its own words."""
    files = {path.stem: str(path) for path in paths}
    cases = [_of_trial(t, "labkit.report") for t in (reported.run.trials if reported.run else ())]
    cases += [_of_notebook(result, files.get(result.name, "")) for result in reported.notebooks]
    why = "no time was left for it"
    cases += [Case(name, "executes", 0.0, SKIPPED, "not_run", why) for name in reported.not_run]
    if reported.failed and not any(case.bad for case in cases):
        cases += [Case("labkit.report", "page", 0.0, FAILED, "failed", f) for f in reported.failed]
    parts = ["## labkit report", run_summary(reported.run) if reported.run else ""]
    parts += [_notebooks_table(reported.notebooks), _failures(cases)]
    created = reported.run.created if reported.run else ""
    return Outcome(Suite("report", tuple(cases), created), _joined(parts))


def _failures(cases: Iterable[Case]) -> str:
    bad = [case for case in cases if case.outcome != PASSED]
    parts = [
        markdown.folded(
            f"{case.classname}: {case.name}: {case.kind}: {printable.line(case.message)[:200]}",
            markdown.block(f"{case.message}\n{case.text[-4000:]}"),
        )
        for case in bad
    ]
    return _joined(["### What failed or was left out", *parts] if parts else [])


def _joined(parts: Iterable[str]) -> str:
    return "\n\n".join(filter(None, parts))

"""The report: what the article's advice is worth on this host, on one page that says it in its
first screen.

One HTML file, nothing from outside: figures are drawn in it, executed notebooks are folded into it.
The study is run first, then the notebooks over its record, in the minutes that were given. A failed
part is reported as failed on the page and by the exit code; the page is written all the same.

    labkit report --out report            report/index.html, report/study/*, report/notebooks/*
    labkit report --study DIR             the page of a study that is there; nothing is measured

Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.refusals import refusal
from labkit.errors import LabError
from labkit.lessons import pages, report_parts
from labkit.study import Study, read

if TYPE_CHECKING:
    from labkit.lessons.execute import Result

#: What the notebooks take over a study's record, on two cores; the study gets the other minutes.
NOTEBOOKS_MINUTES = 4.5
#: Of one of which no seconds were kept (notebooks/syllabi/measured.json).
NOTEBOOK_S = 30.0
#: A study in less than this has not five blocks of anything.
LEAST_STUDY_MINUTES = 2.0


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the report runs. `minutes`: of study and notebooks together; `preset`, `link`, `store`,
    `device`: of the study, "" = as it chooses; `study`: one that is there, in place of a new one;
    `notebook_preset`: parameters of the notebooks, each for `timeout_s` seconds at most. `records`:
    further ones to show."""

    minutes: float = 12.6
    preset: str = ""
    link: str = ""
    store: str = ""
    device: str = ""
    study: Path | None = None
    notebook_preset: str = "report"
    timeout_s: float = 900.0
    records: Sequence[Path] = ()


@dataclass(frozen=True)
class Reported:
    """The page that was written, what failed on it ("" of it = all succeeded), and the seconds that
    it took."""

    page: Path
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    study: Study | None = None
    notebooks: tuple[Result, ...] = ()
    not_run: tuple[str, ...] = ()  # notebooks that no time was left for

    @property
    def run(self) -> Run | None:
        """The study's ladder."""
        return self.study.run if self.study else None

    def as_json(self) -> JsonObject:
        return {
            "report": str(self.page),
            **report_parts.figures_of(self.study),
            "failed": list(self.failed),
            "seconds": round(self.seconds, 1),
            "notebooks": {
                n.name: {"outcome": n.outcome, "seconds": n.seconds} for n in self.notebooks
            },
            "not_run": list(self.not_run),
        }


@dataclass
class _Report:
    """The page under way."""

    out: Path
    options: Options
    say: Callable[[str], object]
    began_s: float = field(default_factory=time.monotonic)
    failed: list[str] = field(default_factory=list)

    @property
    def spent_s(self) -> float:
        return time.monotonic() - self.began_s

    def study(self, beside: Sequence[Path]) -> Study | str:
        """The study, or why there is none. `beside`: the notebooks that share its minutes."""
        if self.options.study:
            return read(self.options.study)
        try:
            minutes = self.options.minutes - (NOTEBOOKS_MINUTES if beside else 0.0)
            return _conducted(self.out / "study", self.options, minutes)
        except (LabError, OSError, MemoryError) as error:
            reason = str(refusal(error) or error)
            self.failed.append(f"study: {reason.splitlines()[0]}")
            return reason

    def notebooks(
        self, paths: Sequence[Path], study: Study | str
    ) -> tuple[list[Result], list[str]]:
        """Results of those that there was time for, and the names of the others."""
        from labkit.lessons import execute, parameters, syllabus
        from labkit.stack import placement

        kept = syllabus.measured().get("seconds", {}).get(self.options.notebook_preset, {})
        device = self.options.device
        environment = {placement.ENV: device} if device else {}
        where = study.path if isinstance(study, Study) else None
        offered = {"study": str(where.resolve())} if where else {}
        results, not_run = [], []
        # those that read the study first: they are the page's own, and over in seconds
        for path in sorted(paths, key=lambda p: not parameters.reads_a_study(p)):
            if self.spent_s + kept.get(path.stem, NOTEBOOK_S) > 60 * self.options.minutes:
                not_run.append(path.stem)
                continue
            self.say(f"notebook {path.stem}")
            values = parameters.parameters_for(path, self.options.notebook_preset, {}, offered)
            result = execute.run_one(
                path, self.out / "notebooks", values, self.options.timeout_s, environment
            )
            results.append(result)
            if result.outcome != "ok":
                first_line = result.error.splitlines()[0] if result.error else ""
                self.failed.append(f"{path.stem}: {result.outcome}: {first_line}")
        return sorted(results, key=lambda r: r.name), sorted(not_run)


def report(
    out: Path,
    notebooks: Sequence[Path] | None,
    options: Options = Options(),
    say: Callable[[str], object] = print,
) -> Reported:
    """Run the lab and write out/index.html; no notebook where `notebooks` is None. What fails is
    named in `failed`, never raised (but for Ctrl-C, and BadInput for what can be known before
    anything runs)."""
    from labkit.lessons import parameters

    if notebooks is not None:
        parameters.refuse_nothing(notebooks, options.notebook_preset)
    paths = notebooks or ()
    refuse_strangers(out, paths, options)
    out.mkdir(parents=True, exist_ok=True)
    under_way = _Report(out, options, say)
    study = under_way.study(paths)
    if isinstance(study, Study):
        under_way.failed += report_parts.failures_of(study)
    results, not_run = under_way.notebooks(paths, study)
    if results:
        pages.notebooks_page(results, out / "notebooks")
    say("the page")
    text = report_parts.page(
        study,
        report_parts.Around(
            results=results,
            not_run=not_run,
            preset=options.notebook_preset,
            records=options.records,
            failed=under_way.failed,
            seconds=under_way.spent_s,
        ),
    )
    return Reported(
        pages.write(out / "index.html", text),
        tuple(under_way.failed),
        under_way.spent_s,
        study if isinstance(study, Study) else None,
        tuple(results),
        tuple(not_run),
    )


def _conducted(out: Path, options: Options, minutes: float) -> Study:
    from labkit.study.conduct import StudyOptions, conduct
    from labkit.viz.live import progress

    chosen = StudyOptions(
        out=out,
        minutes=max(minutes, LEAST_STUDY_MINUTES),
        preset=options.preset,
        link=options.link,
        store=options.store,
        device=options.device,
        overwrite=True,
    )
    return conduct(chosen, progress=progress())


def refuse_strangers(out: Path, notebooks: Sequence[Path], options: Options) -> None:
    """Raises BadInput where the report would replace what is none of the lab's, before ten minutes
    are spent on it."""
    from labkit.core import records
    from labkit.lessons import batch
    from labkit.study.record import LADDER

    pages.refuse_strangers([out / "index.html"])
    if options.study:
        read(options.study)
    else:
        records.refuse_overwriting(out / "study" / LADDER, overwrite=True)
    batch.refuse_strangers(notebooks, out / "notebooks")

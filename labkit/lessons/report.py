"""The report: this host's lab on one page – what it can show, the naive cold start, every notebook
executed.

One HTML file, nothing from outside: figures are drawn in it, executed notebooks are folded into it.
A failed part is reported as failed on the page and by the exit code; the page is written all the
same.

    labkit report --out report            report/index.html, report/naive.json, report/notebooks/*

Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.refusals import refusal
from labkit.errors import BadInput, LabError
from labkit.lessons import pages

if TYPE_CHECKING:
    from labkit.lessons.execute import Result


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the report runs: the naive stack with the checkpoint `preset`, `blocks` times over
    `link`, on `device` ("" = cuda where torch can use it, else cpu); the notebooks with the
    parameters of `notebook_preset`, each for `timeout_s` seconds at most. `records`: further ones
    to show."""

    preset: str = "small"
    blocks: int = 5
    link: str = "loopback"
    device: str = ""
    notebook_preset: str = "ci"
    timeout_s: float = 900.0
    records: Sequence[Path] = ()


@dataclass(frozen=True)
class Reported:
    """The page that was written, what failed on it ("" of it = all succeeded), and the seconds that
    it took."""

    page: Path
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    run: Run | None = None
    notebooks: tuple[Result, ...] = ()

    def as_json(self) -> JsonObject:
        from labkit.core import stats

        good = [t.total_s for t in self.run.trials if t.ok and t.total_s] if self.run else []
        return {
            "report": str(self.page),
            "device": (
                (self.run.experiment.get("placement") or {}).get("device") if self.run else None
            ),
            "failed": list(self.failed),
            "seconds": round(self.seconds, 1),
            "first_token_s": stats.median(good) if good else None,
            "trials": len(self.run.trials) if self.run else 0,
            "notebooks": {
                n.name: {"outcome": n.outcome, "seconds": n.seconds} for n in self.notebooks
            },
        }


def report(
    out: Path,
    notebooks: Sequence[Path],
    options: Options = Options(),
    say: Callable[[str], object] = print,
) -> Reported:
    """Run the lab and write out/index.html. What fails is named in `failed`, never raised (but for
    Ctrl-C, and BadInput where there is no notebook)."""
    from labkit import __version__
    from labkit.core.host import card
    from labkit.lessons import execute, parameters
    from labkit.stack import placement

    parameters.refuse_nothing(notebooks, options.notebook_preset)
    began_s, failed, parts = time.monotonic(), [], []
    refuse_strangers(out, notebooks)
    out.mkdir(parents=True, exist_ok=True)
    say(f"the naive stack, {options.blocks} cold starts of {options.preset}")
    run = None
    try:
        run = _naive(out, options)
        parts.append(run_html(run, "One naive cold start"))
        failed += [f"naive, block {t.block + 1}: {t.outcome}" for t in run.failed]
    except (LabError, OSError, MemoryError) as error:
        reason = str(refusal(error) or error)
        failed.append(f"naive: {reason.splitlines()[0]}")
        parts.append(_error_html("One naive cold start", reason))
    parts += [record_html(path) for path in options.records]
    say("what this host can show")
    parts.append(doctor_html())
    environment = {placement.ENV: options.device} if options.device else {}
    results = []
    for path in notebooks:
        say(f"notebook {path.stem}")
        values = parameters.parameters_for(path, options.notebook_preset, {})
        result = execute.run_one(path, out / "notebooks", values, options.timeout_s, environment)
        results.append(result)
        if result.outcome != "ok":
            first_line = result.error.splitlines()[0] if result.error else ""
            failed.append(f"{path.stem}: {result.outcome}: {first_line}")
    pages.notebooks_page(results, out / "notebooks")
    parts.append(notebooks_html(results, options.notebook_preset))
    seconds = time.monotonic() - began_s
    text = pages.document(
        "report.html.j2",
        "The cold-start lab on this host",
        card=card(),
        seconds=seconds,
        failed=failed,
        parts=parts,
        version=__version__,
    )
    target = pages.write(out / "index.html", text)
    return Reported(target, tuple(failed), seconds, run, tuple(results))


def refuse_strangers(out: Path, notebooks: Sequence[Path]) -> None:
    """Raises BadInput where the report would replace what is none of the lab's, before ten minutes
    are spent on it."""
    from labkit.core import records
    from labkit.lessons import batch

    pages.refuse_strangers([out / "index.html"])
    records.refuse_overwriting(out / "naive.json", overwrite=True)
    batch.refuse_strangers(notebooks, out / "notebooks")


def _naive(out: Path, options: Options) -> Run:
    from labkit.stack import experiment
    from labkit.viz.live import progress

    return experiment(
        ["naive"],
        preset=options.preset,
        blocks=options.blocks,
        link=options.link,
        device=options.device,
        out=out / "naive.json",
        overwrite=True,
        progress=progress(options.blocks),
    )


def doctor_html() -> str:
    """What is missing or degraded as a table, with why and the fix; what is there, folded."""
    from labkit.core import capabilities

    found = capabilities.doctor()
    return pages.render(
        "report_doctor.html.j2",
        there=[f for f in found if f.state == "OK"],
        lacking=[f for f in found if f.state != "OK"],
    )


def run_html(run: Run, title: str, level: int = 2) -> str:
    """A run's figures: waterfall of each arm, all trials, medians where there are several arms."""
    from labkit.viz import compare
    from labkit.viz.stacking import claims_table, effects_table
    from labkit.viz.text_summary import text
    from labkit.viz.waterfall import waterfall

    figures, comparisons = [], []
    arms = [a for a in run.arm_names if run.of_arm(a)]
    if len(arms) > 1:
        figures += [compare.phases(run, arms), compare.compare(run, arms=arms)]
    elif arms:
        figures.append(waterfall(run, arms[0]))
    if arms:
        figures.append(compare.strip(run))
    if len(arms) > 1 and "naive" in arms:
        comparisons = [
            ("Against naive", effects_table(run)),
            ("The article's claims", claims_table([run])),
        ]
    return pages.render(
        "report_run.html.j2",
        title=title,
        level=level,
        figures=figures,
        comparisons=comparisons,
        words=text(run, trials=True),
    )


def record_html(path: Path, level: int = 2) -> str:
    """A further record on the page; one that cannot be read or drawn says why in its place."""
    from labkit.core import printable, records
    from labkit.lessons import gpu_record, gpu_summary
    from labkit.stack import replay

    try:
        if replay.of_gpu_trials(path):
            return gpu_summary.html(
                (gpu_record.read(path),), f"{printable.line(path.stem)}: GPU trials", level
            )
        run = printable.every(records.read(path))
        return run_html(run, f"{path.stem}: {', '.join(run.arm_names)}", level)
    except (BadInput, LabError) as error:
        return _error_html(printable.line(path.stem), str(error), level)


def _error_html(title: str, error: str, level: int = 2) -> str:
    return pages.render("report_error.html.j2", title=title, error=error, level=level)


def notebooks_html(results: Sequence[Result], preset: str) -> str:
    """Every executed notebook, folded; a failed one is open."""
    bodies = [pages.notebook_body(r.executed, links="") if r.executed else "" for r in results]
    # Headings inside begin two levels lower, so that the page keeps one outline.
    lowered = [
        re.sub(r"(</?h)([1-3])\b", lambda found: f"{found[1]}{int(found[2]) + 2}", body)
        for body in bodies
    ]
    return pages.render(
        "report_notebooks.html.j2",
        notebooks=list(zip(results, lowered, strict=True)),
        preset=preset,
    )

"""The parts of the report's page: what is on each, as values for its template. Nothing is measured
here.

    page(study, Around(results=…, preset="report"))      the whole document

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.errors import BadInput, LabError
from labkit.lessons import pages
from labkit.study import Study

if TYPE_CHECKING:
    from labkit.lessons.execute import Result
    from labkit.stack.claims import Row
    from labkit.study.answers import Answer, Claimed


@dataclass(frozen=True, kw_only=True)
class Around:
    """What stands on the page beside the study."""

    results: Sequence[Result] = ()
    not_run: Sequence[str] = ()
    preset: str = ""
    records: Sequence[Path] = ()
    failed: Sequence[str] = ()
    seconds: float = 0.0


def page(study: Study | str, around: Around) -> str:
    """The document. `study`: or why there is none."""
    from labkit import __version__
    from labkit.core.host import card

    parts = [first_screen(study), below(study)] if isinstance(study, Study) else []
    return pages.document(
        "report.html.j2",
        "The cold-start lab on this host",
        reason="" if isinstance(study, Study) else study,
        card=study.run.host if isinstance(study, Study) else card(),
        around=around,
        parts=[*parts, *(record_html(path) for path in around.records)],
        lacking=lacking_html(),
        notebooks=notebooks_html(around) if around.results or around.not_run else "",
        version=__version__,
    )


def figures_of(study: Study | None) -> JsonObject:
    """The page's figures, for the machine's line."""
    answer = _answer(study) if study else None
    if study is None or answer is None:
        return {"study": None, "device": None, "naive_s": None, "best_s": None, "trials": 0}
    return {
        "study": str(study.path) if study.path else None,
        "device": (study.run.experiment.get("conditions") or {}).get("device"),
        "naive_s": answer.naive.median_s,
        "best": answer.best_label,
        "best_s": answer.best.median_s,
        "sure": round(answer.sure, 4),
        "floor_s": answer.floor_s,
        "trials": len(study.run.trials),
    }


def _answer(study: Study) -> Answer | None:
    from labkit.study.answers import answered

    try:
        return answered(study)
    except BadInput:
        return None


def failures_of(study: Study) -> list[str]:
    """Trials of a study that failed, a line each."""
    lines = [f"study, {t.failure}" for t in study.failed]
    return lines + ([] if _answer(study) else ["study: no cold start of naive succeeded"])


def first_screen(study: Study) -> str:
    """The answer: a sentence, the ladder, what to do first, the article's table."""
    from labkit.lessons import gpu_goals, gpu_record
    from labkit.study.answers import article
    from labkit.viz import arm_rows
    from labkit.viz.ladder import ladder

    answer = _answer(study)
    if answer is None:
        return error_html("No answer", "No cold start of the naive stack succeeded in this study.")
    try:
        recorded = gpu_goals.claimed(gpu_record.recorded())
    except LabError:  # a damaged record is named where it is shown
        recorded = []
    return pages.render(
        "report_answer.html.j2",
        answer=answer,
        stamp=arm_rows.stamp(study.run),
        setup=setup(answer),
        sure=sure_words(answer),
        left=left_words(answer),
        gain=1 / answer.best.ratio["median"] if answer.best.ratio else 0.0,
        wide=ladder(answer),
        narrow=ladder(answer, narrow=True).named("ladder-narrow"),
        steps=_first_steps(study),
        claims=[_claimed(c) for c in article(study, recorded)],
    )


def _claimed(row: Claimed) -> JsonObject:
    """A row of the article's table in words."""
    return {
        "label": row.label,
        "claim": row.claim,
        "range": _range_words(row),
        "here": [_judged(r) for r in row.here],
        "recorded": [_judged(r) for r in row.recorded],
        "why_not": row.why_not,
        "published": row.published,
    }


def _range_words(row: Claimed) -> str:
    """The claimed range as the table's own measure."""
    low, high = row.low, row.high
    if not high:
        return ""
    return f"{1 / high:.1f}–{1 / low:.1f}×" if low else f"{1 / high:.0f}× or more"


def _judged(row: Row) -> JsonObject:
    from labkit.viz.ladder import times_faster

    whole = row.total and times_faster(row.total)
    return {
        "technique": row.technique,
        "ratio": times_faster(row.ratio),
        "whole": whole if whole and row.total != row.ratio else "",
        "n": row.ratio.get("n", 0),
        "verdict": row.verdict,
        "wanting": row.wanting,
        "against": row.against,
        "setup": row.setup,
        "recorded_on": row.recorded_on,
    }


def setup(answer: Answer) -> str:
    """Cache state, n, link, model and host in one line."""
    from labkit.viz import arm_rows

    both = list(dict.fromkeys((answer.naive.arm, answer.best.arm)))
    return arm_rows.caption(answer.naive.run, both)


def sure_words(answer: Answer) -> str:
    """How sure it is that the best is the best, in words."""
    few = [t.arm for t in (answer.naive, answer.best) if not t.enough]
    if few:
        return f"fewer than {stats.MIN_PAIRS} starts of {' and '.join(few)}: no claim yet"
    if answer.best.arm == answer.naive.arm:
        return "nothing that was tried here is faster than naive"
    if answer.second is None:
        return ""
    share = f"{100 * answer.sure:.0f} %" if answer.sure < 0.995 else "over 99 %"
    return f"{share} sure (paired bootstrap) that it beats {answer.second_label}"


def left_words(answer: Answer) -> str:
    """What limits what is left."""
    best = answer.best
    phase, took_s = answer.longest_left
    if not phase:
        return ""
    words = f"Longest in what is left: {phase.replace('_', ' ')}, {show_s(took_s)}"
    if best.floor_s:
        share = f"{100 * best.floor_s / best.median_s:.0f} %"
        words += f"; {share} of the best start is its own bytes ÷ the link’s rate"
    return words + "."


def _first_steps(study: Study) -> list[JsonObject]:
    """Gain against effort, as far as the study tells."""
    from labkit.decide.first_steps import first_steps

    gains = {
        "measured": "saves {gain} ({low} – {high}), measured",
        "at most": "saves {gain} at most, not measured",
        "not significant": "no gain was shown ({gain} at most)",
    }
    return [
        {
            "title": step.title,
            "gain": gains.get(step.trust, "{gain}, {trust}").format(
                gain=show_s(step.gain_s),
                low=show_s(step.low_s),
                high=show_s(step.high_s),
                trust=step.trust,
            ),
            "trust": step.trust,
            "technique": step.technique,
            "effort": step.effort,
            "effort_why": step.effort_why,
        }
        for step in first_steps(study)
    ]


def below(study: Study) -> str:
    """Naive and the best stack on one time axis, then each arm's evidence."""
    from labkit.viz.waterfall import waterfall

    answer = _answer(study)
    if answer is None:
        return evidence_html(study)
    until_s = max(answer.naive.trial.first_token_s, answer.best.trial.first_token_s) * 1.01
    arms = dict.fromkeys((answer.naive.arm, answer.best.arm))
    return pages.render(
        "report_waterfalls.html.j2",
        waterfalls=[waterfall(study.run, arm, until_s=until_s) for arm in arms],
    ) + evidence_html(study)


def evidence_html(study: Study) -> str:
    """Each arm, folded: its mechanisms, how they were seen, its cache proof, its failures."""
    from labkit.study.answers import timed, why_not
    from labkit.viz.text_summary import text

    arms = []
    for arm in dict.fromkeys((*study.run.arm_names, *study.left_out)):
        known = timed(study.run, arm)
        failed = [t for t in study.run.of_arm(arm, only_ok=False) if not t.ok]
        arms.append(
            {
                "name": arm,
                "timed": known,
                "why": study.left_out.get(arm) or ("" if known else why_not(study, arm)),
                "failed": [f"block {t.block + 1}: {t.outcome}" for t in failed],
                "words": text(study.run, arm, trials=True) if known else "",
            }
        )
    return pages.render("report_evidence.html.j2", arms=arms)


def lacking_html() -> str:
    """What this host cannot show, grouped by what one command would unlock."""
    from labkit.core import capabilities, probes, unlocks

    found = capabilities.doctor()
    return pages.render(
        "report_doctor.html.j2",
        unlocks=unlocks.grouped(found),
        there=[f for f in found if f.state == "OK"],
        titles={name: probe.title for name, probe in probes.PROBES.items()},
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
        return error_html(printable.line(path.stem), str(error), level)


def error_html(title: str, error: str, level: int = 2) -> str:
    return pages.render("report_error.html.j2", title=title, error=error, level=level)


def notebooks_html(around: Around) -> str:
    """Every executed notebook, folded; a failed one is open."""
    bodies = [
        pages.notebook_body(r.executed, links="") if r.executed else "" for r in around.results
    ]
    # Headings inside begin two levels lower, so that the page keeps one outline.
    lowered = [
        re.sub(r"(</?h)([1-3])\b", lambda found: f"{found[1]}{int(found[2]) + 2}", body)
        for body in bodies
    ]
    return pages.render(
        "report_notebooks.html.j2",
        notebooks=list(zip(around.results, lowered, strict=True)),
        preset=around.preset,
        not_run=around.not_run,
    )

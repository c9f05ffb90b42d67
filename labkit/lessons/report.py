"""The report: this host's lab on one page – what it can show, the naive cold start, every notebook
executed.

One HTML file, nothing from outside: figures are drawn in it, executed notebooks are folded into it.
A failed part is reported as failed on the page and by the exit code; the page is written all the
same.

    labkit report --out report            report/index.html, report/naive.json, report/notebooks/*

Lesson: notebooks/00_start_here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from labkit.core.records import Run
from labkit.core.refusals import refusal
from labkit.errors import BadInput, LabError
from labkit.lessons import pages


@dataclass(frozen=True)
class Reported:
    page: Path
    failed: tuple[str, ...] = ()
    seconds: float = 0.0
    run: Run | None = None
    notebooks: tuple[Any, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
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
    *,
    preset: str = "small",
    blocks: int = 5,
    link: str = "loopback",
    notebook_preset: str = "ci",
    records: Sequence[Path] = (),
    timeout_s: float = 900.0,
    device: str = "",
    say: Callable[[str], Any] = print,
) -> Reported:
    """Run the lab and write out/index.html, on a GPU where there is one that torch can use
    (`device`: cpu or cuda). What fails is named in `failed`, never raised (but for Ctrl-C, and
    BadInput where there is no notebook)."""
    from labkit.lessons import execute
    from labkit.stack import placement

    execute.refuse_nothing(notebooks, notebook_preset)
    began_s, failed, parts = time.monotonic(), [], []
    refuse_strangers(out, notebooks)
    out.mkdir(parents=True, exist_ok=True)
    say(f"the naive stack, {blocks} cold starts of {preset}")
    run = None
    try:
        run = _naive(out, preset, blocks, link, device)
        parts.append(run_html(run, "One naive cold start"))
        failed += [f"naive, block {t.block + 1}: {t.outcome}" for t in run.failed]
    except (LabError, OSError, MemoryError) as error:
        said = refusal(error) or error
        failed.append(f"naive: {str(said).splitlines()[0]}")
        parts.append(f'<h2>One naive cold start</h2><pre class="bad">{escape(str(said))}</pre>')
    for path in records:
        parts.append(record_html(path))
    say("what this host can show")
    parts.append(doctor_html())
    results: list[Any] = []
    for path in notebooks:
        say(f"notebook {path.stem}")
        values = execute.parameters_for(path, notebook_preset, {})
        results.append(
            execute.run_one(
                path,
                out / "notebooks",
                values,
                timeout_s,
                {placement.ENV: device} if device else {},
            )
        )
        if results[-1].outcome != "ok":
            failed.append(
                f"{path.stem}: {results[-1].outcome}:"
                f" {results[-1].error.splitlines()[0] if results[-1].error else ''}"
            )
    pages.notebooks_page(results, out / "notebooks")
    parts.append(notebooks_html(results, notebook_preset))
    seconds = time.monotonic() - began_s
    target = out / "index.html"
    pages.write(
        target,
        pages.page(
            "The cold-start lab on this host", _head(failed, seconds) + "".join(parts), _foot()
        ),
    )
    return Reported(target, tuple(failed), seconds, run, tuple(results))


def refuse_strangers(out: Path, notebooks: Sequence[Path]) -> None:
    """Raises BadInput where the report would replace what is none of the lab's, before ten minutes
    are spent on it."""
    from labkit.core import records
    from labkit.lessons import execute

    pages.refuse_strangers([out / "index.html"])
    records.refuse_overwriting(out / "naive.json", overwrite=True)
    execute.refuse_strangers(notebooks, out / "notebooks")


def _naive(out: Path, preset: str, blocks: int, link: str, device: str) -> Run:
    from labkit.stack import experiment
    from labkit.viz.live import progress

    return experiment(
        ["naive"],
        preset=preset,
        blocks=blocks,
        link=link,
        device=device,
        out=out / "naive.json",
        overwrite=True,
        progress=progress(blocks),
    )


def _head(failed: Sequence[str], seconds: float) -> str:
    from labkit.core.host import card
    from labkit.core.units import show_s

    state = (
        f'<p class="bad">{len(failed)} failed:</p><ul>'
        + "".join(f"<li>{escape(f)}</li>" for f in failed)
        + "</ul>"
        if failed
        else '<p class="good">Everything came through.</p>'
    )
    return (
        f"<h1>The cold-start lab on this host</h1><p>{escape(card()['title'])} ·"
        f" {escape(card()['distribution'])}, kernel {escape(card()['kernel'])} · measured in"
        f" {show_s(seconds)}</p>{state}<p>A cold start runs from the request that finds nothing"
        " running to the first token at the client that sent it. Below: where the time of the"
        " naive stack goes here, what this host can show, and every notebook as it ran a moment"
        " ago.</p>"
    )


def _foot() -> str:
    from labkit import __version__

    return (
        f"Made by labkit {__version__}. Figures are drawn from the records beside this page;"
        " nothing on it comes from elsewhere."
    )


def doctor_html() -> str:
    """What is missing or degraded as a table, with why and the fix; what is there, folded."""
    import re

    from labkit.core import capabilities

    def said(text: str) -> str:
        return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))

    def rows(states: tuple[str, ...]) -> list[list[str]]:
        marks = {"OK": "good", "DEGRADED": "", "MISSING": "bad"}
        return [
            [
                f'<span class="{marks[f.state]}">{f.state}</span>',
                f"<code>{escape(f.name)}</code>",
                said(f.missing or f.detail),
                said(f.why),
                f"<code>{escape(f.fix)}</code>" if f.fix else "",
            ]
            for f in found
            if f.state in states
        ]

    found, head = (
        capabilities.doctor(),
        ["state", "capability", "found", "what it unlocks", "to change it"],
    )
    there, lacking = rows(("OK",)), rows(("DEGRADED", "MISSING"))
    parts = [
        "<h2>What this host can show</h2><p>Each capability was tried a moment ago. What is missing"
        " costs a mechanism, never the meaning of a number.</p>"
    ]
    if lacking:
        parts.append(pages.table_html(head, lacking))
    parts.append(
        f"<details><summary>{len(there)} capabilities are"
        f" there</summary>{pages.table_html(head[:4], [r[:4] for r in there])}</details>"
    )
    return "".join(parts)


def run_html(run: Run, title: str, level: int = 2) -> str:
    """A run's figures: waterfall of each arm, all trials, medians where there are several arms."""
    from labkit.viz import compare
    from labkit.viz.text_summary import text
    from labkit.viz.waterfall import waterfall

    parts = [f"<h{level}>{escape(title)}</h{level}>"]
    arms = [a for a in run.arm_names if run.of_arm(a)]
    if len(arms) > 1:
        parts += [compare.phases(run, arms).html(), compare.compare(run, arms=arms).html()]
    elif arms:
        parts.append(waterfall(run, arms[0]).html())
    if arms:
        parts.append(compare.strip(run).html())
    if len(arms) > 1 and "naive" in arms:
        from labkit.viz.stacking import claims_table, effects_table

        parts += [
            "<p><b>Against naive</b></p>",
            effects_table(run).html(),
            "<p><b>The article's claims</b></p>",
            claims_table([run]).html(),
        ]
    return (
        "\n".join(parts) + "<details><summary>The record in"
        f" words</summary><pre>{escape(text(run, trials=True))}</pre></details>"
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
        return (
            f"<h{level}>{escape(printable.line(path.stem))}</h{level}><pre"
            f' class="bad">{escape(str(error))}</pre>'
        )


def notebooks_html(results: Sequence[Any], preset: str) -> str:
    """Every executed notebook, folded; a failed one is open."""
    from labkit.core.units import show_s

    parts = [
        "<h2>The notebooks, run headless</h2><p>With the parameters of their"
        f" <code>{escape(preset)}</code> preset; exercises were filled with their solutions. In"
        " JupyterLab (<code>make lab</code>) you predict first and solve them yourself.</p>"
    ]
    for r in results:
        body = pages.notebook_body(r.executed, links="") if r.executed else ""
        # Headings inside begin two levels lower, so that the page keeps one outline.
        body = (
            body.replace("<h2", "<h4")
            .replace("</h2>", "</h4>")
            .replace("<h3", "<h5")
            .replace("</h3>", "</h5>")
            .replace("<h1", "<h3")
            .replace("</h1>", "</h3>")
        )
        error = f'<pre class="bad">{escape(r.error)}</pre>' if r.error else ""
        parts.append(
            f'<details class="notebook"{" open" if r.outcome != "ok" else ""}>'
            f"<summary><b>{escape(r.name)}</b> – {pages.outcome_html(r.outcome)},"
            f" {show_s(r.seconds)}</summary>{error}{body}</details>"
        )
    return "\n".join(parts)

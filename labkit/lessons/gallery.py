"""The gallery: executed notebooks of this host, and the figures of every recorded one, as static
HTML.

    build(Path("site"), executed=Path("report/notebooks"))      site/index.html,
        site/<notebook>.html, site/recorded/<host>/<run>.html

Recorded runs keep their stamp; hosts stand under each other and are never mixed in one figure.
Lesson: notebooks/09_decide."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path

from labkit.errors import BadInput, LabError
from labkit.lessons import canonical, gpu_record, gpu_summary, pages, report
from labkit.stack import replay


@dataclass(frozen=True)
class Built:
    page: Path
    notebooks: int
    runs: int
    skipped: tuple[str, ...] = ()


def build(out: Path, executed: Path, own_runs: list[Path] | None = None) -> Built:
    """Write the gallery from what was executed (see `labkit notebooks run`) and recorded. What
    cannot be drawn is named on the page."""
    pages.refuse_strangers([out / "index.html"])
    notebooks = sorted(executed.glob("*.ipynb"))
    if not notebooks:
        raise BadInput(
            f"no executed notebook in {executed}",
            why="a gallery of nothing shows nothing",
            fix="labkit notebooks run, or labkit site --execute",
        )
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for path in notebooks:
        lab = canonical.load(path)["metadata"].get("labkit", {})
        pages.write(
            out / f"{path.stem}.html", pages.page(path.stem, _crumb() + pages.notebook_body(path))
        )
        rows.append(
            [
                f'<a href="{escape(path.stem)}.html">{escape(path.stem)}</a>',
                escape(str(lab.get("question", ""))),
                f"{lab.get('minutes', '')} min",
            ]
        )
    body = (
        "<h1>The cold-start lab: gallery</h1><p>Notebooks as they ran headless, and the records of"
        " every host, drawn by the same code.</p>"
    )
    body += "<h2>Notebooks</h2>" + pages.table_html(["notebook", "question", "for a learner"], rows)
    skipped: list[str] = []
    runs, listed = 0, ""
    for host, names in _by_host().items():
        items = ""
        for name in names:
            try:
                run = replay.replay(name)
                page = out / "recorded" / f"{name}.html"
                pages.write(
                    page, pages.page(name, _crumb("../../") + report.run_html(run, name, 1))
                )
            except LabError as error:
                skipped.append(f"{name}: {error.what}")
                continue
            runs += 1
            items += (
                f'<li><a href="recorded/{escape(name)}.html">{escape(name.split("/", 1)[1])}</a> –'
                f" {escape(', '.join(run.arm_names)[:160])}</li>"
            )
            title = str(run.host.get("title", host))
        for name in (n for n in gpu_record.names() if n.partition("/")[0] == host):
            try:
                trials = gpu_record.read(gpu_record.folder() / f"{name}.json", name)
                pages.write(
                    out / "recorded" / f"{name}.html",
                    pages.page(
                        name,
                        _crumb("../../")
                        + gpu_summary.html(
                            (trials,), f"{name}: GPU trials with the {trials.preset} shape"
                        ),
                    ),
                )
            except LabError as error:
                skipped.append(f"{name}: {error.what}")
                continue
            runs += 1
            worked = sum(t["outcome"] == "ok" for t in trials.trials)
            items += (
                f'<li><a href="recorded/{escape(name)}.html">{escape(name.split("/", 1)[1])}</a> –'
                f" GPU trials: {worked} of {len(trials.trials)} came through</li>"
            )
            title = trials.title
        if items:
            listed += f"<h3>{escape(title)}</h3><ul>{items}</ul>"
    for path in own_runs or []:
        target = out / "runs" / f"{path.stem}.html"
        pages.write(target, pages.page(path.stem, _crumb("../") + report.record_html(path, 1)))
        listed += (
            f'<p><a href="runs/{escape(path.stem)}.html">{escape(path.stem)}</a> (this host)</p>'
        )
        runs += 1
    body += "<h2>Recorded runs, by host</h2>" + (listed or "<p>None.</p>")
    if skipped:
        body += (
            "<h2>Not drawn</h2><ul>"
            + "".join(f'<li class="bad">{escape(s)}</li>' for s in skipped)
            + "</ul>"
        )
    target = out / "index.html"
    pages.write(target, pages.page("The cold-start lab: gallery", body))
    return Built(target, len(notebooks), runs, tuple(skipped))


def _crumb(up: str = "") -> str:
    return f'<p><a href="{up}index.html">Gallery</a></p>'


def _by_host() -> dict[str, list[str]]:
    hosts: dict[str, list[str]] = {}
    for name in replay.names():
        hosts.setdefault(name.split("/", 1)[0], []).append(name)
    for name in gpu_record.names():
        hosts.setdefault(name.split("/", 1)[0], [])  # a host may have nothing else
    return hosts

"""The gallery: executed notebooks of this host, and the figures of every recorded one, as static
HTML.

    build(Path("site"), executed=Path("report/notebooks"))      site/index.html,
        site/<notebook>.html, site/recorded/<host>/<run>.html

Recorded runs keep their stamp; hosts stand under each other and are never mixed in one figure.
Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import BadInput, LabError
from labkit.lessons import canonical, gpu_record, gpu_summary, pages, report_parts
from labkit.stack import replay

TITLE = "The cold-start lab: gallery"


@dataclass(frozen=True)
class Built:
    page: Path
    notebooks: int
    runs: int
    skipped: tuple[str, ...] = ()


def build(out: Path, executed: Path, own_runs: Sequence[Path] = ()) -> Built:
    """Write the gallery from what was executed (see `labkit notebooks run`) and recorded. What
    cannot be drawn is named on the page."""
    pages.refuse_strangers([out / "index.html"])
    paths = sorted(executed.glob("*.ipynb"))
    if not paths:
        raise BadInput(
            f"no executed notebook in {executed}",
            why="a gallery of nothing shows nothing",
            fix="labkit notebooks run, or labkit site --execute",
        )
    notebooks = {}
    for path in paths:
        notebooks[path.stem] = canonical.load(path)["metadata"].get("labkit", {})
        _write(out / f"{path.stem}.html", path.stem, pages.notebook_body(path))
    skipped: list[str] = []
    hosts = []
    count = len(own_runs)
    for host, names in _by_host().items():
        title, entries = host, []
        for name in names:
            try:
                title, body, summary = _drawn(name)
                _write(out / "recorded" / f"{name}.html", name, body, "../../")
            except LabError as error:
                skipped.append(f"{name}: {error.what}")
                continue
            entries.append((name, summary))
        if entries:
            hosts.append((title, entries))
            count += len(entries)
    for path in own_runs:
        _write(
            out / "runs" / f"{path.stem}.html", path.stem, report_parts.record_html(path, 1), "../"
        )
    index = pages.document(
        "gallery.html.j2",
        TITLE,
        notebooks=notebooks,
        hosts=hosts,
        own=[path.stem for path in own_runs],
        skipped=skipped,
    )
    target = pages.write(out / "index.html", index)
    return Built(target, len(notebooks), count, tuple(skipped))


def _drawn(name: str) -> tuple[str, str, str]:
    """A record's host, its page and its line in the list. Raises LabError where it cannot be
    drawn."""
    if name not in gpu_record.names():
        run = replay.replay(name)
        title = str(run.host.get("title", name.partition("/")[0]))
        return title, report_parts.run_html(run, name, 1), ", ".join(run.arm_names)[:160]
    trials = gpu_record.read(gpu_record.folder() / f"{name}.json", name)
    body = gpu_summary.html((trials,), f"{name}: GPU trials with the {trials.preset} shape")
    succeeded = sum(t["outcome"] == "ok" for t in trials.trials)
    return trials.title, body, f"GPU trials: {succeeded} of {len(trials.trials)} passed"


def _write(path: Path, title: str, body: str, up: str = "") -> None:
    pages.write(path, pages.document("gallery_page.html.j2", title, body=body, up=up))


def _by_host() -> dict[str, list[str]]:
    """Names of records by host: its runs, then its GPU trials."""
    hosts: dict[str, list[str]] = {}
    for name in [*replay.names(), *gpu_record.names()]:
        hosts.setdefault(name.partition("/")[0], []).append(name)
    return hosts

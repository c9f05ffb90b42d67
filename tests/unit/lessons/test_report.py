"""The report's page says the study's answer, what it lacks and what failed, and nothing twice."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.core import capabilities, records
from labkit.core.probes import Capability
from labkit.errors import BadInput
from labkit.lessons import execute, report, report_parts, syllabus
from labkit.study import record

FIXTURES = Path(__file__).parents[3] / "data" / "fixtures"
NOTEBOOK = Path(__file__).parents[3] / "notebooks" / "00_start_here.ipynb"


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    directory = tmp_path_factory.mktemp("study")
    shutil.copy(FIXTURES / "fixture_study.json", directory / record.LADDER)
    return directory


@pytest.fixture(autouse=True)
def probed(monkeypatch):
    found = [Capability("criu", False, "no criu", "", "make host-tools"), Capability("fuse", True)]
    monkeypatch.setattr(capabilities, "doctor", lambda: found)


@pytest.fixture(scope="module")
def page(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(capabilities, "doctor", list)
        return report_parts.page(record.read(study), report_parts.Around())


def test_the_first_heading_is_the_answer(page):
    (heading,) = re.findall(r"<h1>(.*?)</h1>", page)
    words = re.sub(r"<[^>]+>", "", heading)
    assert words == (
        "From nothing to the first token: 15.6 s naive, 3.88 s with the best stack here"
        " (lazy pull + overlap), and 2.00 s are the fewest bytes ÷ the link’s rate."
    )


def test_what_is_simulated_is_stamped_before_the_answer(page):
    assert page.index("simulated: fixture, not measured") < page.index("<h1>")


def test_a_whole_study_has_no_row_without_a_verdict_or_a_reason(page):
    assert "not in this run" not in page and "not in this study" not in page
    assert "criu: no criu (make host-tools)" in page and "recorded on" in page


def test_an_arm_left_out_for_time_says_how_long_it_would_take(page):
    assert "not in the time given: about 60 s more, --minutes 10" in page


def test_a_page_of_a_study_measures_nothing_and_says_its_figures(study, tmp_path):
    made = report.report(tmp_path, None, report.Options(study=study), say=lambda _: None)
    assert made.failed == () and made.page.is_file() and not (tmp_path / "study").exists()
    figures = json.loads(json.dumps(made.as_json()))
    assert (round(figures["naive_s"], 1), figures["best"]) == (15.6, "lazy pull + overlap")
    assert "everything passed" in made.page.read_text()


def test_a_study_that_fails_is_said_on_the_page_and_the_notebooks_go_on(tmp_path, monkeypatch):
    def conducted(*_):
        raise BadInput("no room", why="the disk is full", fix="free some")

    monkeypatch.setattr(report, "_conducted", conducted)
    monkeypatch.setattr(
        execute, "run_one", lambda path, *_: execute.Result(path.stem, "failed", 1.0, error="E")
    )
    made = report.report(tmp_path, [NOTEBOOK], report.Options(), say=lambda _: None)
    assert [line.partition(":")[0] for line in made.failed] == ["study", "00_start_here"]
    text = made.page.read_text()
    assert text.count("<h1>") == 1 and "the disk is full" in text


def test_notebooks_that_no_time_is_left_for_are_named(study, tmp_path, monkeypatch):
    monkeypatch.setattr(execute, "run_one", lambda *_: pytest.fail("no time was left"))
    monkeypatch.setattr(report_parts, "page", lambda _, around: report_parts.notebooks_html(around))
    options = report.Options(study=study, minutes=1e-9)
    made = report.report(tmp_path, [NOTEBOOK], options, say=lambda _: None)
    assert made.not_run == ("00_start_here",) and "Not run" in made.page.read_text()


def test_a_notebook_that_takes_longer_than_what_is_left_gives_way_to_a_shorter_one(
    study, tmp_path, monkeypatch
):
    ran = []

    def run(path, *_):
        ran.append(path.stem)
        return execute.Result(path.stem, "ok", 1.0)

    seconds = {"report": {"02_image_pull": 61.0, "03_lazy_pull": 20.0}}
    monkeypatch.setattr(execute, "run_one", run)
    monkeypatch.setattr(report.pages, "notebooks_page", lambda *_: None)
    monkeypatch.setattr(report_parts, "page", lambda *_: "<h1>page</h1>")
    monkeypatch.setattr(syllabus, "measured", lambda: {"seconds": seconds})
    two = [NOTEBOOK.with_name(f"{name}.ipynb") for name in seconds["report"]]
    made = report.report(tmp_path, two, report.Options(study=study, minutes=1), say=lambda _: None)
    assert made.not_run == ("02_image_pull",) and ran == ["03_lazy_pull"]


def test_failed_trials_of_the_study_fail_the_report_and_unavailable_ones_do_not(study):
    run = record.read(study).run
    extra = tuple(records.Trial("naive", 9, 0, outcome=o) for o in ("timeout", "unavailable"))
    failed = report_parts.failures_of(record.of_run(replace(run, trials=(*run.trials, *extra))))
    assert failed == ["study, naive, block 10: timeout"]

"""What commands leave for a CI service: one case an outcome, the phase that got slower named, and
nothing of it over somebody else's file or on stdout."""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from labkit.cli import ci, main
from labkit.core import records
from labkit.core.junit import ERROR, FAILED, SKIPPED, Case, Suite
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords
from labkit.lessons import baseline
from labkit.lessons.batch import Batch
from labkit.lessons.execute import Result

FIXTURE = Path(__file__).resolve().parents[3] / "data" / "fixtures" / "fixture_naive.json"


@pytest.fixture(autouse=True)
def no_service(monkeypatch):
    for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def run() -> Run:
    """An arm called a|`b`, once good, once out of memory; and one that cannot run here."""
    found = records.read(FIXTURE)
    arms = [{**arm, "name": "a|`b`"} for arm in found.arms]
    trials = (
        replace(found.trials[0], arm="a|`b`", block=0),
        Trial("a|`b`", 1, 0, outcome="oom", error={"what": "killed for <memory>"}, log_tail="last"),
        Trial("lazy", 0, 1, outcome="unavailable", error={"what": "no FUSE here"}),
    )
    arms.append({"name": "lazy", "stack": {}, "scenario": "fresh-node", "link": "1gbit"})
    return replace(found, experiment={**found.experiment, "arms": arms}, trials=trials)


def slower_run(extra_s: float) -> Run:
    arms = [{"name": "naive", "stack": {}, "scenario": "hot-node", "link": "loopback"}]
    trials = tuple(
        Trial(
            "naive",
            block,
            0,
            total_s=3.0 + extra_s + block / 100,
            phases={"import": 1.0 + block / 300, "load": 2.0 + extra_s + block / 200},
            cache={"state": "cold"},
        )
        for block in range(6)
    )
    return Run("x", "2026-01-01", {"id": "one"}, {"arms": arms, "preset": "tiny"}, {}, trials)


def batch(**more) -> Batch:
    results = (
        Result("01_anatomy", "ok", 3.0),
        Result("02_pull", "failed", 2.0, error="ValueError: planted\ntrace"),
    )
    return Batch(results, Path("index.html"), **more)


def options(**given: str) -> Namespace:
    return Namespace(**{"junit": "", "summary": "", **given})


def test_a_run_has_a_case_a_trial_and_an_arm_that_cannot_run_is_skipped(run):
    cases = ci.of_run(run, "study").suite.cases
    assert [(c.classname, c.name, c.outcome, c.kind) for c in cases] == [
        ("labkit.study", "a|`b`, block 1", "passed", ""),
        ("labkit.study", "a|`b`, block 2", FAILED, "oom"),
        ("labkit.study", "lazy, block 1", SKIPPED, "unavailable"),
    ]
    assert cases[0].seconds == run.trials[0].total_s and "last" in cases[1].text


def test_a_summary_says_outcome_interval_cache_floor_and_stamp_of_each_arm(run):
    lines = ci.of_run(run, "run").summary.splitlines()
    row = next(line for line in lines if line.startswith(r"| a\|\`b\` |"))
    cells = [cell.strip() for cell in row.replace(r"\|", "").split("|")[1:-1]]
    assert cells[1:3] == ["1 ok, 1 oom", "1"] and cells[5] == "cold" and all(cells)
    assert any(line.startswith("| lazy | 1 unavailable | 0 |") for line in lines)
    assert any(line.startswith("**simulated: fixture") for line in lines)
    assert "<memory>" not in "".join(line for line in lines if line.startswith("<details>"))


def test_a_stack_that_got_slower_is_a_failure_that_names_the_phase():
    judged = baseline.judge([slower_run(0.0)], [slower_run(0.9)])
    outcome = ci.of_notebooks(
        batch(slower=judged.slower, compared=judged), [Path("notebooks/01_anatomy.ipynb")]
    )
    case = outcome.suite.cases[-1]
    assert (case.classname, case.outcome, case.kind) == ("baseline", FAILED, "load is slower")
    assert case.name == "naive (hot-node, loopback, tiny, cold)"
    assert case.message.startswith("load took") and case.file == "notebooks/01_anatomy.ipynb"
    assert "### Slower than the baseline" in outcome.summary
    assert "what would have shown" in outcome.summary


def test_a_notebook_that_failed_is_a_failure_and_points_to_its_file():
    case = ci.of_notebooks(batch(), [Path("a/01_anatomy.ipynb"), Path("a/02_pull.ipynb")])
    found = case.suite.cases[1]
    assert (found.outcome, found.kind, found.message) == (FAILED, "failed", "ValueError: planted")
    assert found.file == "a/02_pull.ipynb"


def test_what_could_not_be_compared_is_an_error_and_failed_notebooks_come_first():
    error = IncomparableRecords("nothing to compare", why="preset: small against tiny")
    both = batch(not_comparable=error)
    assert ci.of_notebooks(both, []).suite.cases[-1].outcome == ERROR and both.code == 1
    good = Batch(both.results[:1], both.page, not_comparable=error)
    assert good.code == 5 and good.as_json()["not_comparable"]["why"] == error.why


def test_files_are_written_and_written_again_and_never_over_a_strangers(tmp_path, run):
    args = options(junit=str(tmp_path / "j.xml"), summary=str(tmp_path / "deep" / "s.md"))
    for _ in range(2):
        ci.refuse_strangers(args)
        ci.deliver(args, ci.of_run(run, "run"))
    assert ET.parse(args.junit).getroot()[0].get("failures") == "1"
    assert Path(args.summary).read_text().count("## labkit run") == 1
    for option in ("junit", "summary"):
        strange = tmp_path / "README.md"
        strange.write_text("# mine")
        with pytest.raises(BadInput, match="would be lost|README.md exists"):
            ci.refuse_strangers(options(**{option: str(strange)}))


def test_the_jobs_page_is_appended_to_with_and_without_a_file(tmp_path, monkeypatch, run):
    page, own = tmp_path / "page", tmp_path / "s.md"
    page.write_text("of another step\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(page))
    for args in (options(), options(summary=str(own)), options(summary=str(page))):
        ci.refuse_strangers(args)
        ci.deliver(args, ci.of_run(run, "run"))
    assert page.read_text().startswith("of another step\n") and own.exists()
    assert page.read_text().count("## labkit run") == 3


def test_what_failed_is_annotated_on_stderr_as_often_as_it_is_shown(capsys, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    cases = tuple(Case("labkit.run", f"n{i}", 0.0, FAILED, "oom", "m") for i in range(14))
    ci.deliver(options(), ci.Outcome(Suite("run", cases), ""))
    said = capsys.readouterr()
    lines = said.err.splitlines()
    assert len(lines) == 10 and "5 more failed" in lines[-1] and not said.out
    assert lines[0] == "::error title=labkit.run%3A n0%3A oom::m"


@pytest.mark.parametrize("command", ["run naive", "ablate", "study", "report", "notebooks run"])
@pytest.mark.parametrize("option", ["--junit", "--summary"])
def test_a_strangers_file_is_refused_before_anything_runs(
    command, option, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    strange = tmp_path / "strange"
    strange.write_text("mine")
    assert main([*command.split(), option, str(strange)]) == 2
    said = capsys.readouterr().err
    assert f"{strange} exists" in said and strange.read_text() == "mine"

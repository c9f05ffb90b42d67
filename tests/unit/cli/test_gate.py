"""`labkit notebooks run --baseline` as a gate: what it ends with, and what it leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.cli import main
from labkit.core import records
from labkit.core.host import card
from labkit.core.records import Run
from labkit.lessons import baseline, execute
from labkit.lessons.execute import Result

ROOT = Path(__file__).resolve().parents[3]
#: Measures by its own module, as far as can be read: what it records is known when it has run.
NOTEBOOK = ROOT / "tests" / "notebooks" / "fixtures" / "records_a_run.ipynb"
RECORD = ROOT / "data" / "fixtures" / "fixture_naive.json"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))


@pytest.fixture
def gate(tmp_path, capsys, monkeypatch):
    """`gate(before, now)`: a notebook that recorded `now`, against a baseline that holds `before`,
    on a runner of the service."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)

    def run(before: Run, now: Run) -> tuple[int, str, str]:
        here = card()
        baseline.write([replace(before, host=here)], tmp_path / "baseline.json")
        record = records.write(replace(now, host=here), tmp_path / "now.json")
        result = Result(NOTEBOOK.stem, "ok", 1.0, records=(str(record),))
        monkeypatch.setattr(execute, "run_one", lambda *_: result)
        return _call(tmp_path, capsys)

    return run


def _call(tmp_path: Path, capsys) -> tuple[int, str, str]:
    code = main(
        [
            *["notebooks", "run", str(NOTEBOOK), "--out", str(tmp_path / "out")],
            *["--baseline", str(tmp_path / "baseline.json")],
            *["--junit", str(tmp_path / "junit.xml"), "--summary", str(tmp_path / "summary.md")],
        ]
    )
    said = capsys.readouterr()
    return code, said.out, said.err


def test_what_turns_out_not_comparable_has_its_exit_code_and_every_artifact(tmp_path, gate):
    run = records.read(RECORD)
    other = replace(run, experiment={**run.experiment, "preset": "another"})
    code, out, err = gate(other, run)
    doc = json.loads(out.splitlines()[-1])
    assert code == 5 and "preset: another against" in doc["not_comparable"]["why"]
    assert doc["notebooks"][0]["outcome"] == "ok" and "preset: another against" in err
    assert "::error file=" in err and "records_a_run.ipynb,title=baseline" in err
    assert "Not compared" in (tmp_path / "out" / "index.html").read_text()
    assert 'type="not_comparable"' in (tmp_path / "junit.xml").read_text()
    assert "Not compared" in (tmp_path / "summary.md").read_text()


def test_a_phase_that_got_slower_is_named_in_every_artifact(tmp_path, gate):
    run = records.read(RECORD)
    longer = tuple(
        replace(
            trial,
            phases={**trial.phases, "load": trial.phases["load"] + 4},
            total_s=trial.first_token_s + 4,
        )
        for trial in run.trials
    )
    code, out, err = gate(run, replace(run, trials=longer))
    assert code == 1 and "load took" in json.loads(out.splitlines()[-1])["slower"][0]
    assert "load is slower::load took" in err and "::error" not in out
    assert 'type="load is slower"' in (tmp_path / "junit.xml").read_text()
    assert "load took" in (tmp_path / "summary.md").read_text()


def test_a_baseline_of_another_host_is_refused_before_anything_runs(tmp_path, capsys):
    files = {name: str(tmp_path / name) for name in ("out", "junit.xml")}
    code = main(
        [
            *["notebooks", "run", str(NOTEBOOK), "--json"],
            *["--baseline", str(RECORD), "--out", files["out"], "--junit", files["junit.xml"]],
        ]
    )
    said = capsys.readouterr()
    doc = json.loads(said.out)
    assert code == 5 and doc["notebooks"] == [] and "another host" in doc["not_comparable"]["what"]
    assert "another host" in said.err and not Path(files["out"]).exists()
    assert 'type="not_comparable"' in Path(files["junit.xml"]).read_text()

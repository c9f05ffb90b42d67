"""Headless notebooks: the outcome is what happened, nothing outlives a notebook, and a mistake is
found before anything runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.core.ledger import marked_pids, start_time
from labkit.lessons import canonical, execute

FIXTURES = Path(__file__).parent / "fixtures"
RECORD = Path(__file__).resolve().parents[2] / "data" / "fixtures" / "fixture_naive.json"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))


def _run(name: str, tmp_path: Path, timeout_s: float = 120, **values) -> execute.Result:
    return execute.run_one(FIXTURES / f"{name}.ipynb", tmp_path / "out", values, timeout_s)


@pytest.mark.parametrize(
    ("name", "outcome", "said"),
    [
        ("passes", "ok", ""),
        ("failing_cell", "failed", "planted in the second cell"),
        ("dead_kernel_in_last_cell", "dead_kernel", "died"),
        ("kernel_exits_cleanly", "dead_kernel", "died"),
        ("wrong_solution", "failed", "CheckFailed: anatomy.floor"),
        ("exercise_is_filled", "ok", ""),
    ],
)
def test_the_outcome_is_what_happened(name, outcome, said, tmp_path):
    made = _run(name, tmp_path)
    assert (made.outcome, said in made.error) == (outcome, True), made
    assert Path(made.executed).exists() and len(made.cells) >= len(
        [c for c in canonical.load(FIXTURES / f"{name}.ipynb")["cells"] if c["cell_type"] == "code"]
    )


def test_a_time_out_ends_children_in_sessions_of_their_own(tmp_path):
    pid_file = tmp_path / "pid"
    # a loaded machine starts a kernel late; the property is about what is running by then
    for timeout_s in (6, 20, 60):
        made = _run(
            "endless_with_child_in_own_session",
            tmp_path,
            timeout_s=timeout_s,
            pid_file=str(pid_file),
        )
        assert made.outcome == "timeout" and f"not over after {timeout_s} s" in made.error
        if pid_file.exists():
            break
    assert made.ended >= 3  # runner, kernel, child
    assert start_time(int(pid_file.read_text())) == 0
    assert made.cells[-1] is None


def test_a_child_left_behind_by_a_good_notebook_is_ended_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(
        execute, "_end", lambda mark, patience_s=0.0, end=execute._end: end(mark, 0.0)
    )
    pid_file = tmp_path / "pid"
    made = _run("leaves_child_in_own_session", tmp_path, pid_file=str(pid_file))
    assert made.outcome == "ok" and made.ended >= 1 and start_time(int(pid_file.read_text())) == 0


def test_the_command_reports_failures_by_exit_status_page_and_last_line(tmp_path, capsys):
    from labkit.cli import main

    code = main(
        [
            "notebooks",
            "run",
            str(FIXTURES / "passes.ipynb"),
            str(FIXTURES / "failing_cell.ipynb"),
            "--out",
            str(tmp_path / "out"),
            "--preset",
            "ci",
        ]
    )
    said = capsys.readouterr().out
    doc = json.loads(said.strip().split("\n")[-1])
    assert (
        code == 1
        and doc["failed"] == 1
        and [n["outcome"] for n in doc["notebooks"]] == ["ok", "failed"]
    )
    page = (tmp_path / "out" / "index.html").read_text()
    assert "planted in the second cell" in page and "failing_cell.html" in page
    assert "planted in the second cell" in (tmp_path / "out" / "failing_cell.html").read_text()


def test_an_unknown_parameter_is_an_error_before_anything_runs(tmp_path, capsys):
    from labkit.cli import main

    code = main(
        [
            "notebooks",
            "run",
            str(FIXTURES / "passes.ipynb"),
            "-p",
            "lable=x",
            "--out",
            str(tmp_path / "out"),
        ]
    )
    assert code == 2 and "has no parameter 'lable'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_notebooks_side_by_side_keep_their_records_apart(tmp_path):
    """Each waits until the other's record is there, in the same workspace."""
    runs = tmp_path / "home" / "runs"

    def beside(own: str, other: str) -> subprocess.Popen:
        values = {"label": own, "pid_file": runs / f"{other}.json", "record": RECORD}
        return subprocess.Popen(
            [
                *[sys.executable, "-m", "labkit", "notebooks", "run", "--json"],
                str(FIXTURES / "records_a_run.ipynb"),
                *["--out", str(tmp_path / own), "--timeout", "120"],
                *[f"-p{name}={value}" for name, value in values.items()],
            ],
            stdout=subprocess.PIPE,
            text=True,
        )

    both = {"one": beside("one", "two"), "two": beside("two", "one")}
    for own, process in both.items():
        doc = json.loads(process.communicate(timeout=120)[0].splitlines()[-1])
        assert process.returncode == 0, doc
        assert doc["notebooks"][0]["records"] == [str(runs / f"{own}.json")]  # written twice


def test_no_process_of_these_tests_is_left():
    import os

    assert not list(marked_pids(str(os.getpid()), execute.MARK))

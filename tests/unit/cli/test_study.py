"""`labkit study`: what a person reads at its end, and its exit code."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.cli import study as command
from labkit.core import records
from labkit.study import conduct, record

FIXTURE = Path(__file__).parents[3] / "data" / "fixtures" / "fixture_study.json"


def ended(monkeypatch, *outcomes: str, lost: str = "") -> int:
    """Exit code of a study whose arms had further trials of these outcomes; `lost`: an arm without
    a good one."""
    run = records.read(FIXTURE)
    error = {"what": "the dump was refused"}
    more = tuple(records.Trial("naive", 9, 0, outcome=o, error=error) for o in outcomes)
    trials = (*(t for t in run.trials if t.arm != lost), *more)
    found = record.of_run(replace(run, trials=trials))
    monkeypatch.setattr(conduct, "conduct", lambda *_, **__: found)
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([]))


@pytest.mark.parametrize(
    ("outcomes", "code"), [((), 0), (("unavailable",), 0), (("timeout",), 1)], ids=str
)
def test_what_cannot_run_here_is_no_failure_of_a_study(monkeypatch, capsys, outcomes, code):
    assert ended(monkeypatch, *outcomes) == code
    said = capsys.readouterr().out
    assert ("FAILED naive, block 10: timeout – the dump was refused" in said) == bool(code)


def test_a_study_without_a_naive_start_is_a_failure(monkeypatch, capsys):
    assert ended(monkeypatch, lost="naive") == 1

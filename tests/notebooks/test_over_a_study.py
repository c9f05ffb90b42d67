"""The notebooks that a report runs over its study: what is in the study is not measured again, and
what a study had no time for is no error."""

from __future__ import annotations

from pathlib import Path

import pytest
from executed import ROOT, run_notebooks, text_of

from labkit.core import records
from labkit.study.record import LADDER, RUNG, read

RECORDED = ROOT / "data" / "recorded" / "epyc-2" / "study"
READERS = ("00_start_here", "08_stacking", "09_decide")


@pytest.fixture
def ladder_alone(tmp_path) -> Path:
    """The recorded study as on a slower day: no technique was measured alone."""
    folder = tmp_path / "study"
    folder.mkdir()
    study = read(RECORDED)
    rungs = [s.arm for s in study.steps if s.kind == RUNG and study.run.of_arm(s.arm)]
    records.write(study.run.narrowed(["naive", *dict.fromkeys(rungs)]), folder / LADDER)
    for size in RECORDED.glob("size-*.json"):
        (folder / size.name).write_bytes(size.read_bytes())
    return folder


@pytest.mark.timeout(300)
def test_a_study_of_the_ladder_alone_is_enough_for_its_readers(ladder_alone, lab_home, tmp_path):
    out = tmp_path / "out"
    given = ("--preset", "report", "-p", f"study={ladder_alone}")
    run_notebooks(lab_home, out, *READERS, *given, timeout_s=280)
    for name in READERS:
        said = text_of(out / f"{name}.ipynb")
        assert "Not measured again: " in said and f"from the study in {ladder_alone}" in said, name
    assert "No combined stack has all its parts measured alone" in text_of(
        out / "08_stacking.ipynb"
    )

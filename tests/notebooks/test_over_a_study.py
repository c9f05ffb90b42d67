"""The notebooks that a report runs over its study: what is in the study is not measured again, and
what a study had no time for is no error."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from labkit.core import records
from labkit.study.record import LADDER, RUNG, read

ROOT = Path(__file__).resolve().parents[2]
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
    argv = [sys.executable, "-m", "labkit", "notebooks", "run", *READERS, "--preset", "report"]
    done = subprocess.run(
        [*argv, "-p", f"study={ladder_alone}", "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "LABKIT_HOME": str(lab_home)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    for name in READERS:
        said = _printed(out / f"{name}.ipynb")
        assert "Not measured again: " in said and f"from the study in {ladder_alone}" in said, name
    assert "No combined stack has all its parts measured alone" in _printed(
        out / "08_stacking.ipynb"
    )


def _printed(executed: Path) -> str:
    cells = json.loads(executed.read_text(encoding="utf-8"))["cells"]
    outputs = [o for cell in cells for o in cell.get("outputs", []) if o["output_type"] == "stream"]
    return "".join("".join(o["text"]) for o in outputs)

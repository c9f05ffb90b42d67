"""Every notebook of the lab runs top to bottom, headless, on this host: live where it can, replayed
and stamped where it cannot."""

from __future__ import annotations

import os

import pytest
from executed import ROOT, run_notebooks

NOTEBOOKS = sorted(p.stem for p in (ROOT / "notebooks").glob("[0-9]*.ipynb"))


def test_the_ten_questions_have_their_notebooks():
    assert [n[:2] for n in NOTEBOOKS] == [f"{i:02}" for i in range(10)]


#: Root sees in it what an ordinary user sees, and as one it runs where there is root
#: (test_snapshot_notebooks_as_user): for half a minute, once.
AS_A_USER = {"06_gpu_init"} if os.geteuid() == 0 else set()


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [n for n in NOTEBOOKS if n not in AS_A_USER])
def test_a_notebook_runs_top_to_bottom(name, lab_home, tmp_path):
    run_notebooks(lab_home, tmp_path, name, "--preset", "ci", timeout_s=850)
    assert list(tmp_path.rglob(f"{name}*.html")), "no page was written"

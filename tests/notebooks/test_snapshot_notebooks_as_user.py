"""Notebooks 06 and 07 as an ordinary user without a GPU: what a user may do is measured, the rest
replayed and stamped, or left open."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from labkit.core import capabilities
from labkit.core.ledger import remove_tree
from tests.support.ordinary import as_ordinary_user

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(400)]


@pytest.fixture
def home(lab_home):
    made = Path(tempfile.mkdtemp(prefix="labkit-reader-"))
    made.chmod(0o755)
    # made before by root: the same bytes as a user's own
    if (lab_home / "models/tiny-safetensors").exists():
        shutil.copytree(lab_home / "models/tiny-safetensors", made / "lab/models/tiny-safetensors")
    yield made
    remove_tree(made)


def executed(home: Path, name: str) -> str:
    """Everything the notebook printed and the alternative text of its figures; it must have run to
    its end."""
    done = as_ordinary_user(
        [
            sys.executable,
            "-m",
            "labkit",
            "notebooks",
            "run",
            str(ROOT / f"notebooks/{name}.ipynb"),
            "--preset",
            "ci",
            "--out",
            str(home / "out"),
        ],
        home=home,
        cwd=home,
        timeout=350,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (page,) = (home / "out").rglob(f"{name}*.ipynb")
    outputs = [o for cell in json.loads(page.read_text())["cells"] for o in cell.get("outputs", ())]
    return "\n".join(
        "".join(o.get("text", "")) + "".join(o.get("data", {}).get("text/plain", ""))
        for o in outputs
    )


def test_checkpoints_are_replayed_for_a_user_who_may_not_dump(home):
    said = executed(home, "07_checkpoints")
    assert "criu: CRIU" in said or "criu: no criu" in said
    assert "recorded elsewhere" in said and "replayed from" in said
    assert "crossed the link (1gbit)" in said and "break-even at" in said
    assert "No dump here: root or CRIU is missing" in said and "No container here" in said
    assert "the dumped process itself answered" in said  # evidence of the record
    assert "restore, GPU state inside" in said  # of the recorded GPU


@pytest.mark.skipif(
    capabilities.capability("gpu").ok, reason="this host has a GPU: its steps are measured"
)
def test_a_gpu_s_start_without_a_gpu_shows_a_real_compile_cache_and_no_invented_number(home):
    said = executed(home, "06_gpu_init")
    for name in ("all-graphs", "fewer-graphs", "warm-standby"):
        assert f"{name:13} not here: gpu" in said
    # data/recorded/h100
    assert said.count("replayed from") > 10 and "no number is shown" not in said
    if capabilities.capability("command:g++").ok:
        assert "carried cache" in said and "compiled anew 0" in said

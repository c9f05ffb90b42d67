"""Notebooks 02 and 03 as an ordinary user: live where a user may mount, replayed and stamped where
not."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from executed import text_of

from labkit.core.ledger import remove_tree
from tests.support.ordinary import as_ordinary_user

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.needs("root"), pytest.mark.timeout(400)]


@pytest.fixture
def home(lab_home):
    made = Path(tempfile.mkdtemp(prefix="labkit-reader-"))
    made.chmod(0o755)
    # built before by root: the same bytes as a user's own
    if (lab_home / "images/interpreter").exists():
        shutil.copytree(
            lab_home / "images/interpreter", made / "lab/images/interpreter", symlinks=True
        )
    yield made
    with open("/proc/self/mountinfo") as lines:
        assert not [line for line in lines if str(made) in line]
    remove_tree(made)


def executed(home: Path, name: str, *, fuse: bool) -> str:
    """Everything the notebook printed; it must have run to its end."""
    out = home / "out"
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
            str(out),
        ],
        home=home,
        fuse=fuse,
        cwd=home,
        timeout=350,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    (page,) = out.rglob(f"{name}*.ipynb")
    return text_of(page)


def test_the_pull_notebook_runs_for_a_user_and_names_what_it_could_not_pull_with(home):
    said = executed(home, "02_image_pull", fuse=False)
    assert "bucket against the stock pull" in said
    # the arm that needs root says so, and is not left out in silence
    assert "ctr " in said and "root" in said


def test_the_lazy_notebook_without_fuse_says_what_it_lost_and_replays(home):
    said = executed(home, "03_lazy_pull", fuse=False)
    # A device that is root's only does not open; one that is everybody's (as udev makes it) opens,
    # and the helper may not mount.
    why, fix = (
        ("/dev/fuse does not open", "chmod 666 /dev/fuse")
        if not os.stat("/dev/fuse").st_mode & 0o002
        else ("fusermount3 cannot mount", "fuse3")
    )
    assert said.count(f"Not measured here: FUSE: {why}") == 3 and fix in said
    assert said.count("replayed from") >= 2  # the text twin of both figures


@pytest.mark.needs("fuse", "userns")
def test_the_lazy_notebook_measures_where_a_user_may_mount(home):
    said = executed(home, "03_lazy_pull", fuse=True)
    assert "Not measured here" not in said and "replayed from" not in said
    assert "optimised" in said and "by prefetch" in said

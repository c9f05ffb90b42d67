"""The naive stack, end to end: as root and as an ordinary user, with a client outside the lab that
agrees."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from labkit.core.ledger import remove_tree
from tests.support.ordinary import as_ordinary_user

LABKIT = [sys.executable, "-m", "labkit"]
#: curl in a shell loop, timed by the shell: asks until an answer's first byte comes; max_tokens 1,
#: so that is the first token.
OUTSIDE = (
    r"""TIMEFORMAT=%R; time until curl -sf -o /dev/null -H 'Content-Type: application/json' """
    r"""-d '{"prompt": "The first token of a cold start", "max_tokens": 1}' """
    r"""$LABKIT_URL/v1/completions; do sleep 0.005; done"""
)


def last_line(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr[-3000:] + done.stdout[-3000:]
    return json.loads(done.stdout.strip().splitlines()[-1])


def shows_an_honest_start(doc: dict) -> None:
    assert doc["failed"] == 0 and doc["trials"] >= 1
    arm = doc["results"][0]
    assert arm["cache"] == "cold"
    assert arm["unaccounted_share"] <= 0.05
    assert {
        "pull",
        "unpack",
        "start",
        "import",
        "build",
        "load",
        "warmup",
        "ready",
        "first_token",
    } <= set(arm["phases"])
    assert "registry sent" in arm["evidence"]


def test_naive_comes_to_its_first_token_in_a_container(lab_home):
    done = subprocess.run(
        [*LABKIT, "run", "naive,process=container", "--preset", "tiny", "--blocks", "1", "--json"],
        capture_output=True,
        text=True,
        env={**os.environ, "LABKIT_HOME": str(lab_home)},
        timeout=500,
        check=False,
    )
    shows_an_honest_start(last_line(done))


@pytest.fixture
def ordinary_home():
    """A home that an ordinary user may enter: pytest's own directories are closed to others."""
    home = Path(tempfile.mkdtemp(prefix="labkit-ordinary-"))
    home.chmod(0o755)
    yield home
    remove_tree(home)


@pytest.mark.needs("root", "userns")
def test_naive_comes_to_its_first_token_without_root(home_with_image, ordinary_home):
    home = ordinary_home
    (home / "lab").mkdir()
    for room in ("images", "models"):
        shutil.copytree(home_with_image / room, home / "lab" / room, symlinks=True)
    done = as_ordinary_user(
        [*LABKIT, "run", "naive", "--preset", "tiny", "--blocks", "1", "--json"],
        home=home,
        timeout=500,
    )
    doc = last_line(done)
    shows_an_honest_start(doc)
    assert doc["host"]["rootness"] != "root"
    assert doc["results"][0]["stack"]["process"] == "userns"


def test_naive_comes_to_its_first_token_in_a_process_and_a_client_outside_the_lab_is_served_too(
    lab_home, tmp_path
):
    """Started at t0, it waits through the same start: its answer comes after the weights are in,
    and before the run ends. How near both figures lie is a matter of the host's load."""
    out = tmp_path / "run.json"
    done = subprocess.run(
        [
            *LABKIT,
            "run",
            "naive,process=process",
            "--preset",
            "tiny",
            "--blocks",
            "1",
            "--json",
            "--out",
            str(out),
            "--at-t0",
            OUTSIDE,
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "LABKIT_HOME": str(lab_home)},
        timeout=500,
        check=False,
    )
    shows_an_honest_start(last_line(done))
    (trial,) = json.loads(out.read_text())["trials"]
    printed = trial["facts"]["outside_client"]
    outside_s = float(re.findall(r"^\d+\.\d+$", printed, re.M)[-1])
    assert outside_s > trial["phases"]["build"] + trial["phases"]["load"]

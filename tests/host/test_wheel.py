"""The lab as a wheel, away from any checkout: what the README's first commands need is in it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import labkit

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("labkit", "notebooks", "data", "pyproject.toml", "setup.py", "MANIFEST.in", "README.md")


def run(command, **options):
    done = subprocess.run(
        [str(c) for c in command],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=500,
        **options,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """`labkit` of an environment whose only copy of the lab is the wheel; what it depends on is
    found in the environment of the tests, behind it."""
    base = tmp_path_factory.mktemp("wheel")
    tree, wheels, venv = base / "tree", base / "wheels", base / "venv"
    tree.mkdir()
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(source, tree / name)
    shutil.copyfile(ROOT / "LICENSE", tree / "LICENSE")
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    run([*pip, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", wheels, tree])
    shutil.rmtree(tree)
    run([sys.executable, "-m", "venv", "--without-pip", venv])
    (wheel,) = wheels.glob("labkit-*.whl")
    python = venv / "bin" / "python"
    run([*pip, "--python", python, "install", "--no-deps", "--no-index", wheel])
    own = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip()
    # A plain path: the tests' editable install of the lab is a .pth in there, and stays unread.
    Path(own, "behind.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return venv / "bin" / "labkit"


@pytest.fixture
def call(installed, tmp_path, lab_home):
    left_out = ("PYTHONPATH", "LABKIT_RECORDED", "VIRTUAL_ENV")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment["LABKIT_HOME"] = str(lab_home)
    return lambda *words: run([installed, *words], cwd=tmp_path, env=environment)


def test_it_says_its_version_and_what_the_host_can_show(call):
    assert call("--version").split()[-1] == labkit.__version__
    assert json.loads(call("doctor").splitlines()[-1])


def test_the_notebooks_are_copied_and_a_readers_work_is_never_overwritten(call, tmp_path):
    first = json.loads(call("lab", "mine", "--copy-only", "--json"))
    names = {Path(p).name for p in first["written"]}
    assert {p.name for p in (ROOT / "notebooks").glob("*.ipynb")} <= names
    mine = tmp_path / "mine" / "01_anatomy.ipynb"
    mine.write_text("changed by its reader")
    again = json.loads(call("lab", "mine", "--copy-only", "--json"))
    assert not again["written"] and mine.read_text() == "changed by its reader"


def test_the_notebooks_that_it_carries_are_found_and_in_form(call):
    assert "in canonical form" in call("notebooks", "check")


def test_a_cold_start_is_taken(call):
    stack = "image=host-env,process=process"
    doc = json.loads(
        call("run", stack, "--preset", "tiny", "--blocks", "1", "--scenario", "hot-node", "--json")
        .strip()
        .splitlines()[-1]
    )
    assert doc["failed"] == 0 and len(doc["results"]) == 1, doc


def test_a_notebook_is_run(call):
    said = call("notebooks", "run", "00", "--preset", "ci", "--json").strip().splitlines()[-1]
    assert [r["outcome"] for r in json.loads(said)["notebooks"]] == ["ok"]

"""examples/technique-plugin in a fresh environment: found by its entry points, held to the same
contract, measured like the lab's own; a package that is broken is named and left out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "technique-plugin"
BROKEN = """
[build-system]
requires = ["setuptools>=64"]
build-backend = "setuptools.build_meta"
[project]
name = "broken-plugin"
version = "1"
[project.entry-points."labkit.techniques"]
broken = "broken_plugin:Missing"
[tool.setuptools]
py-modules = ["broken_plugin"]
"""


def install(source: Path, into: Path) -> None:
    tree = into.with_name(into.name + "-tree")
    shutil.copytree(source, tree, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install"]
    command = [*pip, "--no-deps", "--no-index", "--no-build-isolation", "--target", into, tree]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def with_plugin(tmp_path_factory):
    """An environment in which the example is installed beside the lab."""
    folder = tmp_path_factory.mktemp("plugin") / "site"
    install(EXAMPLE, folder)
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(folder)])}


def run(command, environment):
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def test_it_is_held_to_the_contract_of_every_technique(with_plugin):
    words = ["-m", "pytest", "-p", "no:cacheprovider", "tests/contract/test_techniques.py"]
    done = run([*words, "-k", "willneed", "-vv"], with_plugin)
    assert done.returncode == 0, done.stdout[-3000:]
    for name in ("willneed-at-t0", "safetensors-willneed"):
        assert f"test_nothing_seen_is_no_evidence[{name}] PASSED" in done.stdout


def test_its_mechanism_is_seen_in_a_trial(with_plugin, lab_home):
    stack = "image=host-env,process=process,weights=willneed-at-t0"
    command = ["-m", "labkit", "run", stack, "--preset", "tiny", "--blocks", "1", "--json"]
    out = lab_home / "runs" / "plugin.json"
    out.unlink(missing_ok=True)
    done = run(
        # Cold is not to be proven where the tests' own process has mapped torch.
        [*command, "--scenario", "hot-node", "--out", str(out)],
        {**with_plugin, "LABKIT_HOME": str(lab_home)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (trial,) = json.loads(out.read_text())["trials"]
    (evidence,) = [e for e in trial["evidence"] if e["technique"] == "willneed-at-t0"]
    assert evidence["engaged"] and evidence["facts"]["asked_bytes"] > 0, evidence


def test_a_broken_package_is_named_and_the_lab_goes_on(tmp_path):
    source = tmp_path / "broken"
    source.mkdir()
    (source / "pyproject.toml").write_text(BROKEN)
    (source / "broken_plugin.py").write_text("import a_module_that_nobody_has\n")
    install(source, tmp_path / "site")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path / "site")])}
    code = "from labkit.technique import techniques; print(len(techniques()))"
    done = run(["-c", code], environment)
    assert done.returncode == 0 and int(done.stdout) > 20
    assert "the plugin broken (broken_plugin:Missing) is left out" in done.stderr
    assert "a_module_that_nobody_has" in done.stderr and "Traceback" not in done.stderr

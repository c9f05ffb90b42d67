"""`--baseline` on real starts: a loader that sleeps is found out and named, by the exit status and
by its phase."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOK = Path(__file__).parent / "fixtures" / "starts_one_stack.ipynb"
BLOCKS = 5


def planted(into: Path, seconds: float) -> Path:
    """A copy of the package whose stock loader sleeps before it loads. Both sides are such copies:
    Python's collection of garbage after the import of torch takes 80 ms, and in which phase it
    falls follows from how many objects were made before."""
    shutil.copytree(ROOT / "labkit", into / "labkit", ignore=shutil.ignore_patterns("__pycache__"))
    loader = into / "labkit" / "weights" / "loaders" / "pickled.py"
    text = loader.read_text(encoding="utf-8")
    line = '    with local_shards(source, "pickle") as here:\n'
    assert text.count(line) == 1
    loader.write_text(
        text.replace(line, f"    import time\n\n    time.sleep({seconds})\n{line}"),
        encoding="utf-8",
    )
    return into


def notebooks_run(tree: Path, home: Path, *more: str) -> tuple[int, dict, str]:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "labkit",
            "notebooks",
            "run",
            str(NOTEBOOK),
            "-p",
            f"blocks={BLOCKS}",
            "--out",
            str(home / "out"),
            *more,
        ],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree), "LABKIT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = done.stdout.strip().splitlines()
    return done.returncode, json.loads(lines[-1]) if lines else {}, done.stdout + done.stderr


def test_a_loader_that_sleeps_200_ms_is_named_as_load(tmp_path):
    home, baseline = tmp_path / "home", tmp_path / "baseline.json"
    code, _, said = notebooks_run(
        planted(tmp_path / "as-it-is", 0.0), home, "--save-baseline", str(baseline)
    )
    assert code == 0, said
    code, doc, said = notebooks_run(
        planted(tmp_path / "slow", 0.2), home, "--baseline", str(baseline)
    )
    assert code == 1 and doc["failed"] == 0, said
    assert len(doc["slower"]) == 1 and ": load took" in doc["slower"][0], said
    found = doc["baseline"]["compared"].popitem()[1]["load"]
    assert found["slower"] and 0.15 < found["now_s"] - found["before_s"] < 0.6, found
    assert "a loss would have shown from" in said

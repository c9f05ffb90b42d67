"""Notebooks run by the lab's own command, and what an executed one shows as text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run_notebooks(home: Path, out: Path, *arguments: str, timeout_s: float) -> None:
    """`labkit notebooks run …` over the workspace `home`; fails the test with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "labkit", "notebooks", "run", *arguments, "--out", str(out)],
        cwd=ROOT,
        env={**os.environ, "LABKIT_HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


def text_of(page: Path) -> str:
    """What its cells printed, and the text of what they displayed."""
    texts = []
    for cell in json.loads(page.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", ()):
            texts += [
                "".join(output.get("text", "")),
                *("".join(v) for k, v in output.get("data", {}).items() if k.startswith("text/")),
            ]
    return "\n".join(texts)

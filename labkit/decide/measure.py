"""The starts that a forecast is fitted from: one stack at three sizes. Two make a line, the third its error.

    runs = measure("naive", sizes=("tiny", "80MB", "small"), blocks=3, scenario="fresh-node", link="1gbit")
    runs = gather("naive")            # or what this host has recorded already

The sizes are of the model; the image is the subject's own, as large as it is. Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.core import host, records
from labkit.core.records import Run
from labkit.core.units import parse_bytes
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError

SIZES = ("tiny", "80MB", "small")


def measure(arm: str = "naive", sizes: Sequence[str] = SIZES, *, blocks: int = 3, scenario: str = "fresh-node", link: str = "loopback", progress: Any = None,
            workspace: Workspace | None = None) -> list[Run]:
    """One record a size: a preset's name, or bytes like "80MB". Raises MissingCapability where the arm cannot run here.

    Sizes take turns, a block each: a machine that slows down over minutes would otherwise bend the line between them."""
    from labkit.stack import experiment
    from labkit.subject.checkpoint import PRESETS

    space = workspace or Workspace.default()
    model_dirs = {size: "" if size in PRESETS else str(_checkpoint(space, parse_bytes(size))) for size in sizes}
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    made: dict[str, Run] = {}
    for block in range(blocks):
        for size in sizes if block % 2 == 0 else reversed(sizes):
            made[size] = experiment([arm], preset=size, model_dir=model_dirs[size], blocks=block + 1, scenario=scenario, link=link, progress=progress, workspace=space,
                                    out=space.runs / f"{stamp}-{size}.json", resume=True)
    return [made[size] for size in sizes]


def _checkpoint(space: Workspace, size_bytes: int) -> Path:
    target = space.models / f"bytes-{size_bytes}"
    if not (target / "config.json").exists():  # in a process of its own: torch mapped here would keep its pages warm
        done = subprocess.run([sys.executable, "-m", "labkit", "model", "make", "--bytes", str(size_bytes), str(target)], capture_output=True, text=True)
        if done.returncode:
            raise BadInput(f"no checkpoint of {size_bytes} bytes", why=done.stderr.strip()[-400:], fix="labkit model make --bytes 80MB DIR")
    return target


def gather(arm: str = "", scenario: str = "", *, workspace: Workspace | None = None) -> list[Run]:
    """This host's records of an arm: the newest of each size, of the scenario and link with most sizes. Raises BadInput for none."""
    space = workspace or Workspace.default()
    groups: dict[tuple[str, str], dict[tuple[str, str], Run]] = {}
    here, wanted = host.card()["id"], arm or "naive"
    for path in sorted(space.runs.glob("*.json")):
        try:
            run = records.read(path)
        except LabError:
            continue
        said = next((a for a in run.experiment.get("arms", []) if a["name"] == wanted), None)
        if said and run.host.get("id") == here and run.of_arm(wanted) and scenario in ("", said.get("scenario")):
            size = (str(run.experiment.get("preset", "")), str(run.experiment.get("model_dir", "")))
            groups.setdefault((said.get("scenario", ""), said.get("link", "")), {})[size] = run
    if not groups:
        raise BadInput(f"no record of {wanted} on this host in {space.root / 'runs'}", why="a forecast is fitted from starts measured here",
                       fix="labkit plan --measure   (or: --records FILE …)")
    return list(max(groups.values(), key=len).values())

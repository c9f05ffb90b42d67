"""Runs killed at random moments leave nothing: no process, mount, namespace, port or temporary file; every record is readable.

`LABKIT_KILLS=20` runs the whole series (SIGINT, SIGTERM, SIGKILL in turn).
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.core import records
from labkit.core.workspace import Workspace

KILLS = int(os.environ.get("LABKIT_KILLS", "6"))
HOW = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)


def line_above(pid: int) -> set[int]:
    """This process and everything it was started by: CI gives the workspace to all of them."""
    found = set()
    while pid > 1:
        found.add(pid)
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return found


def ours(home: Path) -> list[tuple[int, str]]:
    """Processes that have this workspace in their environment or arguments."""
    found, above = [], line_above(os.getpid())
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in above:
            try:
                about = Path(f"/proc/{name}/environ").read_bytes() + Path(f"/proc/{name}/cmdline").read_bytes()
                state = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if str(home).encode() in about and state != "Z":
                found.append((int(name), about.replace(b"\0", b" ").decode(errors="replace")[-200:]))
    return found


def mounts(home: Path) -> list[str]:
    return [line for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines() if str(home) in line]



def left(home: Path, space: Workspace) -> dict[str, object]:
    return {k: v for k, v in {
        "processes": ours(home), "mounts": mounts(home), "nodes": [str(p) for p in space.nodes.iterdir()],
        "ledgers": [p.name for p in space.ledger.iterdir()],
        "stores": [p.name for p in space.artifacts.iterdir() if p.name.startswith(("registry-", "store-"))],
        "half records": [p.name for p in space.runs.iterdir() if p.name.endswith(".tmp")],
        "containers": sorted(str(p) for p in Path("/sys/fs/cgroup/labkit").glob("labkit-*")) if Path("/sys/fs/cgroup/labkit").exists() else [],
    }.items() if v}


@pytest.fixture(scope="module")
def prepared(lab_home):
    """A workspace whose image and checkpoint are made, so that kills meet trials and not only preparations."""
    home = lab_home
    run = subprocess.run([sys.executable, "-m", "labkit", "run", "naive", "--preset", "tiny", "--blocks", "1", "--json"], capture_output=True, text=True,
                         env={**os.environ, "LABKIT_HOME": str(home)}, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:] + run.stdout[-2000:]
    return home


@pytest.mark.timeout(1500)
def test_runs_killed_at_random_moments_leave_nothing(prepared):
    home, space, draw = prepared, Workspace.at(prepared), random.Random(20)
    assert left(home, space) == {}
    for i in range(KILLS):
        out = home / "runs" / f"killed-{i}.json"
        harness = subprocess.Popen([sys.executable, "-m", "labkit", "run", "naive", "--preset", "tiny", "--blocks", "3", "--out", str(out)],
                                   env={**os.environ, "LABKIT_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            harness.wait(draw.uniform(0.5, 25.0))
        except subprocess.TimeoutExpired:
            harness.send_signal(HOW[i % 3])
        harness.wait(60)
        until = time.monotonic() + 45
        while left(home, space) and time.monotonic() < until:
            time.sleep(0.1)
        assert left(home, space) == {}, f"kill {i} by {HOW[i % 3].name}"
        if out.exists():
            assert records.read(out).experiment["preset"] == "tiny"


def test_a_record_that_was_interrupted_can_be_resumed(prepared):
    out = prepared / "runs" / "resumed.json"
    command = [sys.executable, "-m", "labkit", "run", "no-image", "--preset", "tiny", "--scenario", "warm-node", "--out", str(out), "--json"]
    env = {**os.environ, "LABKIT_HOME": str(prepared)}
    subprocess.run([*command, "--blocks", "1"], env=env, check=False, capture_output=True, timeout=300)
    first = records.read(out)
    subprocess.run([*command, "--blocks", "2", "--resume"], env=env, check=False, capture_output=True, timeout=300)
    both = records.read(out)
    assert both.id == first.id
    assert both.trials[0] == first.trials[0]
    assert [t.block for t in both.trials] == [0, 1]

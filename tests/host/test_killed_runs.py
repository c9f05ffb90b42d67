"""Runs killed at random moments leave nothing: no process, mount, namespace, port or temporary file; every record is readable.

One early, one in the middle and one late, by SIGINT, SIGTERM and SIGKILL; `LABKIT_KILLS=21` runs a series.
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

KILLS = int(os.environ.get("LABKIT_KILLS", "3"))
HOW = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
WHEN_S = ((0.5, 8.0), (8.0, 16.0), (16.0, 25.0))  # preparing, pulling and unpacking, importing and later


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


def left(home: Path, space: Workspace, bystanders: set[int]) -> dict[str, object]:
    """`bystanders`: who had the workspace in its environment before any run, such as the other end of `make test | tee log`."""
    return {k: v for k, v in {
        "processes": [found for found in ours(home) if found[0] not in bystanders], "mounts": mounts(home), "nodes": [str(p) for p in space.nodes.iterdir()],
        "ledgers": [p.name for p in space.ledger.iterdir()],
        "stores": [p.name for p in space.artifacts.iterdir() if p.name.startswith(("registry-", "store-"))],
        "half records": [p.name for p in space.runs.iterdir() if p.name.endswith(".tmp")],
        "containers": sorted(str(p) for p in Path("/sys/fs/cgroup/labkit").glob("labkit-*")) if Path("/sys/fs/cgroup/labkit").exists() else [],
    }.items() if v}


@pytest.fixture(scope="module")
def prepared(lab_home):
    """A workspace whose image and checkpoint are made, so that kills meet trials and not only preparations; and the bystanders."""
    home, bystanders = lab_home, {pid for pid, _ in ours(lab_home)}
    run = subprocess.run([sys.executable, "-m", "labkit", "run", "naive", "--preset", "tiny", "--blocks", "1", "--json"], capture_output=True, text=True,
                         env={**os.environ, "LABKIT_HOME": str(home)}, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:] + run.stdout[-2000:]
    return home, bystanders


@pytest.mark.timeout(1500)
def test_runs_killed_at_random_moments_leave_nothing(prepared):
    home, bystanders = prepared
    space, draw = Workspace.at(home), random.Random()
    assert left(home, space, bystanders) == {}
    moments = []
    while len(moments) < KILLS:
        moments += [draw.uniform(*span) for span in draw.sample(WHEN_S, len(WHEN_S))]
    for i, moment_s in enumerate(moments[:KILLS]):
        out = home / "runs" / f"killed-{i}.json"
        harness = subprocess.Popen([sys.executable, "-m", "labkit", "run", "naive", "--preset", "tiny", "--blocks", "3", "--out", str(out)],
                                   env={**os.environ, "LABKIT_HOME": str(home)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            harness.wait(moment_s)
        except subprocess.TimeoutExpired:
            harness.send_signal(HOW[i % 3])
        harness.wait(60)
        until = time.monotonic() + 45
        while left(home, space, bystanders) and time.monotonic() < until:
            time.sleep(0.1)
        assert left(home, space, bystanders) == {}, f"kill {i} by {HOW[i % 3].name} after {moment_s:.1f} s"
        if out.exists():
            assert records.read(out).experiment["preset"] == "tiny"


def test_a_record_that_was_interrupted_can_be_resumed(prepared):
    home, _ = prepared
    out = home / "runs" / "resumed.json"
    command = [sys.executable, "-m", "labkit", "run", "no-image", "--preset", "tiny", "--scenario", "warm-node", "--out", str(out), "--json"]
    env = {**os.environ, "LABKIT_HOME": str(home)}
    subprocess.run([*command, "--blocks", "1"], env=env, check=False, capture_output=True, timeout=300)
    first = records.read(out)
    subprocess.run([*command, "--blocks", "2", "--resume"], env=env, check=False, capture_output=True, timeout=300)
    both = records.read(out)
    assert both.id == first.id
    assert both.trials[0] == first.trials[0]
    assert [t.block for t in both.trials] == [0, 1]

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import ledger
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace

HARNESS = """
import os, subprocess, sys, time
from labkit.core.ledger import MARK, Ledger
from labkit.core.workspace import Workspace
made = Ledger.open(Workspace.at(sys.argv[1]), watch=sys.argv[2] == "watched")
os.mkdir(sys.argv[1] + "/left"); made.note("dir", sys.argv[1] + "/left")
open(sys.argv[1] + "/left/file", "w").close()
noted = subprocess.Popen(["sleep", "600"], start_new_session=True); made.note("group", noted.pid)
# A process that was never noted, in a session of its own: only the mark in its environment finds it.
marked = subprocess.Popen(["sleep", "600"], start_new_session=True, env={**os.environ, MARK: made.mark})
print(noted.pid, marked.pid, made.path, flush=True)
time.sleep(600)
"""


def soon(condition, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def harness(tmp_path: Path, watched: bool):
    process = subprocess.Popen([sys.executable, "-c", HARNESS, str(tmp_path / "lab"), "watched" if watched else "alone"], stdout=subprocess.PIPE, text=True,
                               start_new_session=True)
    assert process.stdout
    noted, marked, path = process.stdout.readline().split()
    return process, int(noted), int(marked), Path(path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_watchdog_clears_what_a_killed_harness_left(tmp_path, how):
    process, noted, marked, path = harness(tmp_path, watched=True)
    process.send_signal(how)
    process.wait(10)
    assert soon(lambda: not path.exists())
    assert not ledger.start_time(noted) and not ledger.start_time(marked) and not (tmp_path / "lab" / "left").exists()


def test_the_next_start_sweeps_what_harness_and_watchdog_left(tmp_path):
    process, noted, marked, path = harness(tmp_path, watched=False)
    process.kill()
    process.wait(10)
    assert ledger.start_time(noted) and path.exists()
    with Ledger.open(Workspace.at(tmp_path / "lab"), watch=False):
        assert not path.exists() and not (tmp_path / "lab" / "left").exists()
        assert soon(lambda: not ledger.start_time(noted) and not ledger.start_time(marked))


def test_a_living_harness_is_left_alone_by_a_sweep(tmp_path):
    process, noted, marked, path = harness(tmp_path, watched=False)
    try:
        assert ledger.sweep(Workspace.at(tmp_path / "lab")) == [] and ledger.start_time(noted) and path.exists()
    finally:
        process.kill()
        process.wait()
        ledger.sweep(Workspace.at(tmp_path / "lab"))


def test_a_process_id_given_to_somebody_else_is_not_killed(workspace):
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        with Ledger.open(workspace, watch=False) as made:
            for kind in ("process", "group"):
                made._append({"id": f"x.{kind}", "kind": kind, "target": stranger.pid, "started": ledger.start_time(stranger.pid) - 1})
        assert ledger.start_time(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_what_is_done_is_not_ended_again(workspace, tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    with Ledger.open(workspace, watch=False) as made:
        made.done(made.note("dir", kept))
    assert kept.exists()


def test_entries_are_ended_last_first(workspace, tmp_path):
    out = tmp_path / "order"
    with Ledger.open(workspace, watch=False) as made:
        for name in ("first", "second"):
            made.note("command", ["sh", "-c", f"echo {name} >> {out}"])
    assert out.read_text().split() == ["second", "first"]


def test_an_agent_that_joins_notes_into_the_same_ledger(workspace, tmp_path):
    left = tmp_path / "left"
    left.write_text("x")
    with Ledger.open(workspace, watch=False) as made:
        Ledger.join(made.path, made.mark).note("file", left)
    assert not left.exists() and not made.path.exists()


def test_a_kind_nobody_can_end_is_refused(workspace):
    with Ledger.open(workspace, watch=False) as made, pytest.raises(ValueError):
        made.note("dream", "x")


@given(st.binary(max_size=120))
def test_a_torn_ledger_still_names_its_whole_entries(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("l") / "l.jsonl"
    path.write_bytes(json.dumps({"id": "1", "kind": "dir", "target": "/x"}).encode() + b"\n" + junk.replace(b"\n", b""))
    assert [e["id"] for e in ledger.open_entries(path)][-1] == "1"


def test_a_tree_without_write_permission_is_removed_and_links_are_not_followed(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("x")
    tree = tmp_path / "tree"
    (tree / "closed").mkdir(parents=True)
    (tree / "closed" / "file").write_text("x")
    (tree / "link").symlink_to(outside)
    os.chmod(tree / "closed", 0o500)
    ledger.remove_tree(tree)
    assert not tree.exists() and (outside / "precious").exists()


def test_the_directory_that_holds_a_removed_tree_keeps_its_mode(tmp_path):
    """A tree that resists – not there, or busy – once closed the /tmp above it to everybody else."""
    os.chmod(tmp_path, 0o1777)
    ledger.remove_tree(tmp_path / "gone")
    (tmp_path / "tree").mkdir()
    ledger.remove_tree(str(tmp_path / "tree") + "/")
    assert os.stat(tmp_path).st_mode & 0o7777 == 0o1777 and not (tmp_path / "tree").exists()


@pytest.mark.needs("root")
def test_a_mount_below_a_removed_tree_is_unmounted_and_its_source_survives(tmp_path):
    source, tree = tmp_path / "source", tmp_path / "tree"
    source.mkdir()
    (source / "precious").write_text("x")
    (tree / "at").mkdir(parents=True)
    subprocess.run(["mount", "--bind", str(source), str(tree / "at")], check=True)
    ledger.remove_tree(tree)
    assert not tree.exists() and (source / "precious").exists()

"""Nodes of trials lie apart on the disk, and a workspace keeps to one user."""

from __future__ import annotations

import os

import pytest

from labkit.core import workspace as room
from labkit.core.workspace import Workspace


def test_a_workspace_is_closed_to_others(tmp_path):
    assert Workspace.at(tmp_path / "lab").root.stat().st_mode & 0o777 == 0o700


def test_an_unknown_room_is_refused(workspace):
    with pytest.raises(ValueError, match="rooms: models"):
        workspace.room("attic")


def test_a_new_node_avoids_where_recent_ones_were(workspace, monkeypatch):
    """Placement is the file system's; here inodes follow from the name, as with `chattr +T`."""
    class Stat:
        def __init__(self, inode):
            self.st_ino = inode

    inodes = {"a": 1_000, "b": 1_500, "b-1": 90_000_000, "c": 90_000_001, **{f"c-{n}": 999 + n for n in range(1, 16)}}
    real = os.stat
    monkeypatch.setattr(room.Path, "stat", lambda self, **kw: Stat(inodes[self.name]) if self.name in inodes else real(self, **kw))
    assert workspace.new_node("a").name == "a"
    assert workspace.new_node("b").name == "b-1"
    assert workspace.new_node("c").name == "c-15", "no place is free: the last one is taken, not an error"
    assert sorted(p.name for p in workspace.nodes.iterdir()) == ["a", "b-1", "c-15"], "refused places are given back"


def test_old_places_count_no_more_and_a_torn_list_is_no_error(workspace):
    (workspace.root / "recent-nodes").write_text("12 1\nnonsense\n")
    assert workspace.new_node("n").is_dir()
    assert len((workspace.root / "recent-nodes").read_text().splitlines()) == 1


def test_spread_says_whether_the_file_system_took_it(tmp_path):
    assert room.spread(tmp_path) in (True, False)
    assert room.spread(tmp_path / "absent") is False

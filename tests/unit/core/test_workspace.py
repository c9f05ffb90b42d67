"""Nodes of trials lie apart on the disk, and a workspace keeps to one user."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from labkit.core import workspace as room
from labkit.core.workspace import Workspace
from labkit.errors import LabError
from tests.support.ordinary import UID, as_ordinary_user


def test_a_workspace_is_closed_to_others(tmp_path):
    assert Workspace.at(tmp_path / "lab").root.stat().st_mode & 0o777 == 0o700


def test_an_unknown_directory_is_refused(workspace):
    with pytest.raises(ValueError, match="there are models"):
        workspace.directory("attic")


def test_a_new_node_avoids_where_recent_ones_were(workspace, monkeypatch):
    """Placement is the file system's; here inodes follow from the name, as with `chattr +T`."""

    class Stat:
        def __init__(self, inode):
            self.st_ino = inode

    inodes = {
        "a": 1_000,
        "b": 1_500,
        "b-1": 90_000_000,
        "c": 90_000_001,
        **{f"c-{n}": 999 + n for n in range(1, 16)},
    }
    real = os.stat
    monkeypatch.setattr(
        room.Path,
        "stat",
        lambda self, **kw: Stat(inodes[self.name]) if self.name in inodes else real(self, **kw),
    )
    assert workspace.new_node("a").name == "a"
    assert workspace.new_node("b").name == "b-1"
    assert workspace.new_node("c").name == "c-15", (
        "no place is free: the last one is taken, not an error"
    )
    assert sorted(p.name for p in workspace.nodes.iterdir()) == [
        "a",
        "b-1",
        "c-15",
    ], "refused places are given back"


def test_old_places_count_no_more_and_a_torn_list_is_no_error(workspace):
    (workspace.root / "recent-nodes").write_text("12 1\nnonsense\n")
    assert workspace.new_node("n").is_dir()
    assert len((workspace.root / "recent-nodes").read_text().splitlines()) == 1


def test_spread_says_whether_the_file_system_took_it(tmp_path):
    assert room.spread(tmp_path) in (True, False)
    assert room.spread(tmp_path / "absent") is False


# -- whose it is -----------------------------------------------------------------------------------


def let_through(path):
    """Others may pass these directories, as they may pass /home."""
    for above in (path, *path.parents):
        if not above.stat().st_mode & 0o001:
            os.chmod(above, above.stat().st_mode | 0o011)


WHERE = "from labkit.core.workspace import Workspace; print(Workspace.default().ledger)"


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o1777])
def test_a_workspace_that_others_may_write_is_refused_with_the_fix(tmp_path, mode):
    (tmp_path / "lab").mkdir()
    os.chmod(tmp_path / "lab", mode)
    with pytest.raises(LabError) as refused:
        Workspace.at(tmp_path / "lab")
    assert refused.value.fix == f"chmod go-w {tmp_path / 'lab'}"


def test_a_link_is_judged_by_where_it_leads(tmp_path):
    for name, mode in (("open", 0o777), ("closed", 0o700)):
        (tmp_path / name).mkdir()
        os.chmod(tmp_path / name, mode)
        (tmp_path / f"to-{name}").symlink_to(tmp_path / name)
    assert Workspace.at(tmp_path / "to-closed").root == tmp_path / "closed"
    with pytest.raises(LabError, match="may be written by others"):
        Workspace.at(tmp_path / "to-open")
    made = Workspace.at(tmp_path / "lab")
    (made.root / "ledger").symlink_to(tmp_path / "open")
    with pytest.raises(LabError, match="may be written by others"):
        made.ledger  # noqa: B018


def test_rooms_of_an_open_umask_stand_in_a_closed_workspace(tmp_path):
    made = Workspace.at(tmp_path / "lab")
    (made.root / "artifacts").mkdir()
    os.chmod(made.root / "artifacts", 0o775)
    assert made.artifacts.is_dir()
    os.chmod(made.root, 0o755)
    with pytest.raises(LabError):
        made.artifacts  # noqa: B018


@pytest.mark.parametrize("what", ["file", "room a file", "below a file", "loop", "no such name"])
def test_what_cannot_be_a_workspace_is_said_with_a_fix(tmp_path, what):
    (tmp_path / "file").write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(LabError) as refused:
        if what == "room a file":
            made = Workspace.at(tmp_path / "lab")
            (made.root / "runs").write_text("x")
            made.directory("runs")
        Workspace.at(
            {
                "file": tmp_path / "file",
                "below a file": tmp_path / "file" / "lab",
                "loop": tmp_path / "loop",
            }.get(what, "a\0b")
        )
    assert refused.value.fix


@pytest.mark.needs("root")
def test_a_read_only_and_a_full_place_are_said_with_a_fix(tmp_path):
    script = (
        "mount -t tmpfs -o size=4k,nr_inodes=2 tmpfs $0; mkdir $0/x; $1 -c 'from"
        " labkit.core.workspace import Workspace as W; W.at(\"'$0'/lab\")'; mount -o remount,ro $0;"
        " $1 -c 'from labkit.core.workspace import Workspace as W; W.at(\"'$0'/lab\")'"
    )
    (tmp_path / "at").mkdir()
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "at"), sys.executable],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (
        "lab cannot be used: No space left on device" in done.stderr
        and "lab cannot be used: Read-only file system" in done.stderr
    )
    assert done.stderr.count("fix: ") == 2


@pytest.mark.needs("root")
def test_the_workspace_of_another_user_is_refused_and_not_touched(tmp_path):
    home = tmp_path / "home"
    (home / "lab").mkdir(parents=True, mode=0o700)
    (home / "lab" / "ledger").mkdir()
    (home / "lab" / "ledger" / "1-1-0.jsonl").write_text("{}")
    os.chown(home / "lab", UID, UID)
    with pytest.raises(LabError, match="belongs to"):
        Workspace.at(home / "lab")
    assert (home / "lab" / "ledger" / "1-1-0.jsonl").exists()
    root_s = Workspace.at(tmp_path / "root-s")
    let_through(tmp_path)
    done = as_ordinary_user(
        [sys.executable, "-c", WHERE], home=home, env={"LABKIT_HOME": str(root_s.root)}
    )
    assert done.returncode and "belongs to user root" in done.stderr + str(done.stdout)


@pytest.mark.needs("root")
@pytest.mark.parametrize("first", ["root", "user"])
def test_root_under_sudo_and_its_user_do_not_lock_each_other_out(tmp_path, first):
    """Doctor's own advice is `sudo -E labkit …`, with the user's HOME."""
    home, of_root = tmp_path / "home", tmp_path / "root"
    home.mkdir()
    of_root.mkdir(mode=0o700)
    os.chown(home, UID, UID)
    let_through(tmp_path)
    code = (
        "import pwd; from labkit.core import workspace as w; real = pwd.getpwuid; w.pwd ="
        " type('P', (), {'getpwuid': staticmethod(lambda n: type('U', (), {'pw_dir':"
        f" {str(of_root)!r}, 'pw_name': 'root'}}) if n == 0 else real(n))}}); " + WHERE
    )

    def as_root() -> None:
        done = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "HOME": str(home), "LABKIT_HOME": "", "SUDO_UID": str(UID)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert (
            done.stdout.strip() == str(of_root / ".cache" / "labkit" / "ledger")
            and "as root the workspace is" in done.stderr
        )

    def as_user() -> None:
        done = as_ordinary_user([sys.executable, "-c", WHERE], home=home, env={"LABKIT_HOME": ""})
        assert done.stdout.strip() == str(home / ".cache" / "labkit" / "ledger"), done.stderr

    for turn in (as_root, as_user, as_root) if first == "root" else (as_user, as_root, as_user):
        turn()
    assert all(p.stat().st_uid == UID for p in (home / ".cache").rglob("*"))

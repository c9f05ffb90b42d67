from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.core import beside, ledger, takedown
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.snapshot import takedown as snapshot_takedown

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
"""  # noqa: E501 - a program's own lines


def soon(condition, seconds: float = 20) -> bool:
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.02)
    return bool(condition())


def harness(tmp_path: Path, watched: bool):
    process = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(tmp_path / "lab"), "watched" if watched else "alone"],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    noted, marked, path = process.stdout.readline().split()
    return process, int(noted), int(marked), Path(path)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_watchdog_clears_what_a_killed_harness_left(tmp_path, how):
    process, noted, marked, path = harness(tmp_path, watched=True)
    process.send_signal(how)
    process.wait(10)
    assert soon(lambda: not path.exists())
    assert (
        not ledger.start_time(noted)
        and not ledger.start_time(marked)
        and not (tmp_path / "lab" / "left").exists()
    )


def test_the_next_start_sweeps_what_harness_and_watchdog_left(tmp_path):
    process, noted, marked, path = harness(tmp_path, watched=False)
    process.kill()
    process.wait(10)
    assert ledger.start_time(noted) and path.exists()
    with Ledger.open(Workspace.at(tmp_path / "lab"), watch=False):
        assert not path.exists() and not (tmp_path / "lab" / "left").exists()
        assert soon(lambda: not ledger.start_time(noted) and not ledger.start_time(marked))


def test_a_living_harness_is_left_alone_by_a_sweep(tmp_path):
    process, noted, _marked, path = harness(tmp_path, watched=False)
    try:
        assert (
            ledger.sweep(Workspace.at(tmp_path / "lab")) == []
            and ledger.start_time(noted)
            and path.exists()
        )
    finally:
        process.kill()
        process.wait()
        ledger.sweep(Workspace.at(tmp_path / "lab"))


def test_a_process_id_given_to_somebody_else_is_not_killed(workspace):
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        with Ledger.open(workspace, watch=False) as made:
            for kind in ("process", "group"):
                made._append(
                    {
                        "id": f"x.{kind}",
                        "kind": kind,
                        "target": stranger.pid,
                        "started": ledger.start_time(stranger.pid) - 1,
                    }
                )
        assert ledger.start_time(stranger.pid)
    finally:
        stranger.kill()
        stranger.wait()


def test_what_is_done_is_not_ended_again(workspace):
    kept = workspace.artifacts / "kept"
    kept.mkdir()
    with Ledger.open(workspace, watch=False) as made:
        made.done(made.note("dir", kept))
    assert kept.exists()


def test_entries_are_ended_last_first(workspace, monkeypatch):
    order = []
    say = takedown.Action(lambda entry, scope: order.append(entry["word"]))
    monkeypatch.setitem(snapshot_takedown.ACTIONS, "say", say)
    with Ledger.open(workspace, watch=False) as made:
        for word in ("first", "second"):
            made.note("action", "snapshot:say", word=word)
    assert order == ["second", "first"]


def test_an_agent_that_joins_notes_into_the_same_ledger(workspace):
    left = workspace.artifacts / "left"
    left.write_text("x")
    with Ledger.open(workspace, watch=False) as made:
        Ledger.join(made.path, made.mark).note("file", left)
    assert not left.exists() and not made.path.exists()


def test_a_kind_nobody_can_end_is_refused(workspace):
    with Ledger.open(workspace, watch=False) as made:
        for kind, target in (
            ("dream", "x"),
            ("command", "true"),
            ("action", "run"),
            ("action", "snapshot:run"),
            ("action", "core:end"),
            ("action", "..snapshot:wake"),
            ("action", "nowhere:wake"),
            ("dir", "/tmp"),
            ("dir", str(workspace.root)),
            ("file", "/etc/passwd"),
        ):
            with pytest.raises(ValueError):
                made.note(kind, target)


@given(st.binary(max_size=120))
def test_a_torn_ledger_still_names_its_whole_entries(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("l") / "l.jsonl"
    path.write_bytes(
        json.dumps({"id": "1", "kind": "dir", "target": "/x"}).encode()
        + b"\n"
        + junk.replace(b"\n", b"")
    )
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
    """A tree that resists – not there, or busy – once closed the /tmp above it to everybody
    else."""
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


# -- one ledger, its parts, and who carries its mark -----------------------------------------------


def test_whatever_a_harness_starts_while_its_ledger_is_open_is_ended_with_it(workspace):
    with Ledger.open(workspace, watch=False):
        never_noted = subprocess.Popen(["sleep", "600"], start_new_session=True)
        by_its_child = subprocess.Popen(
            ["sh", "-c", "setsid sleep 600 > /dev/null & echo $!"],
            stdout=subprocess.PIPE,
            text=True,
        )
        grandchild = int(by_its_child.communicate()[0])
    assert not ledger.start_time(never_noted.pid) and not ledger.start_time(grandchild)
    assert ledger.MARK not in os.environ


def test_the_end_of_a_part_ends_nothing_of_the_whole(workspace):
    with Ledger.open(workspace, watch=False) as whole:
        outer = subprocess.Popen(["sleep", "600"], start_new_session=True)
        (workspace.artifacts / "outer").mkdir()
        whole.note("dir", workspace.artifacts / "outer")
        with Ledger.open(workspace) as part:
            assert part.path == whole.path and len(list(workspace.ledger.iterdir())) == 1
            inner = subprocess.Popen(["sleep", "600"], start_new_session=True)
            (workspace.artifacts / "inner").mkdir()
            part.note("dir", workspace.artifacts / "inner")
        assert not ledger.start_time(inner.pid) and not (workspace.artifacts / "inner").exists()
        assert ledger.start_time(outer.pid) and (workspace.artifacts / "outer").exists()
    assert not ledger.start_time(outer.pid) and not (workspace.artifacts / "outer").exists()


def test_a_process_of_the_run_notes_into_the_run_s_ledger(workspace):
    code = (
        "from labkit.core.ledger import Ledger, current; from labkit.core.workspace import"
        " Workspace as W; import os, sys; made = current(); left = W.at(sys.argv[1]).artifacts /"
        " 'left'; left.mkdir(); made.note('dir', left); print(made.mark, flush=True); os._exit(9)"
    )
    with Ledger.open(workspace, watch=False) as whole:
        mark = subprocess.run(
            [sys.executable, "-c", code, str(workspace.root)],
            capture_output=True,
            text=True,
            check=False,
        ).stdout.strip()
        assert mark.startswith(whole.mark + "/") and (workspace.artifacts / "left").exists()
    assert not (workspace.artifacts / "left").exists()


def test_a_forked_child_does_not_end_what_its_parent_has_open(workspace):
    with Ledger.open(workspace, watch=False) as made:
        (workspace.artifacts / "kept").mkdir()
        made.note("dir", workspace.artifacts / "kept")
        child = os.fork()
        if not child:
            made.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert (workspace.artifacts / "kept").exists() and made.path.exists()


def test_a_deleted_workspace_is_no_hiding_place(tmp_path):
    """`safe to delete at any time`: what the run had started is ended all the same."""
    process, noted, marked, _path = harness(tmp_path, watched=True)
    subprocess.run(["rm", "-rf", str(tmp_path / "lab")], check=True)
    process.kill()
    process.wait(10)
    assert soon(lambda: not ledger.start_time(noted) and not ledger.start_time(marked))


@pytest.mark.parametrize("make", [beside.becoming, beside.replacing], ids=["directory", "file"])
def test_what_is_being_made_is_on_the_ledger_before_it_exists_and_gone_when_it_failed(
    workspace, tmp_path, make
):
    with Ledger.open(workspace, watch=False) as made:
        with pytest.raises(ZeroDivisionError), make(tmp_path / "target") as part:
            if make is beside.replacing:
                part.write_text("half")
            assert (
                str(part) in [e["target"] for e in ledger.open_entries(made.path)]
                and made.token in part.name
            )
            raise ZeroDivisionError
        assert (
            sorted(p.name for p in tmp_path.iterdir()) == ["lab"]
            and ledger.open_entries(made.path) == []
        )


# -- what a ledger file may not bring about --------------------------------------------------------

HERE = {
    "boot": ledger.boot_id(),
    "pid_namespace": ledger.pid_namespace(),
    "uid": os.geteuid(),
    "pid": 4194000,
    "started": 1,
}


def forged(
    workspace: Workspace, *entries: object, token: str = "0123456789abcdef", **head: object
) -> Path:
    path = workspace.ledger / f"4194000-1-{token}.jsonl"
    path.write_text(
        "".join(
            json.dumps(doc) + "\n"
            for doc in ({"ledger": 2, "token": token, **HERE, **head}, *entries)
        )
    )
    return path


@pytest.fixture
def bystander():
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def at_once(monkeypatch):
    """No process is between fork and exec here."""
    monkeypatch.setattr(takedown, "SETTLE_S", 0.0)


def about(process: subprocess.Popen) -> dict:
    return {"target": process.pid, "started": ledger.start_time(process.pid)}


@pytest.mark.parametrize(
    "head",
    [{"boot": "another"}, {"pid_namespace": 1}, {"uid": os.geteuid() + 1}],
    ids=["another boot", "another PID namespace", "another user"],
)
def test_process_numbers_mean_nothing_outside_of_where_they_were_written(
    workspace, bystander, head
):
    left = workspace.artifacts / "left"
    left.mkdir()
    path = forged(
        workspace,
        *({"id": kind, "kind": kind, **about(bystander)} for kind in ("process", "group")),
        {"id": "d", "kind": "dir", "target": str(left)},
        **head,
    )
    assert ledger.sweep(workspace) == [path.stem] and not left.exists(), "its files are removed"
    assert bystander.poll() is None


def test_the_same_entries_of_here_and_now_are_ended(workspace, bystander):
    """The test before this one can fail."""
    forged(workspace, {"id": "g", "kind": "group", **about(bystander)})
    ledger.sweep(workspace)
    assert soon(lambda: not ledger.start_time(bystander.pid))


def test_a_locked_ledger_is_alive_whatever_its_numbers_say(workspace, bystander):
    """A harness in a container with a PID namespace of its own: its pid is nobody here."""
    path = forged(workspace, {"id": "g", "kind": "group", **about(bystander)}, pid_namespace=1)
    with open(path) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert ledger.sweep(workspace) == [] and path.exists() and bystander.poll() is None


def test_a_group_whose_leader_is_gone_keeps_its_strangers(workspace):
    """The number of a group that ended can be another's by now: only its members that carry the
    mark are ended."""
    token = "fedcba9876543210"
    code = (
        "sleep 600 > /dev/null & echo $!; LABKIT_RUN=labkit-fedcba9876543210 sleep 600 > /dev/null"
        " & echo $!"
    )
    leader = subprocess.Popen(
        ["sh", "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert leader.stdout
    stranger, member = int(leader.stdout.readline()), int(leader.stdout.readline())
    leader.wait()
    try:
        forged(
            workspace,
            {"id": "g", "kind": "group", "target": leader.pid, "started": 12345},
            token=token,
        )
        ledger.sweep(workspace)
        assert ledger.start_time(stranger) and not ledger.start_time(member)
    finally:
        os.kill(stranger, signal.SIGKILL)


def test_a_command_in_a_ledger_is_not_run(workspace, tmp_path, capfd):
    forged(
        workspace,
        {"id": "c", "kind": "command", "target": ["touch", str(tmp_path / "ran")]},
        {"id": "a", "kind": "action", "target": "run", "argv": ["touch", str(tmp_path / "ran")]},
    )
    assert len(ledger.sweep(workspace)) == 1 and not (tmp_path / "ran").exists()
    assert "not run" in capfd.readouterr().err


def test_a_ledger_of_another_user_is_left_alone(workspace):
    if os.geteuid():
        pytest.skip("only root can give a file away")
    (workspace.artifacts / "left").mkdir()
    path = forged(
        workspace, {"id": "d", "kind": "dir", "target": str(workspace.artifacts / "left")}
    )
    os.chown(path, 47110, 47110)
    assert ledger.sweep(workspace) == [] and (workspace.artifacts / "left").exists()


def test_a_link_put_in_the_way_leads_nowhere(workspace, tmp_path):
    outside = tmp_path / "outside"
    (outside / "below").mkdir(parents=True)
    (workspace.artifacts / "way").symlink_to(outside)
    forged(
        workspace,
        {"id": "1", "kind": "dir", "target": str(workspace.artifacts / "way" / "below")},
        {"id": "2", "kind": "dir", "target": str(workspace.artifacts / "way")},
        {"id": "3", "kind": "dir", "target": str(workspace.artifacts / ".." / ".." / "outside")},
    )
    (workspace.ledger / "link.jsonl").symlink_to(outside / "below")
    ledger.sweep(workspace)
    assert (outside / "below").is_dir()


def test_what_stands_outside_is_known_by_the_token_alone(workspace, tmp_path):
    token = "00112233445566aa"
    for name in (f".m.{token}.1-1.part", ".m.0011223344556677.1-1.part", "m"):
        (tmp_path / name).mkdir()
    forged(
        workspace,
        *({"id": p.name, "kind": "dir", "target": str(p)} for p in tmp_path.iterdir()),
        token=token,
    )
    ledger.sweep(workspace)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".m.0011223344556677.1-1.part",
        "lab",
        "m",
    ]


PRECIOUS = ("/", "/home", "/tmp", "/etc/passwd", "..", ".", "", "/proc/1", "/nonexistent")
TARGETS = st.one_of(
    st.sampled_from(PRECIOUS),
    st.integers(-3, 5_000_000),
    st.integers(),
    st.text(max_size=8),
    st.none(),
    st.lists(st.text(max_size=4), max_size=3),
    st.just("OUTSIDE"),
    st.just("OUTSIDE/../OUTSIDE"),
    st.just("LAB"),
    st.just("LAB/artifacts"),
    st.just("LAB/artifacts/../../outside"),
    st.just("LAB/way/precious"),
    st.just("BYSTANDER"),
)
ENTRIES = st.fixed_dictionaries(
    {
        "id": st.one_of(st.text(max_size=3), st.integers()),
        "kind": st.one_of(
            st.sampled_from([*Ledger.KINDS, "command"]), st.text(max_size=4), st.none()
        ),
        "target": TARGETS,
    },
    optional={
        "started": st.one_of(st.integers(), st.none(), st.text(max_size=3)),
        "mark": st.text(max_size=5),
        "root": TARGETS,
        "mark_of_snapshot": TARGETS,
        "pid": TARGETS,
        "argv": st.just(["touch", "/tmp/ran"]),
    },
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(
        ["4194000-1-0123456789abcdef", "1-2", "x", "--", "0123456789abcdef", "4194000-1-0"]
    ),
    head=st.one_of(
        st.none(),
        st.just({}),
        st.fixed_dictionaries(
            {},
            optional={
                "token": st.one_of(st.just("0123456789abcdef"), st.text(max_size=3), st.integers()),
                "pid": st.integers(-2, 9),
                "started": st.integers(0, 9),
                "uid": st.integers(0, 3),
            },
        ),
    ),
    lines=st.lists(st.one_of(ENTRIES, JSON), max_size=6),
    junk=st.binary(max_size=60),
)
def test_whatever_a_ledger_holds_the_sweep_raises_nothing_and_harms_nothing_outside(
    at_once, tmp_path_factory, bystander, name, head, lines, junk
):
    top = tmp_path_factory.mktemp("forged")
    outside, space = top / "outside", Workspace.at(top / "lab")
    (outside / "precious").mkdir(parents=True)
    (space.root / "way").symlink_to(outside)
    text = "\n".join(
        json.dumps(doc)
        for doc in ([] if head is None else [{**HERE, "token": "0123456789abcdef", **head}]) + lines
    )
    for placeholder, real in (
        ("OUTSIDE", str(outside)),
        ("LAB", str(space.root)),
        ('"BYSTANDER"', str(bystander.pid)),
    ):
        text = text.replace(placeholder, real)
    (space.ledger / f"{name}.jsonl").write_bytes(text.encode() + b"\n" + junk)
    ledger.sweep(space)
    assert bystander.poll() is None and (outside / "precious").is_dir() and space.artifacts.is_dir()
    assert not list(space.ledger.glob("*.jsonl"))


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(200, 100_000))
def test_depth_is_no_way_to_stop_a_sweep(at_once, tmp_path_factory, depth):
    space = Workspace.at(tmp_path_factory.mktemp("deep") / "lab")
    (space.ledger / "1-2-deep.jsonl").write_text("[" * depth + "\n" + '{"a":' * depth)
    assert ledger.sweep(space) == ["1-2-deep"]


@pytest.mark.needs("root")
def test_a_ledger_from_another_pid_namespace_is_swept_only_when_its_harness_is_gone(tmp_path):
    """As from a container on a shared volume: numbers mean something else there, the lock means the
    same."""
    lab = tmp_path / "lab"
    process = subprocess.Popen(
        [
            "unshare",
            "--pid",
            "--fork",
            "--mount-proc",
            "--kill-child",
            sys.executable,
            "-c",
            HARNESS,
            str(lab),
            "alone",
        ],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout
    path = Path(process.stdout.readline().split()[2])
    try:
        assert ledger.sweep(Workspace.at(lab)) == [] and (lab / "left").exists()
    finally:
        process.kill()
        process.wait()
    assert (
        soon(lambda: ledger.sweep(Workspace.at(lab)) or not path.exists())
        and not path.exists()
        and not (lab / "left").exists()
    )


# -- named actions ---------------------------------------------------------------------------------


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.parametrize("lie", [0, 1], ids=["that very process", "its number, another's by now"])
def test_a_process_that_was_stopped_to_be_dumped_goes_on(workspace, bystander, lie):
    bystander.send_signal(signal.SIGSTOP)
    assert soon(lambda: state(bystander.pid) == "T")
    forged(
        workspace,
        {
            "id": "w",
            "kind": "action",
            "target": "snapshot:wake",
            "pid": bystander.pid,
            "started": ledger.start_time(bystander.pid) + lie,
        },
    )
    ledger.sweep(workspace)
    assert soon(lambda: state(bystander.pid) == "S") if not lie else state(bystander.pid) == "T"


def test_clones_of_a_snapshot_are_ended_only_when_who_restored_them_is_gone(workspace):
    """Another run may have restored the same snapshot: its clones carry the same mark."""
    environment = {**os.environ, snapshot_takedown.MARK: "criu-process-1f"}
    held = subprocess.Popen(["sleep", "600"], env=environment)
    orphan = int(
        subprocess.run(
            ["sh", "-c", "setsid sleep 600 > /dev/null 2>&1 & echo $!"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    try:
        forged(
            workspace,
            {
                "id": "s",
                "kind": "action",
                "target": "snapshot:end-orphans",
                "mark_of_snapshot": "criu-process-1f",
            },
        )
        ledger.sweep(workspace)
        assert held.poll() is None and not ledger.start_time(orphan)
    finally:
        held.kill()
        held.wait()


@pytest.mark.needs("root")
def test_only_the_lab_s_own_file_system_is_unmounted_outside_of_the_workspace(workspace, tmp_path):
    point = tmp_path / "at"
    point.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(point)], check=True)
    try:
        forged(
            workspace,
            {"id": "u", "kind": "action", "target": "image:unmount-lazy", "path": str(point)},
            {"id": "m", "kind": "mount", "target": str(point)},
        )
        ledger.sweep(workspace)
        assert ledger.is_mounted(point)
    finally:
        subprocess.run(["umount", str(point)], check=True)


def test_a_command_says_that_all_was_taken_down_when_it_was(tmp_path):
    """The ledger is closed before the sentence: when it is read, nothing is left."""
    code = (
        "import sys, labkit.cli as cli; from labkit.core import ledger; import labkit.cli.doctor as"
        " d, subprocess\ndef run(args):\n    ledger.current(); child = subprocess.Popen(['sleep',"
        " '600'], start_new_session=True); print(child.pid, flush=True); raise"
        " KeyboardInterrupt\nd.run = run; sys.exit(cli.main(['doctor']))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "LABKIT_HOME": str(tmp_path / "lab")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout and process.stderr
    child = int(process.stdout.readline())
    assert "everything started was taken down" in process.stderr.readline()
    assert not ledger.start_time(child) and list((tmp_path / "lab" / "ledger").iterdir()) == []
    assert process.wait(30) == 130

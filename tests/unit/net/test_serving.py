"""Servers as processes of their own: they come up, answer, and go – with the block, with the
parent, with the ledger."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from labkit.core.ledger import Ledger, open_entries, start_time
from labkit.errors import BadInput, LabError
from labkit.net.serving import serving


def test_both_kinds_come_up_count_and_end_with_the_block(tmp_path, workspace):
    with Ledger.open(workspace, watch=False) as ledger:
        with (
            serving("registry", tmp_path / "r", ledger=ledger, link="200mbit") as registry,
            serving("store", tmp_path / "s", ledger=ledger) as store,
        ):
            assert {e["target"] for e in open_entries(ledger.path)} == {registry.pid, store.pid}
            assert (registry.stats()["link"], store.stats()["requests"]) == ("200mbit", 0)
            assert store.env["AWS_ENDPOINT_URL"] == store.url
        assert not open_entries(ledger.path)
    assert not start_time(registry.pid) and not start_time(store.pid)


def test_link_and_faults_change_from_outside_and_nonsense_is_refused(tmp_path):
    with serving("store", tmp_path) as served:
        assert served.set_link("rate=1gbit,first_byte=5ms")["link"].endswith("first_byte=5ms")
        served.set_faults(["503:rate=1,path=/nothing"], seed=4)
        with pytest.raises(BadInput):
            served.set_faults(["teapot:rate=1"])
    with pytest.raises(LabError, match="does not answer"):
        served.stats()


def test_a_server_that_cannot_start_says_why(tmp_path):
    with serving("store", tmp_path) as served, pytest.raises(LabError, match="cannot listen"):
        with serving("registry", tmp_path / "r", port=served.port):
            pass


def test_a_server_ends_when_its_parent_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom labkit.net.serving import serving\nwith serving('store',"
        " sys.argv[1]) as served:\n print(served.pid, flush=True)\n time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout
    pid = int(parent.stdout.readline())
    born = start_time(pid)
    assert born
    fd = os.pidfd_open(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    import select

    assert select.select([fd], [], [], 20)[0], "the server outlived its parent"
    os.close(fd)


def test_pulls_of_a_tiny_image_are_compared_with_floors_and_evidence(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    from labkit.bench.pull import compare_pulls

    doc = compare_pulls(
        "registry-one-stream",
        "object-pull",
        "object-pull-none",
        image="tiny",
        link="loopback",
        blocks=1,
    )
    rows = {r["arm"]: r for r in doc["results"]}
    assert all(r["n"] == 1 and not r["failed"] and r["floor_s"] > 0 for r in rows.values())
    assert {"object-pull_vs_floor", "object-pull-none_vs_object-pull"} <= set(doc["ratios"])
    assert not list((tmp_path / "home" / "artifacts").glob("bench-pull-*"))


def test_an_unknown_arm_is_refused_with_the_list():
    from labkit.bench.pull import compare_pulls

    with pytest.raises(BadInput, match="no arm"):
        compare_pulls("carrier-pigeon")

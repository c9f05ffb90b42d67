"""labkit.core.beside: what is built once is whole, and built by one."""

from __future__ import annotations

import threading

import pytest

from labkit.core import ledger
from labkit.core.beside import build_once
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.delenv(ledger.MARK, raising=False)
    return Workspace.at(tmp_path / "lab")


def test_what_is_there_is_kept_and_many_at_once_build_one(workspace):
    target, builds, begin = workspace.artifacts / "thing-1f", [], threading.Barrier(4)

    def build(part):
        builds.append(part)
        (part / "a").write_text("whole")

    def one() -> None:
        begin.wait()
        assert (build_once(target, build) / "a").read_text() == "whole"

    with Ledger.open(workspace, watch=False):
        threads = [threading.Thread(target=one) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(builds) == 1 and builds[0] != target


def test_a_build_that_fails_leaves_nothing_and_the_next_one_builds(workspace):
    target = workspace.artifacts / "thing-1f"

    def broken(part):
        (part / "half").write_text("x")
        raise ZeroDivisionError

    with Ledger.open(workspace, watch=False):
        with pytest.raises(ZeroDivisionError):
            build_once(target, broken)
        assert [p.name for p in workspace.artifacts.iterdir()] == [".thing-1f.lock"]
        build_once(target, lambda part: (part / "a").write_text("whole"))
    assert (target / "a").read_text() == "whole" and not (target / "half").exists()

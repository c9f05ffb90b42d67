from __future__ import annotations

from pathlib import Path

import pytest

from labkit.core import capabilities
from labkit.core.probes import containers, criu_cycle

LOG = (
    "(00.100000) cpu: fpu:0\n"
    "(00.200000) Error (criu/cr-restore.c:1480): 17 killed by signal 4: Illegal instruction\n"
    "(00.300000) Error (criu/cr-restore.c:2447): Restoring FAILED.\n"
)


def criu(folder: Path, dump: str, restore: str) -> str:
    """A program in CRIU's place: what it does for each verb, in the images directory; $dumped is
    the process to be dumped."""
    path = folder / "criu"
    path.write_text(
        '#!/bin/sh\ndumped="${8}"\ncd "$3"\n'
        f"case $1 in dump) {dump};; restore) {restore};; esac\n"
    )
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("dump", "restore", "words"),
    [
        ("exit 1", "exit 0", "dump: it ended with 1"),
        ("echo You need to be root; exit 1", "exit 0", "dump: You need to be root"),
        ("kill -9 $dumped", f"printf '{LOG}' >restore.log; exit 1", "killed by signal 4: Illegal"),
        ("kill -9 $dumped", "exit 0", "ended at once"),
    ],
)
def test_what_does_not_work_is_said_in_criu_s_last_words(tmp_path, dump, restore, words):
    assert words in criu_cycle.trouble(criu(tmp_path, dump, restore))


@pytest.mark.needs("criu")
def test_a_small_process_is_dumped_and_restored():
    assert criu_cycle.trouble() == ""


def test_a_criu_that_is_here_and_does_not_work_is_missing(monkeypatch):
    """Its own words, and what to do."""
    monkeypatch.setattr(containers, "lacking", lambda *_: [])
    answers = {"--version": "Version: 4.2", "check": "Looks good."}
    monkeypatch.setattr(containers, "run", lambda argv, *_: (0, answers[argv[1]]))
    monkeypatch.setattr(containers, "probed", lambda _name: capabilities.capability("command:sh"))
    monkeypatch.setattr(criu_cycle, "trouble", lambda: "restore: killed by signal 4")
    found = containers._criu()
    assert not found.ok and "4.2 is here and does not work: restore: killed" in found.missing
    assert "host-tools" in found.fix

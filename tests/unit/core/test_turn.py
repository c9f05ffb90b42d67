from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager

import pytest

from labkit.core import turn as turns

HOLD = (
    "import sys; from labkit.core.turn import turn\n"
    "with turn(lambda text: print(text, flush=True)):\n"
    "    print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture(autouse=True)
def _own_turn(monkeypatch):
    """A name of this test's own: other experiments on this machine are none of its business."""
    monkeypatch.delenv(turns.BESIDE, raising=False)
    monkeypatch.delenv(turns.ENV, raising=False)
    monkeypatch.setattr(turns, "NAME", f"labkit-test-{os.getpid()}")


@contextmanager
def holder(environment=None):
    """A process that holds the turn, or waits for it; ended with the block."""
    code = f"import labkit.core.turn as t; t.NAME = {turns.NAME!r}\n{HOLD}"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stdin.close()


def taken_meanwhile(said):
    """Take the turn in a thread; returns it and the event of having had it."""
    had = threading.Event()

    def take():
        with turns.turn(said.append):
            had.set()

    thread = threading.Thread(target=take, daemon=True)
    thread.start()
    return thread, had


def test_who_waits_is_told_who_holds_the_turn_and_death_gives_it_back():
    with holder() as process:
        assert process.stdout.readline() == "held\n"
        spoken = threading.Event()
        said: list[str] = []
        had = threading.Event()

        def take():
            def say(text):
                said.append(text)
                spoken.set()

            with turns.turn(say):
                had.set()

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        assert spoken.wait(20) and not had.is_set()
        process.kill()
        thread.join(20)
    assert had.is_set() and len(said) == 1
    assert f"process {process.pid} (user " in said[0] and "which measures since" in said[0]


def test_a_process_that_holds_the_turn_may_take_it_again():
    with turns.turn(), turns.turn():
        assert os.environ[turns.ENV].startswith(f"{os.getpid()}-")
    assert turns.ENV not in os.environ and not turns._held


def test_a_child_does_not_wait_for_its_parent_but_for_its_siblings():
    with turns.turn(), holder() as first:
        assert first.stdout.readline() == "held\n"
        with holder() as second:
            assert f"waiting for process {first.pid} " in second.stdout.readline()
            first.stdin.close()
            assert second.stdout.readline() == "held\n"


def test_an_interrupt_ends_the_waiting():
    with turns.turn():
        with holder({turns.ENV: ""}) as process:
            assert "waiting for process" in process.stdout.readline()
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (1, -signal.SIGINT, 130)
            assert process.stdout.read() == ""
    with turns.turn():
        assert turns._held


def test_a_turn_above_that_is_over_is_no_turn():
    with holder({turns.ENV: f"{os.getpid()}-1"}) as process:
        assert process.stdout.readline() == "held\n"
        said: list[str] = []
        thread, had = taken_meanwhile(said)
        process.kill()
        thread.join(20)
        assert had.is_set()


def test_a_forked_child_does_not_keep_the_turn():
    with turns.turn():
        pid = os.fork()
        if not pid:
            os._exit(len(turns._held))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_who_measures_beside_others_on_purpose_takes_no_turn(monkeypatch):
    monkeypatch.setenv(turns.BESIDE, "1")
    with turns.turn():
        assert not turns._held and turns.ENV not in os.environ

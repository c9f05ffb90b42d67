"""A trial ends in a recorded outcome, whatever the server does, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from labkit.core import timeline
from labkit.core.client import _dechunk, ask
from labkit.core.ledger import Ledger, marked_pids
from labkit.core.plan import LaunchPlan, Step
from labkit.core.trial import TrialOptions, complete, free_port, run_trial

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def _steps_importable(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace) as opened:
        yield opened


def plan(mode="ok", *, before=(), **more):
    steps = (*before, Step("start", "tests.support.steps:start", {"mode": mode}))
    return LaunchPlan(
        stack={"image": "none"},
        steps=steps,
        server_env={"PATH": os.environ["PATH"]},
        expected_tokens=(7, 8, 9),
        **{"timeout_s": 20.0, **more},
    )


def run(mode, workspace, ledger, **more):
    return run_trial(plan(mode, **more), arm="arm", workspace=workspace, ledger=ledger)


def test_a_start_that_works_is_ok_and_its_phases_add_up(workspace, ledger):
    trial = run(
        "ok", workspace, ledger, before=(Step("pull", "tests.support.steps:pull", {"size": 5000}),)
    )
    assert trial.outcome == "ok", trial.error
    assert trial.tokens == [7, 8, 9]
    assert {"pull", "start", "import", "first_token"} <= set(trial.phases)
    assert trial.facts["steps"]["pull"]["bytes_fetched"] == 5000
    assert sum(trial.phases.values()) + trial.unaccounted_s == pytest.approx(
        trial.total_s, rel=0.02
    )
    assert trial.cache["state"] == "cold"


@pytest.mark.parametrize("mode", ["busy", "reset"])
def test_the_client_asks_again_until_the_server_can_answer(mode, workspace, ledger):
    trial = run(mode, workspace, ledger)
    assert trial.outcome == "ok", trial.error
    assert trial.facts["attempts"] > 2


@pytest.mark.parametrize(
    "mode, outcome",
    [("wrong", "wrong_tokens"), ("crash", "crashed"), ("die", "killed"), ("refuse", "crashed")],
)
def test_a_failure_is_an_outcome_with_its_reason(mode, outcome, workspace, ledger):
    trial = run(mode, workspace, ledger)
    assert trial.outcome == outcome
    assert trial.error["what"]


def test_a_server_that_a_fault_ended_says_by_which_signal_and_what_to_do(workspace, ledger):
    trial = run("illegal", workspace, ledger)
    assert trial.outcome == "crashed"
    assert "SIGILL (illegal instruction)" in trial.error["what"]
    assert "AMX" in trial.error["why"] and "ONEDNN_MAX_CPU_ISA" in trial.error["fix"]


def test_the_servers_last_words_are_in_the_record(workspace, ledger):
    assert "cannot load the model" in run("crash", workspace, ledger).log_tail


def test_no_token_in_time_is_a_time_out(workspace, ledger):
    assert run("hang", workspace, ledger, timeout_s=1.0).outcome == "timeout"


def test_a_failed_step_keeps_its_what_why_fix(workspace, ledger):
    trial = run("ok", workspace, ledger, before=(Step("pull", "tests.support.steps:fail"),))
    assert trial.outcome == "crashed"
    assert trial.error == {
        "kind": "TransferError",
        "what": "the registry is gone",
        "why": "no bytes",
        "fix": "start it",
    }


def test_evidence_that_is_missing_fails_the_trial(workspace, ledger):
    no = [{"technique": "t", "engaged": False, "how": "the registry sent nothing", "facts": {}}]
    trial = run_trial(
        plan(),
        arm="a",
        workspace=workspace,
        ledger=ledger,
        options=TrialOptions(judge=lambda seen: no),
    )
    assert trial.outcome == "no_evidence"
    assert "sent nothing" in trial.error["what"]


def test_the_judge_sees_the_process_from_outside(workspace, ledger):
    looked = {}

    def judge(seen):
        looked.update(seen)
        return []

    run_trial(
        plan(), arm="a", workspace=workspace, ledger=ledger, options=TrialOptions(judge=judge)
    )
    assert looked["proc"]["io"]["rchar"] > 0
    assert any("python" in m for m in looked["proc"]["maps"])


def test_an_answer_that_outruns_the_agents_report_is_still_looked_at(workspace, ledger):
    looked = {}
    slow = LaunchPlan(
        stack={},
        steps=(Step("start", "tests.support.steps:start_and_linger"),),
        server_env={"PATH": os.environ["PATH"]},
        timeout_s=20.0,
    )
    run_trial(
        slow,
        arm="a",
        workspace=workspace,
        ledger=ledger,
        options=TrialOptions(judge=lambda seen: looked.update(seen) or []),
    )
    assert looked["proc"]["pid"] and looked["facts"]["start"]["pid"]


@pytest.mark.parametrize("mode", ["ok", "crash", "hang"])
def test_nothing_is_left_after_a_trial(mode, workspace, ledger):
    run(mode, workspace, ledger, timeout_s=1.0 if mode == "hang" else 20.0)
    watchdog = ledger._watch.pid
    assert [p for p in marked_pids(ledger.mark) if p != watchdog] == []
    assert list(workspace.nodes.iterdir()) == []


def test_a_client_outside_the_lab_is_heard(workspace, ledger):
    shell = (
        "until curl -sf -o /dev/null -d '{}' $LABKIT_URL/v1/completions; do :; done; echo passed"
    )
    trial = run_trial(
        plan(), arm="a", workspace=workspace, ledger=ledger, options=TrialOptions(at_t0=shell)
    )
    assert "passed" in trial.facts["outside_client"]


HARNESS = """
import sys
from labkit.core.ledger import Ledger
from labkit.core.trial import run_trial
from labkit.core.workspace import Workspace
from tests.unit.core.test_trial import plan
space = Workspace.at(sys.argv[1])
with Ledger.open(space) as ledger:
    print(ledger.mark, flush=True)
    run_trial(plan("hang", timeout_s=60.0), arm="a", workspace=space, ledger=ledger)
"""


def _serving(mark):
    return any("tiny_server" in Path(f"/proc/{p}/cmdline").read_text() for p in marked_pids(mark))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_harness_killed_in_mid_trial_leaves_nothing(how, workspace):
    harness = subprocess.Popen(
        [sys.executable, "-c", HARNESS, str(workspace.root)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.DEVNULL,
    )
    mark = harness.stdout.readline().strip()
    assert mark, "the harness did not start"
    until = time.monotonic() + 30
    while not (started := _serving(mark)) and time.monotonic() < until:
        time.sleep(0.02)
    assert started, "there was nothing to be left"
    harness.send_signal(how)
    harness.wait(30)
    until = time.monotonic() + 30
    while (
        marked_pids(mark) or list(workspace.ledger.iterdir()) or list(workspace.nodes.iterdir())
    ) and time.monotonic() < until:
        time.sleep(0.05)
    assert marked_pids(mark) == []
    assert list(workspace.nodes.iterdir()) == []
    assert list(workspace.ledger.iterdir()) == []


def test_nobody_listening_is_given_up_when_told():
    calls = iter([False, False, True])
    answer = ask("127.0.0.1", free_port(), {}, give_up=lambda: next(calls))
    assert answer.first_token_s is None and answer.attempts == 2


def test_chunked_framing_survives_any_cut():
    wire, expected = b"3\r\nabc\r\n5;x=1\r\ndefgh\r\n0\r\n\r\n", b"abcdefgh"
    for cut in range(1, len(wire)):
        payload, rest, left = _dechunk(wire[:cut], 0)
        more, _, left = _dechunk(rest + wire[cut:], left)
        assert payload + more == expected, cut


def test_start_reaches_to_the_servers_first_line_and_first_token_from_ready():
    spans = [
        timeline.Span("start", 1.0, 1.1, "agent"),
        timeline.Span("import", 1.5, 2.0, "server"),
        timeline.Span("ready", 2.0, 2.1, "server"),
    ]
    whole = {s.name: s for s in complete(spans, 0.0, 3.0)}
    assert (whole["start"].end_s, whole["first_token"].start_s, whole["first_token"].end_s) == (
        1.5,
        2.1,
        3.0,
    )


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 2_0 OK\r\n\r\n",
        b"HTTP/1.1 two OK\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1_0\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000,
    ],
    ids=lambda raw: repr(raw[:60]),
)
def test_a_server_that_speaks_nonsense_is_asked_again_and_never_ends_the_client(raw):
    import socket
    import threading

    asked = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while len(asked) < 3:
                sock, _ = listener.accept()
                with sock:
                    sock.recv(4096)
                    asked.append(1)
                    sock.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        answer = ask(
            "127.0.0.1", listener.getsockname()[1], {"prompt": "x"}, give_up=lambda: len(asked) >= 3
        )
        thread.join()
    assert answer.first_token_s is None and answer.attempts == 3

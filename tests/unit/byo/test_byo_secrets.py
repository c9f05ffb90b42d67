"""A server with a key, measured from outside: it gets the key whole, and nothing that is printed or
kept shows it."""

from __future__ import annotations

import base64
import json
import os
import shlex
import stat
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest

from labkit.core import records
from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan, Step
from labkit.core.trial import TrialOptions, free_port, run_trial

ROOT = Path(__file__).resolve().parents[3]
SERVER = ROOT / "tests" / "support" / "keyed_server.py"
KEY, TOKEN = "sesame \"open\" & 'it' \\ 42/+%", "hub-9f3A/secret+7=="


def forms(value: str) -> set[bytes]:
    texts = {
        value,
        quote(value),
        quote(value, safe=""),
        json.dumps(value)[1:-1],
        json.dumps(json.dumps(value)[1:-1])[1:-1],
        repr(value)[1:-1],
        base64.b64encode(value.encode()).decode(),
        base64.b64encode(f"me:{value}".encode()).decode(),
    }
    return {t.encode() for t in texts}


def files_with(folder: Path, *values: str) -> list[str]:
    return [
        str(p)
        for p in folder.rglob("*")
        if p.is_file()
        and not p.is_symlink()
        and any(f in p.read_bytes() for v in values for f in forms(v))
    ]


@pytest.fixture
def own(tmp_path):
    """`labkit run --command` of the keyed server, as a user types it: (finished process, everything
    it left, what the server was given)."""
    (tmp_path / "model.bin").write_bytes(os.urandom(1 << 20))
    home, out, got = tmp_path / "home", tmp_path / "out", tmp_path / "got.json"
    home.mkdir()

    port = free_port()

    def call(
        *options: str, key: str = KEY, lab: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[bytes]:
        command = [
            sys.executable,
            str(SERVER),
            "--port",
            str(port),
            "--model",
            str(tmp_path / "model.bin"),
            "--got",
            str(got),
            "--api-key",
            key,
            *options,
        ]
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "labkit",
                "run",
                "--command",
                shlex.join(command),
                "--url",
                f"http://127.0.0.1:{port}",
                "--weights",
                str(tmp_path / "model.bin"),
                "--blocks",
                "1",
                "--out",
                str(out / "run.json"),
                "--timeout",
                "60",
                *lab,
            ],
            cwd=tmp_path,
            capture_output=True,
            timeout=300,
            env={
                **os.environ,
                "PYTHONPATH": str(ROOT),
                "LABKIT_HOME": str(home),
                "HF_TOKEN": TOKEN,
            },
        )

    return call, home, out, got


def test_a_server_that_logs_and_answers_with_its_key_leaves_none_of_it(own):
    call, home, out, got = own
    done = call()
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(got.read_text()) == {"key": KEY, "token": TOKEN}
    for stream in (done.stdout, done.stderr):
        assert not [f for v in (KEY, TOKEN) for f in forms(v) if f in stream]
    assert not files_with(home, KEY, TOKEN) + files_with(out, KEY, TOKEN)
    trial = records.read(out / "run.json").trials[0]
    assert (
        "started with *** and ***" in trial.log_tail
        and trial.facts["text"] == "the key is *** and more"
        and "--api-key ***" in (out / "run.json").read_text()
    )
    assert stat.S_IMODE((out / "run.json").stat().st_mode) == 0o600
    shown = subprocess.run(
        [sys.executable, "-m", "labkit", "show", str(out / "run.json"), "--trials"],
        capture_output=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert shown.returncode == 0 and not [
        f for v in (KEY, TOKEN) for f in forms(v) if f in shown.stdout + shown.stderr
    ]
    json.loads(done.stdout.splitlines()[-1])


def test_an_error_that_quotes_the_key_is_told_without_it_even_where_it_was_cut(own):
    call, home, out, got = own
    done = call("--deny")
    assert done.returncode == 2 and json.loads(got.read_text()) == {"key": KEY, "token": TOKEN}
    assert b"the server answered 403" in done.stderr and b"started with *** and ***" in done.stderr
    assert (
        not [f for v in (KEY, TOKEN) for f in forms(v) if f in done.stdout + done.stderr]
        and b"sesame" not in done.stdout + done.stderr
    )
    assert not files_with(home, KEY, TOKEN) and not files_with(out, KEY, TOKEN)


def test_a_run_is_resumed_under_another_key_as_the_same_command(own):
    call, _, out, got = own
    assert call().returncode == 0
    done = call(key="another-key-5521", lab=("--resume", "--blocks", "2"))
    assert done.returncode == 0, done.stderr.decode()
    assert (
        json.loads(got.read_text())["key"] == "another-key-5521"
        and len(records.read(out / "run.json").trials) == 2
    )
    assert not files_with(out, KEY, "another-key-5521")


def test_what_a_node_holds_of_argv_and_environment_is_its_owners_and_its_logs_are_masked(
    workspace, monkeypatch, tmp_path
):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    kept = tmp_path / "kept"
    monkeypatch.setenv("LABKIT_KEEP", str(kept))
    plan = LaunchPlan(
        stack={"image": "none"},
        steps=(Step("start", "tests.support.steps:start_and_tell", {"said": TOKEN}),),
        server_env={"PATH": os.environ["PATH"], "MY_API_KEY": KEY},
        expected_tokens=(7, 8, 9),
        timeout_s=20.0,
    )
    look = (
        f"cd {shlex.quote(str(workspace.root))} && stat -c '%a %n' . ledger/* nodes/*/spec.json"
        " nodes/*/agent.log; grep -c MY_API_KEY nodes/*/spec.json; echo it knows $SERVICE_TOKEN"
    )
    with Ledger.open(workspace) as ledger:
        trial = run_trial(
            plan, arm="arm", workspace=workspace, ledger=ledger, options=TrialOptions(at_t0=look)
        )
    assert trial.outcome == "ok", trial.error
    seen = trial.facts["outside_client"].splitlines()
    assert [line.split()[0] for line in seen[:4]] == ["700", "600", "600", "600"] and seen[-2:] == [
        "1",
        "it knows ***",
    ]
    assert "my key is ***" in trial.log_tail and trial.facts["steps"]["start"]["said"] == "***"
    assert (
        list(kept.iterdir())
        and not files_with(kept, KEY, TOKEN)
        and not files_with(workspace.root, KEY, TOKEN)
    )
    assert {stat.S_IMODE(p.stat().st_mode) for p in kept.rglob("*") if p.is_file()} == {0o600}

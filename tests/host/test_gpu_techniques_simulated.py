"""The GPU's techniques through a whole trial, against the simulated driver: what they do is real,
what it costs is not, and both are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan
from labkit.core.trial import TrialOptions, run_trial
from labkit.core.workspace import Workspace
from labkit.stack.compose import Stack, compose, judge, prepare
from labkit.stack.spec import PROMPT
from labkit.subject import checkpoint, reference
from labkit.technique import Subject


@pytest.fixture(scope="module")
def home(lab_home) -> Workspace:
    return Workspace.at(lab_home)


@pytest.fixture(scope="module")
def subject(home) -> Subject:
    return Subject(model_dir=Path(checkpoint.ensure(home, "tiny")), preset="tiny")


@pytest.fixture
def trial(home, subject, tmp_path, monkeypatch):
    """Carries out one hot trial of a stack over the simulated driver."""
    monkeypatch.setenv("LABKIT_FAKE_CUDA", str(tmp_path / "gpu.json"))

    def run(device: str, weights: str = "safetensors"):
        stack = Stack.parse(f"no-image,weights={weights}" + (f",device={device}" if device else ""))
        plan = compose(
            stack,
            prepare(stack, subject, home),
            subject,
            LaunchPlan(
                {},
                "hot-node",
                request={"prompt": PROMPT, "max_tokens": 8},
                expected_tokens=tuple(reference.reference(subject.model_dir, PROMPT, 8)["tokens"]),
            ),
        )
        with Ledger.open(home) as ledger:
            made = run_trial(
                plan,
                arm=stack.name,
                workspace=home,
                ledger=ledger,
                options=TrialOptions(judge=lambda seen: judge(stack, seen)),
            )
        assert made.outcome == "ok", (made.outcome, made.error, made.log_tail[-800:])
        return made, {e["technique"]: e for e in made.evidence}

    return run


def test_a_warm_standby_is_woken_and_answers_with_the_right_tokens(trial):
    made, evidence = trial("warm-standby")
    assert set(made.phases) == {"start", "load", "ready", "first_token"}
    found = evidence["warm-standby"]
    assert "simulated" in found["how"] and found["facts"]["asleep_bytes"] > 1_000_000
    assert found["facts"]["read_since_t0_bytes"] < found["facts"]["asleep_bytes"]
    assert any("torch" in path for path in found["facts"]["resident_before_t0"])
    assert "process" not in evidence and "safetensors" not in evidence


@pytest.mark.parametrize(("name", "count"), [("fewer-graphs", 1), ("all-graphs", 7)])
def test_graphs_are_recorded_before_the_server_is_ready(trial, name, count):
    made, evidence = trial(name)
    found = evidence[name]
    assert len(found["facts"]["recorded"]) == count and "simulated" in found["how"]
    assert sum(s["name"] == "warmup.graph" for s in made.spans) == count


def test_weights_that_a_daemon_holds_are_mapped_and_not_read(trial):
    _made, evidence = trial("", "device-resident")
    found = evidence["device-resident"]
    assert (
        "simulated" in found["how"]
        and found["facts"]["copied_bytes"] == 0
        and found["facts"]["mapped_bytes"] > 1_000_000
    )
    assert any("torch" in path for path in found["facts"]["resident_before_t0"])
    assert not Path(f"/proc/{found['facts']['daemon_pid']}").exists()

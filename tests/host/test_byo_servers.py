"""Servers that we did not write, measured from outside: their phases cover the time to the first
token."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labkit.byo.trials import OwnOptions, run
from labkit.core.trial import free_port


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    from labkit.subject.checkpoint import make_checkpoint

    directory = tmp_path_factory.mktemp("model") / "m"
    make_checkpoint(directory, size_bytes=80_000_000)
    return directory


@pytest.fixture(autouse=True)
def _only_weights(monkeypatch):
    # The test runner itself may have torch mapped, and what is mapped cannot be made cold.
    monkeypatch.setattr(
        "labkit.byo.start.cold_trees", lambda server, maps: ([str(server.weights)], [])
    )
    # floors have tests of their own
    monkeypatch.setattr(
        "labkit.byo.trials.rates.measure", lambda space: {"disk_read_bytes_per_s": 1e9}
    )


def measured(trial):
    assert trial.outcome == "ok", trial.error
    assert trial.cache["state"] == "cold" and trial.evidence[0]["engaged"]
    assert trial.unaccounted_s <= 0.1 * trial.total_s
    assert {"import", "load", "first_token"} <= set(trial.phases)
    return trial


@pytest.mark.needs("transformers-serve")
def test_transformers_serve_is_measured_with_its_phases(model, workspace):
    port = free_port()
    made = run(
        OwnOptions(
            command=(
                f"{Path(sys.executable).parent / 'transformers'} serve {model} --device cpu --port"
                f" {port}"
            ),
            url=f"http://127.0.0.1:{port}",
            weights=str(model),
            blocks=1,
        ),
        workspace=workspace,
    )
    trial = measured(made.trials[0])
    assert {s["name"] for s in trial.spans if s["source"] == "log"} >= {
        "ready.application",
        "ready.listening",
    }


@pytest.mark.needs("llamacpp")
def test_llama_cpp_pythons_server_is_measured_with_its_phases(model, workspace, tmp_path):
    import subprocess

    subprocess.run(
        [
            sys.executable,
            "-m",
            "labkit",
            "model",
            "convert",
            str(model),
            "--to",
            "gguf:F16",
            str(tmp_path / "gguf"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    weights = next((tmp_path / "gguf").glob("*.gguf"))
    port = free_port()
    made = run(
        OwnOptions(
            command=(
                f"{sys.executable} -m llama_cpp.server --model {weights} --host 127.0.0.1"
                f" --port {port}"
            ),
            url=f"http://127.0.0.1:{port}",
            weights=str(weights),
            blocks=1,
        ),
        workspace=workspace,
    )
    measured(made.trials[0])

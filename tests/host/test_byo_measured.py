"""A server of the user's own, started for real and measured from outside."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from labkit.byo.observe import listening
from labkit.byo.trials import OwnOptions, run
from labkit.core import timeline
from labkit.core.trial import free_port


def test_a_real_server_is_measured_from_outside_and_agrees_with_its_own_spans(
    tmp_path, workspace, monkeypatch
):
    from labkit.subject.checkpoint import make_checkpoint

    make_checkpoint(tmp_path / "model", "tiny")
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"the same in another format")
    own = tmp_path / "spans.jsonl"
    monkeypatch.setenv("LABKIT_TIMELINE", str(own))
    # torch may be mapped by this very process
    monkeypatch.setattr(
        "labkit.byo.start.cold_trees", lambda read, maps: ([str(file) for file in read], [])
    )
    port = free_port()
    made = run(
        OwnOptions(
            command=(
                f"{sys.executable} -m labkit.subject.server --model {tmp_path / 'model'}"
                f" --port {port}"
            ),
            url=f"http://127.0.0.1:{port}",
            weights=str(tmp_path / "model"),
            blocks=1,
            out=str(tmp_path / "run.json"),
        ),
        workspace=workspace,
    )
    trial = made.trials[0]
    assert trial.outcome == "ok" and trial.cache["state"] == "cold", trial.error
    weights = tmp_path / "model" / "model.safetensors"
    assert trial.evidence[0]["facts"]["weights_bytes"] == weights.stat().st_size
    assert trial.unaccounted_s <= 0.1 * trial.total_s and {
        "start",
        "import",
        "build",
        "load",
    } <= set(trial.phases)
    last = {}
    for span in timeline.read(own):
        last[span.name] = span
    assert trial.phases["import"] == pytest.approx(
        last["import"].duration_s + last["context"].duration_s, abs=0.25 * trial.total_s
    )
    assert json.loads(Path(tmp_path / "run.json").read_text())["trials"][0]["outcome"] == "ok"
    assert not listening(port)

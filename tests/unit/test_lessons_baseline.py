"""Baselines: a planted slowdown is named by its phase; the same distribution raises no alarm."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.lessons import baseline

PHASES = {"import": 2.0, "build": 0.3, "load": 1.1, "warmup": 0.2}


def _run(seed: int, extra: dict[str, float] | None = None, n: int = 5, drift: float = 1.0, **host) -> Run:
    rng = random.Random(seed)
    trials = []
    for block in range(n):
        phases = {p: s * drift * rng.lognormvariate(0, 0.02) + (extra or {}).get(p, 0.0) for p, s in PHASES.items()}
        trials.append(Trial("naive", block, 0, total_s=sum(phases.values()) + 0.01, phases=phases, cache={"state": "cold"}))
    arms = [{"name": "naive", "stack": {}, "scenario": "warm-node", "link": "loopback"}]
    return Run("x", "2024-01-01", {"id": "one", **host}, {"arms": arms, "preset": "small"}, {}, tuple(trials))


def test_a_planted_slowdown_is_named_by_its_phase():
    found = baseline.regressions([_run(1)], [_run(2, {"load": 0.2})])
    assert len(found) == 1 and "load took" in found[0] and found[0].index("load took") < found[0].index("total took") if "total took" in found[0] else "load took" in found[0]
    assert "import took" not in found[0]


def test_clean_reruns_raise_no_alarm():
    assert [baseline.regressions([_run(1)], [_run(seed)]) for seed in range(2, 202)] == [[]] * 200


def test_faster_is_no_alarm():
    assert baseline.regressions([_run(1, {"load": 0.4})], [_run(2)]) == []


def test_a_baseline_survives_its_file(tmp_path):
    path = baseline.write([_run(1)], tmp_path / "b.json")
    assert baseline.read(path) == [_run(1)]


@pytest.mark.parametrize("other", [{"id": "two"}])
def test_another_host_is_never_compared(other):
    with pytest.raises(BadInput, match="nothing to compare"):
        baseline.regressions([_run(1)], [replace(_run(2), host=other)])


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"baseline": [{"trials": [{"oops": 1}]}]}'])
def test_a_damaged_baseline_is_refused(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BadInput):
        baseline.read(path)

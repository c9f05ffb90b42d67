"""Baselines: a planted slowdown is named by its phase; the same distribution raises no alarm."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords
from labkit.lessons import baseline

PHASES = {
    "pull": 0.4,
    "unpack": 8.0,
    "start": 0.06,
    "import": 1.4,
    "context": 0.001,
    "build": 1.3,
    "load": 1.6,
    "warmup": 0.08,
    "ready": 0.001,
    "first_token": 0.04,
}


def _run(
    seed: int,
    extra: dict[str, float] | None = None,
    n: int = 5,
    drift: float = 1.0,
    noise: float = 0.02,
    tail: float = 0.0,
    **host,
) -> Run:
    """Log-normal noise on every phase; with `tail`, that share of the phases takes 20 to 100 %
    longer."""
    rng = random.Random(seed)
    trials = []
    for block in range(n):
        long = {p: 1 + (rng.uniform(0.2, 1.0) if rng.random() < tail else 0.0) for p in PHASES}
        phases = {
            p: s * drift * long[p] * rng.lognormvariate(0, noise) + (extra or {}).get(p, 0.0)
            for p, s in PHASES.items()
        }
        trials.append(
            Trial(
                "naive",
                block,
                0,
                total_s=sum(phases.values()) + 0.01,
                phases=phases,
                cache={"state": "cold"},
            )
        )
    arms = [{"name": "naive", "stack": {}, "scenario": "warm-node", "link": "loopback"}]
    return Run(
        "x",
        "2024-01-01",
        {"id": "one", **host},
        {"arms": arms, "preset": "small"},
        {},
        tuple(trials),
    )


def _false_alarms(reruns: int, **how) -> int:
    return sum(
        bool(baseline.regressions([_run(2 * seed, **how)], [_run(2 * seed + 1, **how)]))
        for seed in range(reruns)
    )


def test_a_planted_slowdown_is_named_by_its_phase():
    found = baseline.regressions([_run(1)], [_run(2, {"load": 0.2})])
    assert (
        len(found) == 1
        and found[0].startswith("naive (warm-node, loopback, small, cold): load took")
        and "import took" not in found[0]
    )


def test_200_ms_on_a_load_of_1_6_s_are_caught_in_nine_of_ten_reruns_of_five_trials():
    caught = [
        baseline.regressions([_run(2 * seed)], [_run(2 * seed + 1, {"load": 0.2})])
        for seed in range(60)
    ]
    assert sum(bool(c) and "load took" in c[0] for c in caught) >= 54 and not any(
        "import took" in line for c in caught for line in c
    )


@pytest.mark.parametrize(
    "how",
    [
        {"noise": 0.02},
        {"noise": 0.05},
        {"noise": 0.15},
        {"noise": 0.05, "tail": 0.1},
        {"noise": 0.05, "n": 12},
    ],
    ids=str,
)
def test_ten_clean_reruns_raise_an_alarm_in_fewer_than_one_case_of_twenty(how):
    # 0.5 % a rerun is 5 % in ten; 2 of 120 is chance at that rate, 3 is not
    assert _false_alarms(120, **how) <= 2


def test_a_machine_a_little_slower_in_every_phase_is_said_and_raises_no_alarm():
    judged = baseline.judge([_run(1, n=12)], [_run(2, n=12, drift=1.08)])
    assert not judged.slower and "longer alike" in judged.visible[0]


def test_a_machine_much_slower_is_not_forgiven():
    assert baseline.regressions([_run(1)], [_run(2, drift=1.5)])


def test_a_slow_phase_is_named_on_a_slower_machine_too():
    found = baseline.regressions([_run(1)], [_run(2, {"load": 0.4}, drift=1.05)])
    assert len(found) == 1 and "load took" in found[0] and "import took" not in found[0]


def test_a_verdict_says_what_it_could_not_have_seen():
    noisy = baseline.judge([_run(1, noise=0.15)], [_run(2, {"load": 0.2}, noise=0.15)])
    assert (
        not noisy.slower
        and "a loss would have shown from" in noisy.visible[0]
        and "trials" in noisy.visible[0]
    )
    assert noisy.shifts["naive (warm-node, loopback, small, cold)"]["load"].visible_s > 0.2


def test_an_image_of_another_size_is_another_question():
    larger = _run(2)
    larger.experiment["image_extra_bytes"] = 1
    with pytest.raises(IncomparableRecords, match="nothing to compare"):
        baseline.judge([_run(1)], [larger])


def test_faster_is_no_alarm():
    assert baseline.regressions([_run(1, {"load": 0.4})], [_run(2)]) == []


def test_the_phases_of_a_stack_that_got_slower_are_told_by_seconds_lost():
    judged = baseline.judge([_run(1)], [_run(2, {"load": 0.4, "import": 0.8})])
    found = judged.slower_phases["naive (warm-node, loopback, small, cold)"]
    assert found[:2] == ("import", "load")


def test_a_baseline_that_could_never_be_compared_is_not_written(tmp_path):
    with pytest.raises(IncomparableRecords):
        baseline.write([_run(1, n=2)], tmp_path / "b.json")
    assert not (tmp_path / "b.json").exists()


def test_a_baseline_survives_its_file(tmp_path):
    path = baseline.write([_run(1)], tmp_path / "b.json")
    assert baseline.read(path) == [_run(1)]


@pytest.mark.parametrize("other", [{"id": "two"}])
def test_another_host_is_never_compared(other):
    with pytest.raises(IncomparableRecords, match="nothing to compare"):
        baseline.regressions([_run(1)], [replace(_run(2), host=other)])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "3",
        "null",
        '["trials"]',
        '{"baseline": 3}',
        '{"baseline": [null]}',
        '{"baseline": [{"trials": [{"oops": 1}]}]}',
        "[" * 100_000,
    ],
)
def test_a_damaged_baseline_is_refused(tmp_path, text):
    path = tmp_path / "b.json"
    path.write_text(text)
    with pytest.raises(BadInput):
        baseline.read(path)


def test_a_damaged_run_of_a_baseline_is_named_by_its_place(tmp_path):
    path = baseline.write([_run(1), _run(2)], tmp_path / "b.json")
    doc = json.loads(path.read_text())
    doc["baseline"][1]["trials"][2]["phases"]["load"] = -1.2
    path.write_text(json.dumps(doc))
    with pytest.raises(
        BadInput,
        match=(
            r"baseline\[1\] is a damaged run record: trials\[2\]\.phases\.load: -1\.2 is not a time"
        ),
    ):
        baseline.read(path)


def test_what_keeps_a_stack_from_its_baseline_is_named():
    other = replace(_run(2), experiment={**_run(2).experiment, "conditions": {"timeout_s": 5.0}})
    with pytest.raises(IncomparableRecords) as caught:
        baseline.judge(
            [
                replace(
                    _run(1), experiment={**_run(1).experiment, "conditions": {"timeout_s": 300.0}}
                )
            ],
            [other],
        )
    assert "timeout_s: 300.0 against 5.0" in caught.value.why

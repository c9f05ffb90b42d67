"""The GPU trials' own housekeeping: each guarded, the record written as it grows. Nothing here needs or imitates a GPU."""

from __future__ import annotations

import json

import pytest

from labkit.device import cuda_checkpoint as cuda
from labkit.device import gpu_trials
from labkit.device.fake_driver import FakeDriver


def test_without_a_gpu_every_trial_says_unavailable(tmp_path):
    record = gpu_trials.run(tmp_path, has_gpu=False)
    assert {t["outcome"] for t in record["trials"]} == {"unavailable"} and len(record["trials"]) == len(gpu_trials.TRIALS)


def test_a_trial_that_crashes_loses_nothing_of_the_others(tmp_path):
    def execute(name, command, environment, limit_s):
        if name == "graphs-4":
            raise RuntimeError("the driver is gone")
        return {"outcome": "ok", "seconds": 1.0, "result": {}}

    gpu_trials.run(tmp_path, execute=execute, has_gpu=True)
    written = {t["name"]: t["outcome"] for t in json.loads((tmp_path / "gpu-trials.json").read_text())["trials"]}
    assert written.pop("graphs-4") == "crashed" and set(written.values()) == {"ok"}


def test_a_trial_that_hangs_is_ended_and_recorded():
    done = gpu_trials.in_process("x", ["http.server", "0", "--bind", "127.0.0.1"], {}, 1.0)
    assert done["outcome"] == "timeout"


def test_all_trials_together_fit_the_time_of_one_command():
    assert gpu_trials.BUDGET_S < 540


def test_a_refused_dump_brings_the_parked_process_back():
    driver = FakeDriver({7: 1000})
    with pytest.raises(OSError), cuda.parked_for_dump(driver, 7):
        raise OSError("CRIU refused")
    assert driver.state(7) == "running"


def test_a_dump_that_worked_leaves_the_process_parked_in_the_image():
    driver = FakeDriver({7: 1000})
    with cuda.parked_for_dump(driver, 7):
        pass
    assert driver.state(7) == "checkpointed"

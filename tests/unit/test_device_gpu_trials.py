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


def test_a_trial_that_the_time_left_cannot_hold_is_skipped_with_the_reason(tmp_path):
    clock = {"s": 0.0}

    def execute(name, command, environment, limit_s):
        assert limit_s >= gpu_trials.TRIALS[name].least_s
        clock["s"] += limit_s
        return {"outcome": "ok", "seconds": limit_s, "result": {}}

    record = gpu_trials.run(tmp_path, execute=execute, has_gpu=True, now=lambda: clock["s"])
    trials = {t["name"]: t for t in record["trials"]}
    assert list(trials) == list(gpu_trials.TRIALS) and clock["s"] <= gpu_trials.BUDGET_S
    skipped = [t for t in trials.values() if t["outcome"] == "skipped"]
    assert "cuda-checkpoint-criu-8b" in {t["name"] for t in skipped} and trials["context-lazy"]["outcome"] == "ok"
    assert all("s for all trials were left" in t["error"] or "it needs model" in t["error"] for t in skipped)


def test_a_trial_whose_model_was_not_made_is_skipped_and_names_it(tmp_path):
    def execute(name, command, environment, limit_s):
        return {"outcome": "timeout" if name == "model-1b" else "ok", "seconds": 1.0, "result": {}}

    trials = {t["name"]: t for t in gpu_trials.run(tmp_path, execute=execute, has_gpu=True)["trials"]}
    assert trials["load-1b"]["outcome"] == "skipped" and "model-1b" in trials["load-1b"]["error"]
    assert trials["cuda-checkpoint-8b"]["outcome"] == "ok"


def test_what_is_missing_on_a_host_is_unavailable_with_its_reason():
    done = gpu_trials.in_process("x", ["labkit", "run", "no-image,device=fewer-graphs", "--scenario", "hot-node"], {"CUDA_VISIBLE_DEVICES": ""}, 60)
    if done["outcome"] != "ok":  # a host with a GPU runs it
        assert done["outcome"] == "unavailable" and "gpu" in done["error"]


@pytest.mark.parametrize("name", gpu_trials.TRIALS)
def test_every_trial_names_a_module_and_options_that_are_there(name):
    import importlib.util

    module, *options = gpu_trials.TRIALS[name].command
    assert importlib.util.find_spec(module)
    if module == "labkit":
        from labkit.cli import parser

        parsed = parser(options[0]).parse_args([o.replace("{out}", "/x") for o in options])
        if options[0] == "run":
            from labkit.stack.compose import Stack

            assert len([Stack.parse(s) for s in parsed.stacks]) == 4


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

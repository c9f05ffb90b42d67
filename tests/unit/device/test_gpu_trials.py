"""The GPU trials' own housekeeping: each guarded, the record written as it grows. Nothing here
needs or imitates a GPU."""

from __future__ import annotations

import json

import pytest

from labkit.device import cuda_checkpoint as cuda
from labkit.device import gpu_plans, gpu_trials
from labkit.device.fake_driver import FakeDriver

PLANS = gpu_plans.PLANS


def fine(name, command, environment, limit_s):
    return {"outcome": "ok", "seconds": 1.0, "result": {}}


@pytest.mark.parametrize("plan", PLANS)
def test_without_a_gpu_every_trial_says_unavailable(tmp_path, plan):
    record = gpu_trials.run(tmp_path, plan, has_gpu=False)
    assert {t["outcome"] for t in record["trials"]} == {"unavailable"} and len(
        record["trials"]
    ) == len(PLANS[plan][0])


def test_a_trial_that_crashes_loses_nothing_of_the_others(tmp_path):
    def execute(name, *rest):
        if name == "decode":
            raise RuntimeError("the driver is gone")
        return fine(name, *rest)

    gpu_trials.run(tmp_path, execute=execute, has_gpu=True)
    written = {
        t["name"]: t["outcome"]
        for t in json.loads((tmp_path / "gpu-trials-first.json").read_text())["trials"]
    }
    assert written.pop("decode") == "crashed" and set(written.values()) == {"ok"}


@pytest.mark.parametrize("plan", PLANS)
def test_a_trial_that_the_time_left_cannot_hold_is_skipped_with_the_reason(tmp_path, plan):
    clock = {"s": 0.0}

    def execute(name, command, environment, limit_s):
        assert limit_s >= PLANS[plan][0][name].least_s
        clock["s"] += limit_s
        return {"outcome": "ok", "seconds": limit_s, "result": {}}

    record = gpu_trials.run(tmp_path, plan, execute=execute, has_gpu=True, now=lambda: clock["s"])
    trials = {t["name"]: t for t in record["trials"]}
    assert list(trials) == list(PLANS[plan][0]) and clock["s"] <= PLANS[plan][2]
    skipped = [t for t in trials.values() if t["outcome"] == "skipped"]
    assert "compile" in {t["name"] for t in skipped} and trials["model"]["outcome"] == "ok"
    assert all("s for all trials were left" in t["error"] for t in skipped)


def test_what_needs_a_model_that_was_not_made_is_skipped_and_names_it(tmp_path):
    def execute(name, *rest):
        return {"outcome": "timeout", "seconds": 1.0} if name == "model" else fine(name, *rest)

    trials = {
        t["name"]: t for t in gpu_trials.run(tmp_path, execute=execute, has_gpu=True)["trials"]
    }
    assert trials["load-warm"]["outcome"] == "skipped" and "model" in trials["load-warm"]["error"]
    assert trials["context"]["outcome"] == "ok"


def test_a_trial_that_failed_in_part_does_not_stop_what_comes_after_it(tmp_path):
    def execute(name, *rest):
        return (
            {**fine(name, *rest), "outcome": "failed"}
            if name in ("facts", "model")
            else fine(name, *rest)
        )

    assert {
        t["outcome"] for t in gpu_trials.run(tmp_path, execute=execute, has_gpu=True)["trials"]
    } == {"ok", "failed"}


def test_only_some_bring_what_they_need(tmp_path):
    record = gpu_trials.run(
        tmp_path,
        "second",
        gpu_trials.Selection(only=("decode",)),
        execute=fine,
        has_gpu=True,
    )
    assert [t["name"] for t in record["trials"]] == ["model", "decode"]


def test_the_shape_and_the_folder_reach_the_command(tmp_path):
    asked = {}

    def execute(name, command, *rest):
        asked[name] = command
        return fine(name, command, *rest)

    gpu_trials.run(
        tmp_path, "second", gpu_trials.Selection(preset="tiny"), execute=execute, has_gpu=True
    )
    assert "tiny" in asked["stack"] and f"{tmp_path}/stack-tiny.json" in asked["stack"]
    assert not [a for command in asked.values() for a in command if "{" in a]


def test_what_is_missing_on_a_host_is_unavailable_with_its_reason():
    done = gpu_trials.in_process(
        "x",
        ["labkit", "run", "no-image,device=fewer-graphs", "--scenario", "hot-node"],
        {"CUDA_VISIBLE_DEVICES": ""},
        60,
    )
    if done["outcome"] != "ok":  # a host with a GPU runs it
        assert done["outcome"] == "unavailable" and "gpu" in done["error"]


@pytest.mark.parametrize("plan, name", [(plan, name) for plan in PLANS for name in PLANS[plan][0]])
def test_every_trial_names_a_module_and_options_that_are_there(plan, name):
    import importlib.util

    module, *options = [
        o.replace("{out}", "/x").replace("{preset}", "1b") for o in PLANS[plan][0][name].command
    ]
    assert importlib.util.find_spec(module)
    if module == "labkit":
        from labkit.cli import parser

        parsed = parser(options[0]).parse_args(options)
        if options[0] == "run":
            from labkit.stack.compose import Stack

            assert [Stack.parse(s) for s in parsed.stacks] and parsed.device == "cuda"


def script(tmp_path, text):
    """A module of its own, on the path of the trial's process."""
    (tmp_path / "trial_under_test.py").write_text(text)
    return ["trial_under_test"], {"PYTHONPATH": f"{tmp_path}:."}


@pytest.mark.parametrize(
    "ending, outcome, kept",
    [
        ("", "ok", {"n": 2}),
        ("raise SystemExit(1)", "failed", {"n": 2}),
        ("import os; os.kill(os.getpid(), 9)", "crashed", {"n": 2}),
        ("raise SystemExit(3)", "unavailable", {"n": 2}),
        ("import time; time.sleep(60)", "timeout", {"n": 2}),
    ],
)
def test_what_was_printed_is_kept_whatever_becomes_of_the_trial(tmp_path, ending, outcome, kept):
    command, environment = script(
        tmp_path,
        "import sys\nprint('{\"n\": 1}')\nprint('{\"n\": 2}')\nprint('{\"n\": 3',"
        f" flush=True)\nprint('why', file=sys.stderr, flush=True)\n{ending}\n",
    )
    done = gpu_trials.in_process("x", command, environment, 3.0)
    assert (done["outcome"], done.get("result")) == (outcome, kept)
    assert outcome == "ok" or "why" in done["error"]


def test_what_hangs_is_ended_with_everything_below_it(tmp_path):
    from labkit.core.takedown import start_time

    command, environment = script(
        tmp_path,
        "import json, signal, subprocess, sys, time\nsignal.signal(signal.SIGINT,"
        " signal.SIG_IGN)\np = subprocess.Popen([sys.executable, '-c', 'import time;"
        " time.sleep(600)'], start_new_session=True)\nprint(json.dumps({'pid': p.pid}),"
        " flush=True)\ntime.sleep(600)\n",
    )
    done = gpu_trials.in_process("x", command, environment, 2.0)
    assert done["outcome"] == "timeout" and not start_time(done["result"]["pid"])


def test_what_hangs_can_put_away_its_things_first(tmp_path):
    command, environment = script(
        tmp_path,
        "import time\nprint('{}', flush=True)\ntry:\n    time.sleep(60)\nfinally:\n   "
        " print('{\"put_away\": true}', flush=True)\n",
    )
    assert gpu_trials.in_process("x", command, environment, 2.0)["result"] == {"put_away": True}


def test_both_plans_fit_what_one_command_may_take():
    assert all(seconds < 540 for _, _, seconds in PLANS.values())


def test_facts_leave_a_reason_in_the_place_of_an_answer_and_no_serial_number(monkeypatch, capsys):
    from labkit.device import gpu_facts

    def broken():
        raise OSError("no such device")

    monkeypatch.setattr(gpu_facts, "facts", lambda: {"first": broken, "second": lambda: {"x": 1}})
    assert gpu_facts.main() == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert "no such device" in last["first"]["failed"] and last["second"] == {"x": 1}
    assert gpu_facts._PRIVATE.match(
        "    GPU UUID                              : GPU-1234"
    ) and gpu_facts._PRIVATE.match("    Serial Number                         : 123")


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

"""The rehearsal's judgement, and the driver that is none under the lab's own calls of it."""

import importlib.util
import json
import os
import shutil
import subprocess
from importlib.machinery import SourceFileLoader
from pathlib import Path

import pytest

from labkit.device import cuda_checkpoint as cuda
from labkit.device import libcuda

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def rehearsal():
    loader = SourceFileLoader("gpu_rehearsal", str(ROOT / "scripts" / "gpu-rehearsal"))
    module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
    loader.exec_module(module)
    return module


@pytest.fixture
def driver(tmp_path):
    compiler = shutil.which("gcc") or shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler")
    library = tmp_path / "libcuda.so.1"
    subprocess.run(
        [
            compiler,
            "-shared",
            "-fPIC",
            "-std=gnu17",
            "-w",
            f'-DFAKECUDA_DIR="{tmp_path}/state"',
            str(ROOT / "tests" / "fakecuda" / "driver.c"),
            "-o",
            str(library),
            "-ldl",
        ],
        check=True,
    )
    return libcuda.Libcuda(str(library))


@pytest.fixture
def process(tmp_path):
    """One that the fake runtime would have told of."""
    with subprocess.Popen(["sleep", "600"]) as child:
        (tmp_path / "state").mkdir()
        (tmp_path / "state" / str(child.pid)).write_text(f"0 1000 {_started(child.pid)} 0\n")
        yield child.pid
        child.kill()


def _started(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def record(out, plan="first", text=None, **trial):
    out.mkdir(exist_ok=True)
    (out / f"gpu-trials-{plan}.json").write_text(
        text or json.dumps({"trials": [{"name": "a", "outcome": "ok", "result": {}, **trial}]})
    )
    return out


def test_the_real_calls_park_and_wake_a_process_over_the_fake_driver(driver, process):
    cuda.park(driver, process)
    assert driver.state(process) == "checkpointed"
    cuda.wake(driver, process)
    assert driver.state(process) == "running"


def test_the_fake_driver_refuses_a_step_from_a_wrong_state_and_an_unknown_process(driver, process):
    with pytest.raises(cuda.DriverRefused, match="ILLEGAL_STATE"):
        driver.checkpoint(process)
    with pytest.raises(cuda.DriverRefused, match="INVALID_VALUE"):
        driver.state(os.getpid())


def test_the_fake_driver_takes_another_start_time_for_a_criu_restore_only_when_parked(
    driver, process, tmp_path
):
    state = tmp_path / "state" / str(process)
    state.write_text("0 1000 1 0\n")
    with pytest.raises(cuda.DriverRefused):
        driver.state(process)
    state.write_text("0 1000 1 1\n")
    assert driver.state(process) == "checkpointed"


def test_a_record_in_which_all_trials_are_ok_holds(rehearsal, tmp_path):
    assert rehearsal.judge(record(tmp_path / "out"), "first", 1, 10) == ([], [])


def test_a_trial_that_failed_a_record_that_is_no_json_and_a_plan_that_took_too_long_do_not_hold(
    rehearsal, tmp_path
):
    assert (
        "boom"
        in rehearsal.judge(
            record(tmp_path / "a", outcome="failed", result={"failed": ["boom"]}), "first", 1, 10
        )[0][0]
    )
    assert (
        "NaN"
        in rehearsal.judge(
            record(
                tmp_path / "b",
                text='{"trials": [{"name": "a", "outcome": "ok", "result": {"x": NaN}}]}',
            ),
            "first",
            1,
            10,
        )[0][0]
    )
    assert "20 s, of 10 s" in rehearsal.judge(record(tmp_path / "c"), "first", 20, 10)[0][0]
    assert "no usable record" in rehearsal.judge(tmp_path, "second", 1, 10)[0][0]


def test_what_the_fake_runtime_cannot_do_is_waived_only_where_nothing_else_failed(
    rehearsal, tmp_path
):
    excused = "cudnn: the server ended\n…RuntimeError: cuDNN error: CUDNN_STATUS_NOT_INITIALIZED"
    wrong, waived = rehearsal.judge(
        record(tmp_path / "a", outcome="failed", result={"failed": [excused]}), "first", 1, 10
    )
    assert not wrong and len(waived) == 1
    assert rehearsal.judge(
        record(tmp_path / "b", outcome="failed", result={"failed": [excused, "eager: boom"]}),
        "first",
        1,
        10,
    )[0]
    row = {
        "arm": "instanttensor.warm",
        "failed": 1,
        "missing": "every trial failed: 'cudaMalloc' -> 801:operation not supported",
    }
    assert not rehearsal.judge(
        record(
            tmp_path / "c",
            outcome="failed",
            result={"failed": 1, "results": [row, {"arm": "safetensors.warm", "failed": 0}]},
        ),
        "first",
        1,
        10,
    )[0]


def test_what_would_not_come_back_is_found(rehearsal, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "fine.json").write_text("{}")
    assert rehearsal.misfits(tmp_path) == []
    (tmp_path / "a" / "b" / "c").mkdir()
    (tmp_path / "a" / "b" / "c" / "deep").write_text("")
    (tmp_path / "with space").write_text("")
    (tmp_path / "link").symlink_to("a")
    assert [line.rpartition(": ")[2] for line in rehearsal.misfits(tmp_path)] == [
        "3 folders down",
        "not a plain file",
        "a name with other characters",
    ]
    for i in range(9):
        (tmp_path / f"f{i}").write_text("")
    assert "at most 8 come back" in rehearsal.misfits(tmp_path)[0]


@pytest.mark.parametrize(
    "result", [{"failed": []}, {"failed": 1}, {"failed": 1, "results": None}, None]
)
def test_a_trial_that_failed_without_naming_an_error_is_never_waived(rehearsal, tmp_path, result):
    wrong, waived = rehearsal.judge(
        record(tmp_path / "out", outcome="failed", result=result), "first", 1.0, 600.0
    )
    assert not waived and len(wrong) == 1 and wrong[0].startswith("first, a: failed: ")

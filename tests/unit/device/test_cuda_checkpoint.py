"""The CUDA checkpoint state machine against the fake driver: every transition, every failure, at
every step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.device import cuda_checkpoint as cuda
from labkit.device.driver_states import STATES
from labkit.device.fake_driver import FakeDriver
from labkit.errors import MissingCapability

PID, BYTES = 4242, 3_000_000_000
ACTIONS = tuple(cuda.TRANSITIONS)


def test_parking_frees_the_gpu_and_waking_gives_it_back():
    driver = FakeDriver({PID: BYTES})
    steps = cuda.park(driver, PID)
    assert driver.state(PID) == "checkpointed"
    assert steps.memory_bytes == {"before": BYTES, "lock": BYTES, "checkpoint": 0}
    assert cuda.wake(driver, PID).memory_bytes["unlock"] == BYTES
    assert driver.state(PID) == "running"


def test_the_fake_says_that_it_is_simulated():
    assert "simulated" in FakeDriver().label and "assumed" in FakeDriver().label


@given(failing=st.sampled_from(["lock", "checkpoint"]), late=st.booleans(), breaks=st.booleans())
@settings(deadline=None)
def test_a_failed_park_ends_running_or_in_a_clear_terminal_error(failing, late, breaks):
    driver = FakeDriver({PID: BYTES})
    (driver.fail_after if late else driver.fail)[failing] = "CUDA_ERROR_UNKNOWN"
    if breaks and not late:
        driver.breaks.add(failing)
    with pytest.raises(cuda.CudaCheckpointError) as caught:
        cuda.park(driver, PID)
    assert caught.value.state == driver.state(PID)
    if breaks and not late:
        assert driver.state(PID) == "failed" and "end it" in caught.value.fix
    else:
        assert driver.state(PID) == "running"


@given(
    plan=st.lists(
        st.tuples(st.sampled_from(ACTIONS), st.sampled_from(["", "fail", "late", "break"])),
        max_size=14,
    )
)
@settings(deadline=None)
def test_any_sequence_of_steps_and_failures_keeps_driver_and_report_in_agreement(plan):
    driver = FakeDriver({PID: BYTES})
    for action, trouble in plan:
        before = driver.state(PID)
        driver.fail.clear(), driver.fail_after.clear(), driver.breaks.clear()
        if trouble == "late":
            driver.fail_after[action] = "late"
        elif trouble:
            driver.fail[action] = "no"
            driver.breaks = {action} if trouble == "break" else set()
        try:
            cuda.step(driver, PID, action)
        except cuda.CudaCheckpointError as error:
            assert error.state == driver.state(PID) in STATES
            assert error.fix
            if before != cuda.TRANSITIONS[action][0]:
                assert driver.state(PID) == before
        else:
            assert (before, driver.state(PID)) == cuda.TRANSITIONS[action]


@given(state=st.sampled_from(["locked", "failed"]))
@settings(deadline=None)
def test_toggling_from_a_state_in_between_is_refused_and_changes_nothing(state):
    driver = FakeDriver({PID: BYTES})
    driver.processes[PID]["state"] = state
    with pytest.raises(cuda.CudaCheckpointError):
        cuda.toggle(driver, PID)
    assert driver.state(PID) == state


def test_a_block_that_fails_while_parked_leaves_the_process_running():
    driver = FakeDriver({PID: BYTES})
    with pytest.raises(RuntimeError, match="refused"), cuda.parked(driver, PID):
        assert driver.state(PID) == "checkpointed"
        raise RuntimeError("refused")
    assert driver.state(PID) == "running"


def test_a_restore_that_fails_leaves_it_checkpointed_and_can_be_tried_again():
    driver = FakeDriver({PID: BYTES})
    cuda.park(driver, PID)
    driver.fail["restore"] = "CUDA_ERROR_NOT_INITIALIZED"
    with pytest.raises(cuda.CudaCheckpointError) as caught:
        cuda.wake(driver, PID)
    assert (
        caught.value.state == "checkpointed" == driver.state(PID) and "restore" in caught.value.fix
    )
    cuda.wake(driver, PID)
    assert driver.state(PID) == "running"


def test_a_restore_that_met_too_little_memory_cannot_be_tried_again_and_the_error_says_so():
    driver = FakeDriver({PID: BYTES})
    cuda.park(driver, PID)
    driver.fail["restore"] = "CUDA_ERROR_OUT_OF_MEMORY"
    for _ in range(2):  # and again with memory free
        with pytest.raises(cuda.CudaCheckpointError) as caught:
            cuda.wake(driver, PID)
        assert caught.value.state == "checkpointed" == driver.state(PID)
        assert "no restore works any more" in caught.value.why and f"kill {PID}" in caught.value.fix


STUB = r"""
#include <string.h>
static int started, state, refuse;
int cuInit(unsigned flags) { started = 1; return flags; }
int cuDriverGetVersion(int *v) { *v = 13000; return 0; }
int cuGetErrorName(int e, const char **s) { if (e == 3) { *s = "CUDA_ERROR_NOT_INITIALIZED"; return 0; } if (e == 401) { *s = "CUDA_ERROR_ILLEGAL_STATE"; return 0; } return 1; }
static int zero(const void *p, int from, int to) { for (int i = from; i < to; i++) if (((const char *)p)[i]) return 0; return 1; }
int cuCheckpointProcessGetState(int pid, int *s) { if (pid != 4242) return 999; *s = state; return 0; }
int cuCheckpointProcessGetRestoreThreadId(int pid, int *t) { *t = pid + 1; return 0; }
int cuCheckpointProcessLock(int pid, void *a) { if (!started) return 3; if (*(unsigned *)a != 1234 || !zero(a, 4, 64)) return 1; if (state) return 401; state = 1; return 0; }
int cuCheckpointProcessCheckpoint(int pid, void *a) { if (state != 1 || !zero(a, 0, 64)) return 401; state = 2; return 0; }
int cuCheckpointProcessRestore(int pid, void *a) { if (!started) return 3; if (state != 2 || !zero(a, 0, 64)) return 401; state = 1; return 0; }
int cuCheckpointProcessUnlock(int pid, void *a) { if (state != 1 || !zero(a, 0, 64)) return 401; state = 0; return 0; }
"""  # noqa: E501 - a program's own lines


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A libcuda.so.1 of ten lines that keeps the driver's states and looks at the arguments it is
    given."""
    import shutil
    import subprocess

    if not shutil.which("cc"):
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "stub.c").write_text(STUB)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", folder / "stub.c"], check=True
    )
    return str(folder / "libcuda.so.1")


def test_the_driver_itself_is_started_and_called_with_its_own_structures(library):
    driver = cuda.Libcuda(library)
    assert driver.version == "13.0" and driver.restore_thread(PID) == PID + 1
    cuda.park(driver, PID, timeout_ms=1234)
    assert driver.state(PID) == "checkpointed"
    with pytest.raises(cuda.DriverRefused, match="CUDA_ERROR_ILLEGAL_STATE"):
        driver.unlock(PID)
    cuda.wake(driver, PID)
    assert driver.state(PID) == "running"
    with pytest.raises(cuda.DriverRefused, match="CUDA error 999"):
        driver.state(1)


def test_a_host_without_the_driver_and_a_driver_without_the_calls_say_what_is_missing(tmp_path):
    import shutil
    import subprocess

    with pytest.raises(MissingCapability, match="no NVIDIA driver"):
        cuda.Libcuda(str(tmp_path / "none.so"))
    if shutil.which("cc"):
        (tmp_path / "old.c").write_text(
            "int cuInit(unsigned f) { return 0; } int cuDriverGetVersion(int *v) { *v = 12040;"
            " return 0; }"
        )
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", tmp_path / "old.so", tmp_path / "old.c"], check=True
        )
        with pytest.raises(MissingCapability, match="CUDA 12.4"):
            cuda.Libcuda(str(tmp_path / "old.so"))


def test_a_process_that_somebody_else_parked_is_left_parked():
    driver = FakeDriver({PID: BYTES})
    driver.processes[PID]["state"] = "checkpointed"
    with pytest.raises(cuda.CudaCheckpointError):
        cuda.park(driver, PID)
    assert driver.state(PID) == "checkpointed"


def test_a_process_without_cuda_is_an_error_in_words():
    with pytest.raises(cuda.CudaCheckpointError, match="knows nothing"):
        cuda.park(FakeDriver(), PID)


def test_the_command_takes_nvidias_arguments(tmp_path, monkeypatch, capsys):
    import json

    from labkit.cli import main

    state = tmp_path / "gpu.json"
    state.write_text(json.dumps({PID: {"state": "running", "bytes": BYTES}}))
    monkeypatch.setenv("LABKIT_FAKE_CUDA", str(state))

    def call(*arguments: str) -> tuple[int, str]:
        status = main(["cuda-checkpoint", *arguments, "--pid", str(PID)])
        return status, capsys.readouterr().out.strip()

    assert call("--get-state") == (0, "running")
    assert call("--action", "lock", "--timeout", "1000")[0] == 0
    assert call("--action", "checkpoint")[0] == 0
    assert call("--get-state") == (0, "checkpointed")
    assert call("--get-restore-tid")[0] == 0
    assert call("--toggle")[0] == 0
    assert call("--get-state") == (0, "running")
    assert call("--action", "restore")[0] == 1

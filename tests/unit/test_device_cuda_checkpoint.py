"""The CUDA checkpoint state machine against the fake driver: every transition, every failure, at every step."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.device import cuda_checkpoint as cuda
from labkit.device.fake_driver import FakeDriver

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


@given(plan=st.lists(st.tuples(st.sampled_from(ACTIONS), st.sampled_from(["", "fail", "late", "break"])), max_size=14))
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
            assert error.state == driver.state(PID) in cuda.STATES
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
    driver.fail["restore"] = "CUDA_ERROR_OUT_OF_MEMORY"
    with pytest.raises(cuda.CudaCheckpointError) as caught:
        cuda.wake(driver, PID)
    assert caught.value.state == "checkpointed" == driver.state(PID)
    cuda.wake(driver, PID)
    assert driver.state(PID) == "running"


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

"""CUDA checkpoints as a state machine: the GPU's memory parked in host memory, and back, without
the program's help.

    running --lock--> locked --checkpoint--> checkpointed --restore--> locked --unlock--> running
        (failed: the end)

The driver does the work (`cuCheckpointProcess*`, CUDA 12.8 and driver 570 on, called here through
ctypes; from 550 on only NVIDIA's utility). Alone it empties the GPU for somebody else while the
process lives on; with CRIU, which cannot see a GPU, it comes first and goes last. Each step is a
span. When a step fails, the steps before it are undone: the process ends up `running`, or the error
says plainly that it did not.

    park(driver, pid)                                   # running → checkpointed
    wake(driver, pid)                                   # checkpointed → running
    with parked(driver, pid): criu.dump(pid, …)         # and back, also when the dump is refused

Limits: GPU memory in use ÷ PCIe rate each way (a copy to pageable host memory: 2–12 GB/s), and that
much host memory free. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from labkit.core import timeline
from labkit.device.driver_states import TRANSITIONS, Driver, DriverRefused
from labkit.device.libcuda import Libcuda
from labkit.errors import LabError


class CudaCheckpointError(LabError):
    """A step failed. `state`: what the process is in now – `running` after a roll-back that
    worked."""

    def __init__(self, what: str, why: str = "", fix: str = "", state: str = "unknown"):
        super().__init__(what, why, fix)
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.what, self.why, self.fix, self.state))


def open_driver(fake: str = "") -> Driver:
    """The real driver; with LABKIT_FAKE_CUDA (a state file) the fake one, for machines and tests
    without a GPU."""
    import os

    path = fake or os.environ.get("LABKIT_FAKE_CUDA", "")
    if path:
        from labkit.device.fake_driver import FakeDriver

        return FakeDriver.at(path)
    return Libcuda()


@dataclass
class Steps:
    """What was done, with seconds and the GPU's memory after each step: the evidence."""

    pid: int
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int | None] = field(default_factory=dict)


def step(
    driver: Driver,
    pid: int,
    action: str,
    *,
    timeout_ms: int = 0,
    steps: Steps | None = None,
    watched: bool = True,
) -> None:
    """One transition, timed. Raises CudaCheckpointError for a wrong state before, a refusal, or a
    wrong state after."""
    before, after = TRANSITIONS[action]
    now = _state(driver, pid)
    if now != before:
        raise CudaCheckpointError(
            f"cannot {action} process {pid}: it is {now}",
            f"{action} goes from {before} to {after}",
            _way_out(pid, now),
            state=now,
        )
    began = timeline.now_s()
    try:
        with timeline.span(f"cuda.{action}", pid=pid):
            if action == "lock":
                driver.lock(pid, timeout_ms)
            else:
                getattr(driver, action)(pid)
    except DriverRefused as error:
        now = _state(driver, pid)
        if action == "restore" and any(name in str(error) for name in _SPOILED):
            raise CudaCheckpointError(
                f"the driver did not restore process {pid}: {error}",
                _NO_SECOND_TRY,
                _way_out(pid, "failed"),
                state=now,
            ) from None
        raise CudaCheckpointError(
            f"the driver did not {action} process {pid}: {error}",
            _reason(action),
            _way_out(pid, now),
            state=now,
        ) from None
    reached = _state(driver, pid)
    if reached != after:
        raise CudaCheckpointError(
            f"{action} of process {pid} ended in state {reached}, not {after}",
            "the driver gave no error",
            _way_out(pid, reached),
            state=reached,
        )
    if steps:
        steps.done.append(action)
        steps.seconds[f"{action}_s"] = timeline.now_s() - began
        if watched:
            steps.memory_bytes[action] = driver.memory_bytes(pid)


def _state(driver: Driver, pid: int) -> str:
    try:
        return driver.state(pid)
    except DriverRefused as error:
        raise CudaCheckpointError(
            f"the driver knows nothing of process {pid}: {error}",
            "it has no CUDA context, has ended, or belongs to another user",
            "nvidia-smi lists the processes on the GPU",
            state="unknown",
        ) from None


#: What a restore says that met too little memory, and what every later one says to the same process
#: (NVIDIA/cuda-checkpoint#44).
_SPOILED = ("CUDA_ERROR_OUT_OF_MEMORY", "CUDA_ERROR_OPERATING_SYSTEM")
_NO_SECOND_TRY = (
    "too little device memory was free for its restore, and after that no restore works any more,"
    " also when memory is free again (NVIDIA/cuda-checkpoint#44); look at what is free before"
)


def _reason(action: str) -> str:
    return {
        "lock": "work that runs on the GPU, or a callback, did not end in time",
        "checkpoint": "memory shared with other processes (IPC, NCCL, UVM) cannot be parked",
        "restore": "the GPU is gone, or of another model",
        "unlock": "",
    }[action]


def _way_out(pid: int, state: str) -> str:
    return {
        "locked": f"labkit cuda-checkpoint --action unlock --pid {pid}",
        "checkpointed": f"labkit cuda-checkpoint --action restore --pid {pid}, then unlock",
        "failed": f"the process cannot go on: end it (kill {pid}) and start it again",
        "running": "it goes on running",
    }.get(state, "nvidia-smi")


def sequence(
    driver: Driver,
    pid: int,
    actions: tuple[str, ...],
    *,
    timeout_ms: int = 0,
    between: Callable[[str], object] | None = None,
) -> Steps:
    """Steps in order; a failure undoes those that were taken. `between(action)` is called after
    each and may fail as well."""
    steps = Steps(pid, memory_bytes={"before": driver.memory_bytes(pid)})
    # whatever state it reaches from here, this sequence brought it there
    ours = _state(driver, pid) == TRANSITIONS[actions[0]][0]
    try:
        for action in actions:
            step(driver, pid, action, timeout_ms=timeout_ms, steps=steps)
            if between:
                between(action)
    except BaseException as error:
        state = roll_back(driver, pid) if ours else _state(driver, pid)
        if isinstance(error, CudaCheckpointError):
            undone = (
                f"; {', '.join(reversed(steps.done))} was undone"
                if steps.done and state == "running"
                else ""
            )
            raise CudaCheckpointError(
                error.what, (error.why + undone).lstrip("; "), _way_out(pid, state), state=state
            ) from None
        raise
    return steps


def roll_back(driver: Driver, pid: int) -> str:
    """Back towards `running` from wherever the process stands now. Returns the state reached;
    raises nothing."""
    for _ in range(len(TRANSITIONS)):
        try:
            state = driver.state(pid)
        except DriverRefused:
            return "unknown"
        action = {"locked": "unlock", "checkpointed": "restore"}.get(state)
        if not action:
            return state
        try:
            getattr(driver, action)(pid)
        except DriverRefused:
            try:
                return driver.state(pid)
            except DriverRefused:
                return "unknown"
    return "unknown"


def park(driver: Driver, pid: int, *, timeout_ms: int = 10_000) -> Steps:
    """running → checkpointed: the GPU is free, the process waits at its next CUDA call."""
    return sequence(driver, pid, ("lock", "checkpoint"), timeout_ms=timeout_ms)


def wake(driver: Driver, pid: int, *, watched: bool = True) -> Steps:
    """checkpointed → running. A restore that fails leaves it checkpointed, to be tried again – but
    not one that met too little memory: it cannot be woken any more.

    watched: ask NVML for the process's memory between the steps; on a clock that runs over them it
    would be a part of what is measured."""
    steps = Steps(pid, memory_bytes={"before": driver.memory_bytes(pid)} if watched else {})
    for action in ("restore", "unlock"):
        step(driver, pid, action, steps=steps, watched=watched)
    return steps


def toggle(driver: Driver, pid: int, *, timeout_ms: int = 10_000) -> Steps:
    state = _state(driver, pid)
    if state == "running":
        return park(driver, pid, timeout_ms=timeout_ms)
    if state == "checkpointed":
        return wake(driver, pid)
    raise CudaCheckpointError(
        f"process {pid} is {state}: toggling goes between running and checkpointed",
        "",
        _way_out(pid, state),
        state=state,
    )


@contextmanager
def parked(driver: Driver, pid: int, *, timeout_ms: int = 10_000) -> Iterator[Steps]:
    """Parked within the block, running after it: also when the block fails (a dump that CRIU
    refuses)."""
    steps = park(driver, pid, timeout_ms=timeout_ms)
    try:
        yield steps
    finally:
        woken = wake(driver, pid)
        steps.done += woken.done
        steps.seconds |= woken.seconds
        steps.memory_bytes |= {k: v for k, v in woken.memory_bytes.items() if k != "before"}


@contextmanager
def parked_for_dump(driver: Driver, pid: int, *, timeout_ms: int = 10_000) -> Iterator[Steps]:
    """Parked for a dump that ends the process. When the block fails, the process is brought back to
    running."""
    steps = park(driver, pid, timeout_ms=timeout_ms)
    try:
        yield steps
    except BaseException:
        wake(driver, pid)
        raise

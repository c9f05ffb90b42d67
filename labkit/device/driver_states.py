"""What every driver that takes CUDA checkpoints agrees on, the real and the simulated one:
states, steps and how a step is refused.

Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

from typing import Protocol

STATES = ("running", "locked", "checkpointed", "failed")


#: action -> (state before, state after)
TRANSITIONS = {
    "lock": ("running", "locked"),
    "checkpoint": ("locked", "checkpointed"),
    "restore": ("checkpointed", "locked"),
    "unlock": ("locked", "running"),
}


class DriverRefused(Exception):
    """What a driver raises for a step it did not take."""


class Driver(Protocol):
    """The five calls of the driver. Each raises DriverRefused; `memory_bytes` is what the process
    holds of the GPU."""

    def state(self, pid: int) -> str: ...
    def lock(self, pid: int, timeout_ms: int) -> None: ...
    def checkpoint(self, pid: int) -> None: ...
    def restore(self, pid: int) -> None: ...
    def unlock(self, pid: int) -> None: ...
    def restore_thread(self, pid: int) -> int: ...
    def memory_bytes(self, pid: int) -> int | None: ...

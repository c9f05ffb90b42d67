"""A CUDA driver that is none: the states and failures of checkpoints, for machines without a GPU.
SIMULATED, and says so.

It keeps the states that NVIDIA documents, one record a process, in memory or in a file (so that
separate calls of `labkit cuda-checkpoint` see one another). Its latencies are ASSUMED – bytes ÷ a
PCIe 4 copy to pageable memory plus a few milliseconds – until a run with `make gpu` is in
data/recorded; nothing it says is a measurement, and it never sleeps unless asked (`pace=1.0`).

    driver = FakeDriver({4242: 3_000_000_000}); driver.fail["checkpoint"] = "out of host memory"
    memory = FakeMemory(capacity_bytes=1_000_000)          # a device's memory, for
        labkit.device.standby

Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import json
import os
import time
import weakref
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.json_types import JsonObject
from labkit.device.driver_states import TRANSITIONS, DriverRefused
from labkit.device.host_memory import HostMemory

if TYPE_CHECKING:
    import torch

LABEL = "simulated driver, assumed latencies"
# (seconds, bytes per second)
ASSUMED = {
    "lock": (0.005, None),
    "checkpoint": (0.05, 6e9),
    "restore": (0.08, 8e9),
    "unlock": (0.002, None),
}


class FakeDriver:
    """`processes`: pid -> GPU bytes. `fail[action]`: message, once; `fail_after[action]`: the step
    is taken, then fails.

    `breaks`: actions whose failure leaves the process in `failed`, as an uncorrectable error does.
    """

    label = LABEL

    def __init__(self, processes: dict[int, int] | None = None, *, pace: float = 0.0):
        self.processes: dict[int, JsonObject] = {
            p: {"state": "running", "bytes": b} for p, b in (processes or {}).items()
        }
        self.fail: dict[str, str] = {}
        self.fail_after: dict[str, str] = {}
        self.breaks: set[str] = set()
        self.calls: list[tuple[str, int]] = []
        self.spent_s = 0.0
        self.pace, self.path = pace, ""

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> FakeDriver:
        """State kept in a file: {"PID": {"state": "running", "bytes": 0}}."""
        driver = cls()
        driver.path = str(path)
        if Path(path).exists():
            driver.processes = {int(k): v for k, v in json.loads(Path(path).read_text()).items()}
        return driver

    def knows(self, pid: int, size_bytes: int) -> None:
        """A process more, running, with so much of the device."""
        self.processes[pid] = {"state": "running", "bytes": size_bytes}
        self._keep()

    def comes_back(self, pid: int) -> None:
        """CRIU restored it: its state is in its own memory, so it is parked again, as it was
        dumped."""
        if pid in self.processes:
            self.processes[pid]["state"] = "checkpointed"
            self._keep()

    def _of(self, pid: int) -> JsonObject:
        if pid not in self.processes:
            raise DriverRefused("CUDA_ERROR_INVALID_VALUE: no CUDA process of that id")
        return self.processes[pid]

    def _go(self, pid: int, action: str) -> None:
        self.calls.append((action, pid))
        about, (before, after) = self._of(pid), TRANSITIONS[action]
        if about["state"] != before:
            raise DriverRefused(f"CUDA_ERROR_ILLEGAL_STATE: {about['state']}")
        message = self.fail.pop(action, "")
        if action == "restore" and about.get("spoiled"):
            # as the driver does after a restore that met too little memory, for good
            message = "CUDA_ERROR_OPERATING_SYSTEM (304)"
        if message:
            about["spoiled"] = about.get("spoiled", False) or (
                action == "restore" and "OUT_OF_MEMORY" in message
            )
            about["state"] = "failed" if action in self.breaks else about["state"]
            self._keep()
            raise DriverRefused(message)
        seconds, rate = ASSUMED[action]
        took_s = seconds + (about["bytes"] / rate if rate else 0.0)
        self.spent_s += took_s
        time.sleep(took_s * self.pace)
        about["state"] = after
        self._keep()
        late = self.fail_after.pop(action, "")
        if late:
            raise DriverRefused(late)

    def _keep(self) -> None:
        if self.path:
            Path(self.path).write_text(json.dumps(self.processes))

    def state(self, pid: int) -> str:
        return str(self._of(pid)["state"])

    def lock(self, pid: int, timeout_ms: int) -> None:
        self._go(pid, "lock")

    def checkpoint(self, pid: int) -> None:
        self._go(pid, "checkpoint")

    def restore(self, pid: int) -> None:
        self._go(pid, "restore")

    def unlock(self, pid: int) -> None:
        self._go(pid, "unlock")

    def restore_thread(self, pid: int) -> int:
        self._of(pid)
        return pid + 1

    def memory_bytes(self, pid: int) -> int | None:
        about = self.processes.get(pid, {"state": "", "bytes": 0})
        return 0 if about["state"] == "checkpointed" else int(about["bytes"])


class _Block(bytearray):
    """A bytearray that can be referred to weakly: it lives as long as the tensor over it."""


class FakeMemory:
    """Device memory that is none: ordinary memory, counted while tensors live in it.
    `capacity_bytes`: a copy beyond it fails as the driver's would."""

    label, device = "simulated device memory", "cpu"

    def __init__(self, capacity_bytes: int | None = None):
        self.capacity_bytes = capacity_bytes
        self._blocks: list[weakref.ref[_Block]] = []

    def on_host(self, size_bytes: int) -> HostMemory:
        import torch

        return HostMemory(torch.empty(size_bytes, dtype=torch.uint8), self.label)

    def on_device(self, size_bytes: int) -> torch.Tensor:
        import torch

        if self.capacity_bytes is not None and self.used_bytes() + size_bytes > self.capacity_bytes:
            raise DriverRefused("CUDA_ERROR_OUT_OF_MEMORY")
        if not size_bytes:
            return torch.empty(0, dtype=torch.uint8)
        block = _Block(size_bytes)
        self._blocks.append(weakref.ref(block))
        return torch.frombuffer(block, dtype=torch.uint8)

    def settle(self) -> None:
        self._blocks = [b for b in self._blocks if b() is not None]

    def used_bytes(self) -> int:
        return sum(len(b() or b"") for b in self._blocks)

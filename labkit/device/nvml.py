"""What NVML says of the first device, and of a process on any: three questions, each a session of
its own.

    device_used_bytes(), process_memory_bytes(pid), persistence_mode()

Nothing is raised where it cannot be asked: no GPU, no package, a container that hides process ids.
Limit: the driver's answer, milliseconds, and its start where persistence mode is off. Lesson:
notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _session() -> Iterator[Any]:
    """pynvml, initialised."""
    import pynvml

    pynvml.nvmlInit()
    try:
        yield pynvml
    finally:
        pynvml.nvmlShutdown()


def process_memory_bytes(pid: int) -> int | None:
    """Device memory of a process, on all devices, by NVML's process list; None where it is not
    known."""
    try:
        with _session() as nvml:
            handles = map(nvml.nvmlDeviceGetHandleByIndex, range(nvml.nvmlDeviceGetCount()))
            processes = [p for h in handles for p in nvml.nvmlDeviceGetComputeRunningProcesses(h)]
        return sum(p.usedGpuMemory or 0 for p in processes if p.pid == pid)
    except Exception:
        return None


def device_used_bytes() -> int | None:
    """What is taken of the first device's memory, by whomever; None where it is not known."""
    try:
        with _session() as nvml:
            return int(nvml.nvmlDeviceGetMemoryInfo(nvml.nvmlDeviceGetHandleByIndex(0)).used)
    except Exception:
        return None


def persistence_mode() -> str:
    """ "on", "off", or why it is not known. Off, the driver starts anew for the first process that
    opens the device."""
    try:
        with _session() as nvml:
            mode = nvml.nvmlDeviceGetPersistenceMode(nvml.nvmlDeviceGetHandleByIndex(0))
            return "on" if mode else "off"
    except Exception as error:
        return f"not known ({type(error).__name__}: {error})"

"""The NVIDIA driver's checkpoint calls, through ctypes: `cuCheckpointProcess*` of libcuda.so.1.

    driver = Libcuda(); driver.lock(pid, 10_000); driver.checkpoint(pid)

The order of the steps, and what is done when one fails, is `labkit.device.cuda_checkpoint`'s.
Limit: GPU memory in use ÷ the bus's rate. Source: cuda.h of CUDA 12.8 to 13.0. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import ctypes

from labkit.device.driver_states import DriverRefused
from labkit.device.nvml import process_memory_bytes
from labkit.errors import MissingCapability

#: CUprocessState of cuda.h, by number.
_PROCESS_STATES = ("running", "locked", "checkpointed", "failed")


class _LockArguments(ctypes.Structure):
    """CUcheckpointLockArgs. The arguments of all four steps are 64 bytes (CUDA 12.8 to 13.0), and
    what is reserved has to be zero."""

    _fields_ = [
        ("timeout_ms", ctypes.c_uint),
        ("reserved0", ctypes.c_uint),
        ("reserved1", ctypes.c_uint64 * 7),
    ]


class _CheckpointArguments(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_uint64 * 8)]


class _RestoreArguments(ctypes.Structure):
    """CUcheckpointRestoreArgs: from 13.0 on with pairs of GPUs, none of which means the same GPU;
    all zero is 12.8's."""

    _fields_ = [
        ("gpu_pairs", ctypes.c_void_p),
        ("gpu_pairs_count", ctypes.c_uint),
        ("reserved", ctypes.c_char * (52 - ctypes.sizeof(ctypes.c_void_p))),
        ("reserved1", ctypes.c_uint64),
    ]


class _UnlockArguments(ctypes.Structure):
    _fields_ = [("reserved", ctypes.c_uint64 * 8)]


class Libcuda:
    """The real one: six calls of libcuda.so.1 (driver 570 on), no package needed. Raises
    MissingCapability where they are not there.

    Without `cuInit` in the process that calls, a restore is CUDA_ERROR_NOT_INITIALIZED unless
    persistence mode is on. A call blocks until its step is done."""

    label = ""

    def __init__(self, library: str = "libcuda.so.1") -> None:
        try:
            self._lib = ctypes.CDLL(library)
        except OSError as error:
            raise MissingCapability(
                "no NVIDIA driver here",
                why=f"CUDA checkpoints are its work ({error})",
                fix="a GPU host with driver 570 or later",
            ) from None
        if code := self._lib.cuInit(0):
            raise MissingCapability(
                f"the NVIDIA driver does not start: {self._name(code)}",
                why="cuInit is its first call",
                fix="nvidia-smi says what is wrong",
            )
        version = ctypes.c_int()
        self._lib.cuDriverGetVersion(ctypes.byref(version))
        self.version = f"{version.value // 1000}.{version.value % 1000 // 10}"
        if not hasattr(self._lib, "cuCheckpointProcessLock"):
            raise MissingCapability(
                f"the driver has no checkpoint calls (it is CUDA {self.version})",
                why="they came with CUDA 12.8",
                fix="driver 570 or later",
            )

    def _name(self, code: int) -> str:
        name = ctypes.c_char_p()
        known = self._lib.cuGetErrorName(code, ctypes.byref(name)) == 0 and name.value
        return (
            f"{name.value.decode(errors='replace')} ({code})"
            if known and name.value
            else f"CUDA error {code}"
        )

    def _call(self, name: str, pid: int, argument: ctypes.Structure | ctypes.c_int) -> None:
        if code := getattr(self._lib, f"cuCheckpointProcess{name}")(
            ctypes.c_int(pid), ctypes.byref(argument)
        ):
            raise DriverRefused(self._name(code))

    def state(self, pid: int) -> str:
        found = ctypes.c_int(-1)
        self._call("GetState", pid, found)
        return (
            _PROCESS_STATES[found.value]
            if 0 <= found.value < len(_PROCESS_STATES)
            else f"state {found.value}"
        )

    def lock(self, pid: int, timeout_ms: int) -> None:
        self._call("Lock", pid, _LockArguments(timeout_ms=timeout_ms))

    def checkpoint(self, pid: int) -> None:
        self._call("Checkpoint", pid, _CheckpointArguments())

    def restore(self, pid: int) -> None:
        self._call("Restore", pid, _RestoreArguments())

    def unlock(self, pid: int) -> None:
        self._call("Unlock", pid, _UnlockArguments())

    def restore_thread(self, pid: int) -> int:
        found = ctypes.c_int(-1)
        self._call("GetRestoreThreadId", pid, found)
        return found.value

    def memory_bytes(self, pid: int) -> int | None:
        return process_memory_bytes(pid)

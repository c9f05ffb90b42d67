"""Device memory shared between processes: cudaMalloc and the handles of CUDA IPC, through the
runtime that torch has loaded.

    pointer = runtime_on("cuda").allocate(size_bytes)                # a whole allocation
    as_bytes(runtime_on("cuda").open(handle), size_bytes, "cuda")    # in another process

A handle names a whole allocation, and torch's allocator would hand out a part of one: the memory is
allocated here. A process cannot open a handle of its own. Limit: one mapping, milliseconds whatever
the size. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

from labkit.core import proc
from labkit.errors import MissingCapability

if TYPE_CHECKING:
    import torch


class Handle(ctypes.Structure):
    """cudaIpcMemHandle_t: 64 bytes, passed by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class Runtime:
    """The calls that torch does not expose. A context of the device must be current:
    torch.cuda.set_device, and something allocated."""

    LAZY_PEER_ACCESS = 1

    def __init__(self) -> None:
        self.library = _runtime_of_torch()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.library.cudaGetErrorString.argtypes = [ctypes.c_int]
        self.library.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
        self.library.cudaIpcGetMemHandle.argtypes = [ctypes.POINTER(Handle), ctypes.c_void_p]
        self.library.cudaIpcOpenMemHandle.argtypes = [
            ctypes.POINTER(ctypes.c_void_p),
            Handle,
            ctypes.c_uint,
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            # torch would take it for a failure of its own next call
            self.library.cudaGetLastError()
            raise MissingCapability(
                f"{name}: {self.library.cudaGetErrorString(status).decode()} ({status})",
                why="weights on the device cannot be shared without it",
                fix=(
                    "both processes on one device, in one container or none; room for the weights:"
                    " nvidia-smi"
                ),
            )

    def allocate(self, size_bytes: int) -> int:
        """The address. Raises MissingCapability, as all of these."""
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), size_bytes)
        return int(pointer.value or 0)

    def handle_of(self, pointer: int) -> bytes:
        handle = Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), pointer)
        return ctypes.string_at(ctypes.byref(handle), ctypes.sizeof(handle))

    def open(self, raw: bytes) -> int:
        """The address here of another process's allocation."""
        pointer = ctypes.c_void_p()
        self._call(
            "cudaIpcOpenMemHandle",
            ctypes.byref(pointer),
            Handle.from_buffer_copy(raw),
            self.LAZY_PEER_ACCESS,
        )
        return int(pointer.value or 0)


def runtime_on(device: str) -> Runtime:
    """With a context of this device ("cuda", "cuda:1") on the calling thread: torch makes it when
    something is allocated first."""
    import torch

    torch.cuda.set_device(torch.device(device).index or 0)
    torch.zeros(1, device=device)
    return Runtime()


def _runtime_of_torch() -> ctypes.CDLL:
    """The one copy of the runtime in this process: torch makes its symbols global; else it is
    looked for among what is mapped."""
    everything = ctypes.CDLL(None)
    if hasattr(everything, "cudaIpcOpenMemHandle"):
        return everything
    here = next((path for path in proc.mapped_files() if "libcudart" in path), "")
    if not here:
        raise MissingCapability(
            "no CUDA runtime in this process",
            why="weights on the device are shared through it",
            fix="the CUDA build of torch: labkit doctor",
        )
    return ctypes.CDLL(here)


class _Foreign:
    """Device memory that torch did not allocate, told to it in the way that all libraries share."""

    def __init__(self, pointer: int, size_bytes: int):
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 2,
        }


def as_bytes(pointer: int, size_bytes: int, device: str) -> torch.Tensor:
    """A tensor of bytes over that memory: not one of them is copied. It never frees them; they go
    with the process."""
    import torch

    tensor = torch.as_tensor(_Foreign(pointer, size_bytes), device=device)
    if tensor.data_ptr() != pointer:
        raise MissingCapability(
            "torch copied the memory that it was to look at",
            why="nothing would be shared",
            fix=f"one device: it is not on {device}",
        )
    return tensor

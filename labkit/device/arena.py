"""One piece of device memory for all tensors of a checkpoint, and where each of them is in it.

    tensors, size_bytes = places("/models/m"); arena = Arena(size_bytes, "cuda")
    shell(arena.bytes, tensors)                  # a module that any loader fills in place

Without a GPU a file without a name (memfd, shared) is in the device's place, and says so. Limit:
none of its own. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import math
import mmap
import os
from typing import TYPE_CHECKING, NamedTuple

from labkit.device.cuda_ipc import as_bytes, runtime_on
from labkit.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

#: Where a tensor begins in the arena, as in torch's own allocations.
ALIGNED_BYTES = 512
SIMULATED = "simulated: shared host memory in the device's place"


def aligned(size_bytes: int) -> int:
    """Bytes from the beginning of a tensor of this size to the next one."""
    return -(-size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES


class Place(NamedTuple):
    """One tensor of a checkpoint: its dtype by torch's name, its offset in the arena in bytes."""

    name: str
    dtype: str
    shape: Sequence[int]
    offset: int


class Arena:
    """`bytes`: a tensor; `handle`, `fd`: how others find it (one of them). `label`: "" or how the
    device is simulated."""

    def __init__(self, size_bytes: int, device: str):
        import torch

        self.size_bytes, self.fd, self.handle, self.label = size_bytes, -1, b"", ""
        if device.startswith("cuda"):
            runtime = runtime_on(device)
            pointer = runtime.allocate(size_bytes)
            self.handle = runtime.handle_of(pointer)
            self.bytes = as_bytes(pointer, size_bytes, device)
        else:
            self.fd, self.label = os.memfd_create("labkit-resident", os.MFD_CLOEXEC), SIMULATED
            os.truncate(self.fd, size_bytes)
            self.bytes = torch.frombuffer(mmap.mmap(self.fd, size_bytes), dtype=torch.uint8)


def places(source: str) -> tuple[list[Place], int]:
    """Every tensor of a safetensors checkpoint, and the arena's size in bytes. Raises BadInput."""
    from labkit.formats.safetensors_header import TORCH, read
    from labkit.weights.loaders.views import torch_dtype
    from labkit.weights.source import open_source

    opened = open_source(source)
    if opened.remote:
        raise BadInput(
            f"{source} is not on this host",
            why="the daemon loads from local files",
            fix="--scenario warm-node",
        )
    found: list[Place] = []
    end = 0
    for shard in opened.shards("safetensors"):
        for entry in read(opened.path(shard)).tensors:
            torch_dtype(entry)  # refuses what torch has no word for
            found.append(Place(entry.name, TORCH[entry.dtype], list(entry.shape), end))
            end += aligned(entry.size_bytes)
    return found, max(end, ALIGNED_BYTES)


def view(
    arena: torch.Tensor, dtype: torch.dtype, shape: Sequence[int], offset: int
) -> torch.Tensor:
    """The tensor of this shape at `offset` bytes of an arena, which is a tensor of bytes."""
    end = offset + math.prod(shape) * dtype.itemsize
    return arena[offset:end].view(dtype).view(tuple(shape))


def view_of(arena: torch.Tensor, place: Place) -> torch.Tensor:
    import torch

    return view(arena, getattr(torch, place.dtype), place.shape, place.offset)


def shell(arena: torch.Tensor, tensors: Sequence[Place]) -> torch.nn.Module:
    """A module with the checkpoint's names whose parameters are parts of the arena: any loader
    fills it in place."""
    import torch

    root = torch.nn.Module()
    for place in tensors:
        *path, leaf = place.name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(
            leaf, torch.nn.Parameter(view_of(arena, place), requires_grad=False)
        )
    return root

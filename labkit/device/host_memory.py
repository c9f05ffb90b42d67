"""Host memory that a sleeping model lies in, and the device memory it came from, as a Protocol.

Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch


class Memory(Protocol):
    """The device's memory as the standby needs it. `device`: what the server is told; `label`: ""
    or how it is simulated."""

    label: str
    device: str

    def on_host(self, size_bytes: int) -> HostMemory: ...
    # a tensor of bytes; raises where the device has too little memory
    def on_device(self, size_bytes: int) -> torch.Tensor: ...
    def settle(self) -> None: ...  # wait for copies, give freed memory back to the driver
    def used_bytes(self) -> int: ...


@dataclass
class HostMemory:
    """`bytes`: a tensor. `how`: what kind of memory that is. `release` ends it; the tensor is not
    to be used any more."""

    bytes: torch.Tensor
    how: str
    release: Callable[[], Any] = lambda: None

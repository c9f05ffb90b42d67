"""Where bytes land: in place where the final memory is the host's, through a bounded ring where it
is not.

    Arena    one page-aligned anonymous mapping a file, laid out as the file: a direct read of the
        chunk *is* its final
             place, tensors are views; nothing is copied and nothing beside the parameters is
                 allocated
    Mapped   the file itself, mapped, what is missing read in: for files that are in the page cache
        already, and for disks
             on which the kernel reads far ahead
    Ring     a few aligned buffers, pre-faulted, pinned when there is a GPU; a chunk is moved on to
        its tensors
             (`cudaMemcpyAsync` on a stream of its own, a plain copy on CPU) while the next ones are
                 read

Huge pages are not asked for: on a fragmented host the kernel compacts memory at every fault
(measured here: one run in three took 2–4 times as long with MADV_HUGEPAGE). Limit: memory bandwidth
for a copy, ~0.25 µs a page for a fault. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from labkit.core.pages import MADV_POPULATE_READ, MADV_POPULATE_WRITE, anonymous, populate
from labkit.formats.layout import TensorEntry
from labkit.weights.loaders.views import torch_dtype, view
from labkit.weights.streamer.plan import PAGE_BYTES, Chunk, File, cut

if TYPE_CHECKING:
    import torch

POPULATE_BYTES = 32 << 20


class Arena:
    """The file's final memory on the host. `memory(chunk)` is writable until the tensors are handed
    out."""

    def __init__(self, file: File):
        self.file = file
        self._map = anonymous(max(PAGE_BYTES, -(-file.size_bytes // PAGE_BYTES) * PAGE_BYTES))
        self._memory = memoryview(self._map)

    def memory(self, chunk: Chunk) -> memoryview:
        """Whole pages: a direct read of a file's end is asked for in whole pages."""
        return self._memory[
            chunk.offset : chunk.offset + -(-chunk.length // PAGE_BYTES) * PAGE_BYTES
        ]

    @property
    def whole(self) -> memoryview:
        return self._memory

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        return view(self._map, entry, entry.offset)


class Mapped:
    """The file as memory, copy-on-write. `read_in` what is missing before tensors are handed out.

    What is resident is not populated: a touch of mapped large folios costs as much after it as
    before it (26 ms a GB either way, and 9 ms for populating with two threads), so mapping those
    pages ahead is time for nothing."""

    def __init__(self, file: File, fd: int):
        self.file = file
        self._map = mmap.mmap(fd, file.size_bytes, access=mmap.ACCESS_COPY)

    def read_in(self, pieces: Sequence[tuple[int, int]], threads: int) -> bool:
        """(offset, length) pieces, in order, from so many threads. False where a page did not come:
        touching it would end the process."""
        return populate(self._map, pieces, MADV_POPULATE_READ, threads)

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        return view(self._map, entry, entry.offset)


class Tensors:
    """Final tensors on a device, a shard in one allocation; `move` copies the part of a chunk that
    belongs to each."""

    def __init__(self, file: File, device: str, given: dict[str, torch.Tensor]):
        import torch

        self.tensors = given | _allocated(
            [e for e in file.layout.tensors if e.name not in given], device
        )
        self.flat = [
            (e.offset, e.end, self.tensors[e.name].detach().reshape(-1).view(torch.uint8))
            for e in file.layout.tensors
            if e.size_bytes
        ]
        self._starts = [start for start, _, _ in self.flat]

    def move(self, chunk: Chunk, staged: torch.Tensor, non_blocking: bool) -> None:
        import bisect

        end = chunk.offset + chunk.length
        for start, stop, flat in self.flat[
            max(0, bisect.bisect_right(self._starts, chunk.offset) - 1) :
        ]:
            if start >= end:
                return
            begin, until = max(start, chunk.offset), min(stop, end)
            if begin < until:
                flat[begin - start : until - start].copy_(
                    staged[begin - chunk.offset : until - chunk.offset], non_blocking=non_blocking
                )

    def tensor(self, entry: TensorEntry) -> torch.Tensor:
        return self.tensors[entry.name]


#: What a device's allocator gives by itself, and more than any kernel asks for.
ALIGNED_BYTES = 512


def _allocated(entries: Sequence[TensorEntry], device: str) -> dict[str, torch.Tensor]:
    """Empty tensors, as views of one allocation: a driver takes up to a millisecond for each, which
    is a second for 300 of a large model."""
    import torch

    begins, size_bytes = [], 0
    for entry in entries:
        begins.append(size_bytes)
        size_bytes += -(-entry.size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
    memory = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    return {
        e.name: memory[at : at + e.size_bytes].view(torch_dtype(e)).view(e.shape)
        for e, at in zip(entries, begins, strict=True)
    }


class Ring:
    """`slots` aligned buffers of `slot_bytes`. A slot is free again when what was copied out of it
    has arrived.

    `copier`: how staged bytes go to a device, or None for a plain copy in the
    reading thread."""

    def __init__(self, slots: int, slot_bytes: int, copier: CudaCopies | None = None):
        import torch

        self._map = anonymous(slots * slot_bytes)
        if copier:
            # A direct read into small pages scattered over memory is cut into many requests; and
            # these are few, and used again and again.
            with contextlib.suppress(OSError):
                self._map.madvise(mmap.MADV_HUGEPAGE)
        self.bytes = torch.frombuffer(self._map, dtype=torch.uint8)
        populate(
            self._map,
            cut(0, len(self._map), POPULATE_BYTES),
            MADV_POPULATE_WRITE,
            8 if copier else 2,
        )
        self.copier = copier
        if copier:
            copier.pin(self.bytes)
        self.slots = [self.bytes[i * slot_bytes : (i + 1) * slot_bytes] for i in range(slots)]
        self._memory = [
            memoryview(self._map)[i * slot_bytes : (i + 1) * slot_bytes] for i in range(slots)
        ]
        self._free = list(range(slots))
        self._flying: list[tuple[int, torch.cuda.Event]] = []
        self._changed = threading.Condition()
        self.overlapped = 0  # copies that were still under way when the next chunk had been read

    def take(self) -> int:
        """A free slot; waits for the oldest copy when none is."""
        with self._changed:
            while not self._free:
                if self._flying:
                    slot, event = self._flying.pop(0)
                    self._changed.release()
                    try:
                        event.synchronize()
                    finally:
                        self._changed.acquire()
                    return slot
                self._changed.wait(0.5)
            return self._free.pop()

    def memory(self, slot: int) -> memoryview:
        return self._memory[slot]

    def move(self, slot: int, chunk: Chunk, into: Tensors) -> None:
        """Send the slot's bytes on and give it back once they have arrived."""
        if self.copier is None:
            into.move(chunk, self.slots[slot], False)
            self.give(slot)
            return
        with self._changed:
            self.overlapped += bool(self._flying) and not self._flying[-1][1].query()
        event = self.copier.copy(lambda: into.move(chunk, self.slots[slot], True))
        with self._changed:
            self._flying.append((slot, event))
            self._changed.notify()

    def give(self, slot: int) -> None:
        with self._changed:
            self._free.append(slot)
            self._changed.notify()

    def drain(self) -> None:
        """Wait for every copy; after this the tensors hold their bytes."""
        for _, event in self._flying:
            event.synchronize()
        self._flying.clear()
        if self.copier:
            self.copier.unpin(self.bytes)


class CudaCopies:
    """Asynchronous copies on a stream of their own, out of registered (pinned) memory."""

    def __init__(self, device: str):
        import torch

        self.device = torch.device(device)
        self.stream = torch.cuda.Stream(self.device)
        # an initialised model may still be filled with its random numbers
        self.stream.wait_stream(torch.cuda.current_stream(self.device))

    def pin(self, memory: torch.Tensor) -> None:
        import torch

        code = torch.cuda.cudart().cudaHostRegister(memory.data_ptr(), memory.numel(), 0)
        if int(code):
            from labkit.errors import LabError

            raise LabError(
                f"cudaHostRegister of {memory.numel()} bytes: {code}",
                why="copies from pageable memory do not overlap",
                fix="raise ulimit -l, or a smaller ring",
            )

    def unpin(self, memory: torch.Tensor) -> None:
        import torch

        torch.cuda.cudart().cudaHostUnregister(memory.data_ptr())

    def copy(self, work: Callable[[], object]) -> torch.cuda.Event:
        import torch

        with torch.cuda.stream(self.stream):
            work()
            event = torch.cuda.Event()
            event.record(self.stream)
        return event


def preferred(files: Sequence[File], device: str = "cpu") -> int:
    """Threads for a local read: enough requests in flight for a drive's queue, not more than there
    is to read. For a GPU more: one thread takes 5 to 10 GB/s out of the page cache, and the bus
    carries 25 to 55."""
    cpus, size_bytes = os.cpu_count() or 1, sum(f.size_bytes for f in files)
    if device.startswith("cuda"):
        return max(1, min(16, size_bytes >> 24, 2 * cpus))
    return max(1, min(8, size_bytes >> 22, 4 * cpus))

"""The streamer: every byte in its place or a clear error, whatever the disk does; memory bounded by
the ring."""

from __future__ import annotations

import errno
import os
import random
import tempfile
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from labkit.core import disks
from labkit.errors import BadInput, TransferError
from labkit.formats.layout import Layout, TensorEntry
from labkit.weights import streamer
from labkit.weights.loaders.views import view
from labkit.weights.source import open_source
from labkit.weights.streamer import buffers, local
from labkit.weights.streamer.buffers import Ring, Tensors
from labkit.weights.streamer.plan import PAGE_BYTES, File, open_files, plan_chunks


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    return {
        f"{i}.weight": torch.randn(n, 33).to(torch.bfloat16)
        for i, n in enumerate((700, 1, 333, 64, 2500))
    }


@pytest.fixture
def directory(tmp_path) -> Path:
    save_file(tensors(), tmp_path / "model.safetensors")
    return tmp_path


def empty() -> nn.ModuleList:
    with torch.device("meta"):
        return nn.ModuleList(
            nn.Linear(33, t.shape[0], bias=False, dtype=torch.bfloat16) for t in tensors().values()
        )


def right(model: nn.Module) -> bool:
    return all(torch.equal(p, tensors()[n]) for n, p in model.named_parameters())


def evicted(directory: Path) -> Path:
    with open(directory / "model.safetensors", "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return directory


@pytest.mark.parametrize("how", [{}, {"read_path": "mapped"}, {"road": "direct"}, {"ring": True}])
@pytest.mark.parametrize("cold", [False, True])
def test_every_byte_is_in_its_place(directory, how, cold):
    model = empty()
    facts = streamer.load(
        model,
        str(evicted(directory) if cold else directory),
        "cpu",
        chunk_bytes=8192,
        threads=4,
        **how,
    )
    assert right(model)
    assert (
        facts["mapped_bytes"]
        or facts["direct_bytes"] + facts["cached_bytes"] >= facts["size_bytes"]
    )
    assert how.get("read_path") != "mapped" or facts["mapped_bytes"] >= facts["size_bytes"]
    assert not (how.get("road") == "direct" or "ring" in how) or not facts["mapped_bytes"]


@pytest.mark.parametrize("ahead, mapped", [(128 << 10, False), (1 << 20, True)])
def test_a_cold_file_is_mapped_where_the_kernel_reads_far_ahead(
    directory, monkeypatch, ahead, mapped
):
    monkeypatch.setattr(disks, "read_ahead_bytes", lambda device: ahead)
    monkeypatch.setattr(local, "resident_share", lambda *range: 0.0)
    model = empty()
    facts = streamer.load(model, str(evicted(directory)), "cpu")
    assert right(model) and bool(facts["mapped_bytes"]) is mapped


def test_the_read_ahead_of_a_file_is_that_of_its_disk(directory):
    with open(directory / "model.safetensors", "rb") as file:
        device = os.fstat(file.fileno()).st_dev
    setting = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")
    has_disk = os.major(device) and setting.exists()
    expected = int(setting.read_text()) << 10 if has_disk else 0
    assert disks.read_ahead_bytes(device) == expected
    made = os.memfd_create("of no disk")
    try:
        assert disks.read_ahead_bytes(os.fstat(made).st_dev) == 0
    finally:
        os.close(made)


def test_where_mapping_brings_a_page_not_the_chunks_are_read(directory, monkeypatch):
    monkeypatch.setattr(buffers, "populate", lambda *how: False)
    model = empty()
    facts = streamer.load(model, str(directory), "cpu", read_path="mapped")
    assert (
        right(model)
        and not facts["mapped_bytes"]
        and facts["direct_bytes"] + facts["cached_bytes"] >= facts["size_bytes"]
    )


def test_a_file_cut_off_while_it_is_mapped_is_an_error_and_no_signal(directory, monkeypatch):
    class CutOff(buffers.Mapped):
        def __init__(self, file, fd):
            super().__init__(file, fd)
            os.truncate(directory / "model.safetensors", 40_000)

    monkeypatch.setattr(buffers, "Mapped", CutOff)
    with pytest.raises(BadInput, match="ended|changed"):
        streamer.load(empty(), str(directory), "cpu", read_path="mapped")


def test_a_road_that_does_not_exist_is_refused(directory):
    with pytest.raises(BadInput, match="read path"):
        streamer.load(empty(), str(directory), "cpu", read_path="scenic")


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a tmpfs at /dev/shm")
@pytest.mark.parametrize("ring", [False, True])
def test_files_of_a_tmpfs_are_in_memory_without_their_pages_being_counted(ring, monkeypatch):
    def counted(*_: object) -> float:
        raise AssertionError("cachestat of a tmpfs walks every page")

    with tempfile.TemporaryDirectory(dir="/dev/shm") as place:
        save_file(tensors(), Path(place) / "model.safetensors")
        monkeypatch.setattr(local, "resident_share", counted)
        model = empty()
        facts = streamer.load(model, place, "cpu", ring=ring, chunk_bytes=8192)
        assert right(model) and not facts["direct_bytes"]
        assert facts["cached_bytes" if ring else "mapped_bytes"] >= facts["size_bytes"]


def test_of_a_file_that_is_almost_in_memory_only_the_missing_pieces_are_read_in(
    tmp_path, monkeypatch
):
    save_file(tensors(), tmp_path / "model.safetensors")
    size, asked = (tmp_path / "model.safetensors").stat().st_size, []
    real = buffers.populate
    monkeypatch.setattr(local, "PIECE_BYTES", PAGE_BYTES)
    monkeypatch.setattr(
        local,
        "resident_share",
        lambda fd, offset, length: 0.99 if length == size else float(offset != 2 * PAGE_BYTES),
    )
    monkeypatch.setattr(
        buffers,
        "populate",
        lambda memory, pieces, *how: asked.extend(pieces) or real(memory, pieces, *how),
    )
    model = empty()
    facts = streamer.load(model, str(tmp_path), "cpu")
    assert right(model) and facts["mapped_bytes"] == size
    assert asked == [(2 * PAGE_BYTES, PAGE_BYTES)]


def test_a_tensor_at_an_odd_place_is_copied_to_an_even_one():
    memory = bytearray(b"\0" * 3 + torch.arange(6, dtype=torch.int16).numpy().tobytes())
    assert view(memory, TensorEntry("w", "I16", (2, 3), 3, 12), 3).tolist() == [
        [0, 1, 2],
        [3, 4, 5],
    ]
    assert view(memory, TensorEntry("none", "BF16", (0, 4), 3, 0), 3).shape == (0, 4)


@given(
    sizes=st.lists(st.integers(0, 20_000), min_size=1, max_size=8),
    chunk_pages=st.integers(1, 4),
    tail=st.sampled_from([0, 4096]),
)
def test_a_plan_covers_every_tensor_once(sizes, chunk_pages, tail):
    at, entries = 500, []
    for i, size in enumerate(sizes):
        entries.append(TensorEntry(str(i), "U8", (size,), at, size))
        at += size
    files = [File("f", Layout("safetensors", "f", at, 500, tuple(entries), {}))]
    chunks = plan_chunks(files, chunk_pages * PAGE_BYTES, tail)
    assert all(
        c.offset % PAGE_BYTES == 0 and 0 < c.length <= chunk_pages * PAGE_BYTES for c in chunks
    )
    reached = 0
    for c in chunks:
        assert c.offset == reached
        reached = c.offset + c.length
    assert reached == at


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), ring=st.booleans())
def test_short_reads_and_refused_direct_reads_lose_nothing(tmp_path_factory, seed, ring):
    directory = tmp_path_factory.mktemp("short")
    save_file(tensors(), directory / "model.safetensors")
    noise, lock = random.Random(seed), threading.Lock()

    def preadv(fd, buffers, offset):
        with lock:
            what = noise.random()
        if what < 0.2:
            raise (
                OSError(errno.EINVAL if what < 0.1 else errno.EIO, "refused")
                if os.get_blocking(fd) and is_direct(fd)
                else InterruptedError()
            )
        if what < 0.7:
            limit = 1 + int(noise.random() * len(buffers[0]))
            if is_direct(fd):
                limit = max(PAGE_BYTES, limit // PAGE_BYTES * PAGE_BYTES)
            return os.preadv(fd, [buffers[0][:limit]], offset)
        return os.preadv(fd, buffers, offset)

    def patient(fd, buffers, offset):
        while True:
            try:
                return preadv(fd, buffers, offset)
            except InterruptedError:
                continue

    model = empty()
    streamer.load(
        model,
        str(evicted(directory)),
        "cpu",
        ring=ring,
        chunk_bytes=16_384,
        threads=3,
        read_path="direct",
        preadv=patient,
    )
    assert right(model)


def is_direct(fd: int) -> bool:
    import fcntl

    return bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)


@pytest.mark.parametrize("ring", [False, True])
def test_a_disk_that_fails_is_a_clear_error(directory, ring):
    def broken(fd, buffers, offset):
        if offset >= 16_384:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.preadv(fd, buffers, offset)

    with pytest.raises(TransferError, match="Input/output error"):
        streamer.load(
            empty(),
            str(evicted(directory)),
            "cpu",
            ring=ring,
            chunk_bytes=8192,
            threads=4,
            read_path="direct",
            preadv=broken,
        )


def test_a_file_that_ends_early_is_refused(directory):
    with pytest.raises(BadInput, match="ended"):
        streamer.load(
            empty(),
            str(evicted(directory)),
            "cpu",
            chunk_bytes=8192,
            read_path="direct",
            preadv=lambda fd, buffers, offset: 0,
        )


def test_a_file_that_changes_meanwhile_is_refused(directory):
    path = directory / "model.safetensors"

    def changing(fd, buffers, offset):
        os.utime(path, ns=(1, 1))
        return os.preadv(fd, buffers, offset)

    with pytest.raises(BadInput, match="changed"):
        streamer.load(empty(), str(evicted(directory)), "cpu", read_path="direct", preadv=changing)


class LateEvent:
    """A copy that arrives only when it is waited for."""

    def __init__(self, work):
        self.work, self.done = work, False

    def query(self) -> bool:
        return self.done

    def synchronize(self) -> None:
        if not self.done:
            self.done = True
            self.work()


class LateCopies:
    def __init__(self):
        self.pinned = self.events = 0

    def pin(self, memory):
        self.pinned += memory.numel()

    def unpin(self, memory):
        self.pinned -= memory.numel()

    def copy(self, work):
        self.events += 1
        return LateEvent(work)


@settings(max_examples=20, deadline=None)
@given(slots=st.integers(2, 5), threads=st.integers(1, 4))
def test_a_slot_is_not_read_into_before_its_copy_has_arrived(tmp_path_factory, slots, threads):
    """Asynchronous copies, as on a GPU: the fake runs each only when it is waited for, so a slot
    reused too early shows."""
    directory = tmp_path_factory.mktemp("late")
    save_file(tensors(), directory / "model.safetensors")
    files = open_files(open_source(directory))
    copies = LateCopies()
    ring, into = Ring(slots, 8192, copies), Tensors(files[0], "cpu", {})
    with open(directory / "model.safetensors", "rb") as file:

        def work(chunk):
            slot = ring.take()
            os.preadv(file.fileno(), [ring.memory(slot)[: chunk.length]], chunk.offset)
            ring.move(slot, chunk, into)

        streamer.in_parallel(plan_chunks(files, 8192), work, threads)
        ring.drain()
    assert copies.pinned == 0 and copies.events == len(plan_chunks(files, 8192))
    assert all(torch.equal(into.tensor(e), tensors()[e.name]) for e in files[0].layout.tensors)
    assert ring.overlapped


def test_tensors_of_a_device_lie_in_one_allocation_a_shard_each_where_any_kernel_can_take_it():
    entries = [
        TensorEntry("a", "BF16", (3, 5), 104, 30),
        TensorEntry("b", "F32", (0, 4), 134, 0),
        TensorEntry("c", "F32", (7,), 134, 28),
        TensorEntry("d", "U8", (), 162, 1),
    ]
    made = buffers._allocated(entries, "cpu")
    assert {n: (t.dtype, tuple(t.shape)) for n, t in made.items()} == {
        "a": (torch.bfloat16, (3, 5)),
        "b": (torch.float32, (0, 4)),
        "c": (torch.float32, (7,)),
        "d": (torch.uint8, ()),
    }
    full = [t for t in made.values() if t.numel()]
    assert len({t.untyped_storage().data_ptr() for t in full}) == 1
    assert all(
        t.storage_offset() * t.element_size() % buffers.ALIGNED_BYTES == 0 and t.is_contiguous()
        for t in full
    )
    for i, tensor in enumerate(full):
        tensor.fill_(i)
    assert [float(t.float().reshape(-1)[-1]) for t in full] == [0, 1, 2], "none lies in another"


def test_for_a_gpu_more_threads_read_larger_pieces(monkeypatch):
    monkeypatch.setattr(buffers.os, "cpu_count", lambda: 16)
    large = [File("x", Layout("safetensors", "x", 16_000_000_000, 100, (), {}))]
    assert buffers.preferred(large, "cuda") == 16 and buffers.preferred(large) == 8
    assert (
        buffers.preferred([File("x", Layout("safetensors", "x", 1000, 100, (), {}))], "cuda:0") == 1
    )


def test_a_tensor_on_a_numbered_device_is_on_the_device_that_was_asked_for(monkeypatch):
    from labkit.weights.loaders.placing import Placer, with_index

    assert with_index("cpu") == "cpu" and with_index("cuda:1") == "cuda:1"
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    assert with_index("cuda") == "cuda:3"
    with torch.device("meta"):
        model = nn.ModuleList([nn.Linear(2, 2, bias=False)])
    tensor = torch.ones(2, 2)
    Placer(model, "cpu:0").put("0.weight", tensor)
    assert model[0].weight.data_ptr() == tensor.data_ptr(), "it was not copied"


def test_a_runtime_that_only_torch_has_is_shown_to_fastsafetensors(monkeypatch):
    import ctypes
    import sys
    import types

    from labkit.weights.loaders import fast

    library, loaded = "/env/nvidia/cu13/lib/libcudart.so.13", []
    package, cpp, copier, nogds = (
        types.ModuleType(n)
        for n in (
            "fastsafetensors",
            "fastsafetensors.cpp",
            "fastsafetensors.copier",
            "fastsafetensors.copier.nogds",
        )
    )
    cpp.load_library_functions, package.cpp, copier.nogds = loaded.append, cpp, nogds
    for module in (package, cpp, copier, nogds):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(fast.proc, "mapped_files", lambda: iter([library]))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: None)
    assert fast.runtime_of_torch() == "" and not loaded, "a toolkit's runtime is found by itself"

    def not_there(name):
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", not_there)
    assert fast.runtime_of_torch() == library == loaded[0] and nogds._loaded_library is True


def test_the_first_error_ends_all_threads():
    seen = []

    def work(job):
        seen.append(job)
        raise TransferError(f"job {job}")

    with pytest.raises(TransferError):
        streamer.in_parallel(range(1000), work, 4)
    assert len(seen) <= 4


def test_the_ring_bounds_the_memory(tmp_path):
    """Peak resident memory beside the parameters, in a process of its own: ring + 256 MiB."""
    import subprocess
    import sys

    save_file(
        {"weight": torch.zeros(8192, 8192, dtype=torch.bfloat16)}, tmp_path / "model.safetensors"
    )
    program = """
import sys, torch
from labkit.core.observe import resident_bytes
from labkit.weights import streamer
model = torch.nn.Linear(8192, 8192, bias=False, dtype=torch.bfloat16, device="meta")
before = resident_bytes()[0]
streamer.load(model, sys.argv[1], "cpu", ring=True, chunk_bytes=1 << 20, threads=4, slots=8)
print(resident_bytes()[1] - before)
"""
    peak = int(
        subprocess.run(
            [sys.executable, "-c", program, str(evicted(tmp_path))],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    )
    assert peak >= 8192 * 8192 * 2  # else something else was measured
    assert peak <= (8192 * 8192 * 2) + (8 << 20) + (64 << 20)

"""Rates of this host, measured in the run they are set beside: disk, loopback, decompression,
digest, memory, and the bus to a GPU.

    rates = measure(Workspace.default())         # a few seconds
    direct_read([path], depth=4)                 # (bytes, seconds, "O_DIRECT")

Every rate is the best of several ways of asking (queue depths, streams): a floor that is too slow
would flatter. Reads go past the page cache (O_DIRECT); below it a hypervisor or drive may still
cache what was just written, and then the floor is lower than a cold disk allows – it stays a bound.
GPU transfers are measured in a process of their own, which ends and takes its CUDA context with it.
Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mmap
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

from labkit.core import capabilities, cold, host
from labkit.core.beside import file_in
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.residency import DirectoryState, walk
from labkit.core.workspace import Workspace
from labkit.errors import BadInput

MIB = 1 << 20


DEPTHS = (1, 4, 16)


def measure(
    workspace: Workspace | str | os.PathLike[str] | None = None, quick: bool = True
) -> JsonObject:
    """Rates of this host in bytes per second, and how they were taken. A few seconds; `quick=False`
    reads and writes four times as much.

    Keys: disk_read, disk_write, loopback, decompress_gzip (stock zlib), decompress_isal,
    decompress_zstd, digest (sha256), memcpy, and on a GPU host h2d_pinned, h2d_pageable – each
    `…_bytes_per_s`. Decompression counts bytes that come out. What is not installed is absent."""
    space = workspace or Workspace.default()
    if not isinstance(space, Workspace):
        space = Workspace.at(space)
    began = time.monotonic()
    rates: JsonObject = {}
    rates |= disk(space, size_bytes=(256 if quick else 1024) * MIB)
    rates |= loopback(seconds=0.25 if quick else 1.0)
    rates |= decompression(real_bytes((8 if quick else 32) * MIB))
    rates |= memory((64 if quick else 256) * MIB)
    rates |= device()
    rates["cpus"] = host.cpu_count()
    rates["measured_in_s"] = round(time.monotonic() - began, 3)
    return rates


def disk(workspace: Workspace, size_bytes: int = 256 * MIB, at_most_s: float = 1.5) -> JsonObject:
    """Sequential write to stable storage, then direct read at several queue depths. Its file is
    removed."""
    with file_in(workspace.root) as path, open(path, "wb") as file:
        block = memoryview(os.urandom(MIB))
        began, written = time.monotonic(), 0
        while written < size_bytes and time.monotonic() - began < at_most_s:
            written += os.write(file.fileno(), block)
        os.fsync(file.fileno())
        write_rate = {"disk_write_bytes_per_s": written / (time.monotonic() - began)}
        best, depth_of_best, method = 0.0, 0, ""
        for depth in DEPTHS:
            cold.evict([file.name], caches=False)
            got, seconds, method = direct_read([file.name], depth, at_most_s / 2)
            if got / seconds > best:
                best, depth_of_best = got / seconds, depth
    return {
        **write_rate,
        "disk_read_bytes_per_s": best,
        "disk_read_depth": depth_of_best,
        "disk_read_method": method,
    }


def direct_read(
    paths: Iterable[str | os.PathLike[str]],
    depth: int = 4,
    at_most_s: float = float("inf"),
    block_bytes: int = MIB,
    fresh: bool = False,
    huge: bool = False,
) -> tuple[int, float, str]:
    """Read these files past the page cache, `depth` blocks at a time: (bytes, seconds, "O_DIRECT"
    or "buffered").

    The floor of any loader that reads the same bytes. `fresh`: they land in memory that held
    nothing, as a load's do, at most half of what is available; beyond it blocks land on earlier
    ones; and a byte of every page is looked at, which is when a load's clock stops. `huge`: in huge
    pages where the kernel has them, so that a request is not cut into many. Otherwise each reader
    has one buffer, used again: for a rate of the disk alone. Neither is always the faster
    (docs/LOG.md, 2026-11-26). Falls back to buffered reads of evicted files where O_DIRECT is
    refused."""
    tree = walk(paths)
    files, method = _opened(tree)
    blocks = [(fd, offset) for fd, size in files for offset in range(0, size, block_bytes)]
    jobs, lock, got = iter(enumerate(blocks)), threading.Lock(), [0] * depth

    memory: memoryview  # of the mapping below

    def read(slot: int) -> None:
        while time.monotonic() < until:
            with lock:
                job = next(jobs, None)
            if job is None:
                return
            number, (fd, offset) = job
            at = (number % places if fresh else slot) * block_bytes
            into = memory[at : at + block_bytes]
            got[slot] += os.preadv(fd, (into,), offset)

    try:
        places = (
            max(depth, min(len(blocks), _available_bytes() // 2 // block_bytes)) if fresh else depth
        )
        # Page-aligned, as O_DIRECT wants.
        with (
            mmap.mmap(
                -1, places * block_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            ) as room,
            memoryview(room) as memory,
        ):
            if huge:
                with contextlib.suppress(OSError):
                    room.madvise(mmap.MADV_HUGEPAGE)
            if not fresh:
                look_at(memory, write=True)
            until = time.monotonic() + at_most_s
            seconds = _together([partial(read, slot) for slot in range(depth)])
            if fresh:
                seconds += _together([lambda: look_at(memory)])
    finally:
        for fd, _ in files:
            os.close(fd)
    return sum(got), seconds, method


def look_at(memory: memoryview, write: bool = False) -> None:
    """Read one byte of every page, or write it: from then on all of it is in memory, whoever
    promised that before."""
    if write:
        memory[:: mmap.PAGESIZE] = bytes(-(-len(memory) // mmap.PAGESIZE))
        return
    with memory[:: mmap.PAGESIZE] as pages:
        bytes(pages)


def mapped_read(paths: Iterable[str | os.PathLike[str]]) -> tuple[int, float]:
    """Map these files and look at a byte of every page, in order; the kernel reads ahead: (bytes,
    seconds). They should be evicted before."""
    files, _ = _opened(walk(paths), direct=False)
    try:
        began = time.monotonic()
        for fd, size in files:
            if size:
                with (
                    mmap.mmap(fd, size, access=mmap.ACCESS_READ) as room,
                    memoryview(room) as memory,
                ):
                    look_at(memory)
        return sum(size for _, size in files), time.monotonic() - began
    finally:
        for fd, _ in files:
            os.close(fd)


def _available_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _opened(tree: DirectoryState, direct: bool = True) -> tuple[list[tuple[int, int]], str]:
    for flag, method in ((os.O_DIRECT, "O_DIRECT"), (0, "buffered"))[not direct :]:
        descriptors: list[tuple[int, int]] = []
        try:
            for path, size, *_ in tree.files:
                descriptors.append((os.open(path, os.O_RDONLY | os.O_CLOEXEC | flag), size))
            return descriptors, method
        except OSError as error:
            for fd, _ in descriptors:
                os.close(fd)
            if not flag:
                raise BadInput(
                    f"cannot read the files of the floor: {error}", fix="prepare the artifact again"
                ) from None
    raise AssertionError("unreachable")


def _together(jobs: list[Callable[[], None]]) -> float:
    """Run in threads; seconds from the start of the first to the end of the last. The first error
    is raised."""
    trouble: list[BaseException] = []

    def guarded(job: Callable[[], None]) -> None:
        try:
            job()
        except BaseException as error:
            trouble.append(error)

    threads = [threading.Thread(target=guarded, args=(job,), daemon=True) for job in jobs]
    began = time.monotonic()
    for thread in threads:
        try:
            thread.start()
        except RuntimeError as error:
            # a limit of threads or memory; those that run still use what the caller is about to
            # close
            trouble.append(error)
            break
    for thread in threads:
        if thread.ident is not None:
            thread.join()
    if trouble:
        raise trouble[0]
    return max(time.monotonic() - began, 1e-9)


def loopback(seconds: float = 0.25) -> dict[str, float]:
    """One process to itself over 127.0.0.1: sendfile from the page cache into recv, one stream and
    four; the best counts."""
    return {"loopback_bytes_per_s": max(_stream(ways, seconds) for ways in (1, 4))}


def _stream(ways: int, seconds: float) -> float:
    got = [0] * ways
    with tempfile.TemporaryFile() as source, socket.create_server(("127.0.0.1", 0)) as listener:
        source.truncate(16 * MIB)
        until = time.monotonic() + seconds

        def send(link: socket.socket) -> None:
            with link, contextlib.suppress(OSError):
                while time.monotonic() < until:
                    os.sendfile(link.fileno(), source.fileno(), 0, 16 * MIB)

        def receive(slot: int, link: socket.socket) -> None:
            buffer = bytearray(MIB)
            with link:
                while n := link.recv_into(buffer):
                    got[slot] += n

        jobs: list[Callable[[], None]] = []
        for slot in range(ways):
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
            jobs += [partial(send, far), partial(receive, slot, near)]
        took_s = _together(jobs)
        return sum(got) / took_s


def real_bytes(size_bytes: int) -> bytes:
    """Bytes like those of an image: this interpreter's own shared libraries and standard library,
    not zeros or noise."""
    pieces, size = [], 0
    for folder in (Path(sys.base_prefix) / "lib", Path(os.__file__).parent):
        for path in sorted(
            (
                *folder.glob("*.so*"),
                *folder.glob("*.py"),
                *folder.glob("lib-dynload/*.so"),
                *folder.glob("encodings/*.py"),
            )
        ):
            with contextlib.suppress(OSError):
                pieces.append(path.read_bytes()[: size_bytes - size])
                size += len(pieces[-1])
            if size >= size_bytes:
                return b"".join(pieces)
    return b"".join(pieces)


def decompression(sample: bytes) -> dict[str, float]:
    """Bytes out per second of one thread: stock gzip (zlib), ISA-L and zstd, each from its own
    compression of the sample."""
    packed = zlib.compress(sample, 6)
    rates = {"decompress_gzip_bytes_per_s": _rate(len(sample), lambda: zlib.decompress(packed))}
    with contextlib.suppress(ImportError):
        from isal import isal_zlib

        rates["decompress_isal_bytes_per_s"] = _rate(
            len(sample), lambda: isal_zlib.decompress(packed)
        )
    with contextlib.suppress(ImportError):
        import zstandard

        frame = zstandard.compress(sample, 3)
        rates["decompress_zstd_bytes_per_s"] = _rate(
            len(sample), lambda: zstandard.decompress(frame)
        )
    rates["digest_bytes_per_s"] = _rate(len(sample), lambda: hashlib.sha256(sample).digest())
    return rates


def memory(size_bytes: int) -> dict[str, float]:
    """Copy in memory, one thread, pages already present."""
    source, target = memoryview(bytearray(size_bytes)), memoryview(bytearray(size_bytes))

    def copy() -> None:
        target[:] = source

    return {"memcpy_bytes_per_s": _rate(size_bytes, copy, repeats=5)}


def _rate(size_bytes: int, work: Callable[[], Any], repeats: int = 3) -> float:
    best = float("inf")
    for _ in range(repeats):
        began = time.monotonic()
        work()
        best = min(best, time.monotonic() - began)
    return size_bytes / max(best, 1e-9)


def device() -> JsonObject:
    """Host to GPU and back, pinned and pageable, in a process that ends: h2d_…, d2h_…_bytes_per_s.
    Empty without a GPU; one that does not answer says why."""
    if not capabilities.capability("gpu").ok:
        return {}
    try:
        done = subprocess.run(
            module("labkit.core.rates"), capture_output=True, timeout=120, check=True
        )
        return json.loads(done.stdout.decode().strip().split("\n")[-1])
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        return {
            "h2d_failed": f"{type(error).__name__}: {getattr(error, 'stderr', b'') or error}"[-300:]
        }


def _measure_device(size_bytes: int = 512 * MIB) -> dict[str, float]:
    import torch

    there = torch.empty(size_bytes, dtype=torch.uint8, device="cuda")
    rates = {}
    for kind in ("pageable", "pinned"):
        here = torch.ones(size_bytes, dtype=torch.uint8, pin_memory=kind == "pinned")
        for way, source, target in (("h2d", here, there), ("d2h", there, here)):

            def copy(source: Any = source, target: Any = target) -> None:
                target.copy_(source, non_blocking=True)
                torch.cuda.synchronize()

            copy()  # the first one pays for staging buffers
            rates[f"{way}_{kind}_bytes_per_s"] = _rate(size_bytes, copy)
    return rates


if __name__ == "__main__":
    print(json.dumps(_measure_device()))

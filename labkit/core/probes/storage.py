"""Disk and memory: direct I/O, the proof of a cold cache, what is free.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import mmap
import os
import tempfile

from labkit.core import host, proc
from labkit.core.probes.probe import (
    Capability,
    no,
    probe,
    yes,
)


@probe(
    "o_direct",
    "direct I/O",
    "the disk's own rate is read past the page cache: floors are real, not memory speed",
)
def _o_direct() -> Capability:
    where = host.workspace_parent()
    fs = proc.filesystem_of(where)["fs"]
    try:
        with tempfile.TemporaryFile(dir=where) as file:
            file.write(b"\0" * 8192)
            file.flush()
            os.fsync(file.fileno())
            fd = os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
            try:
                with mmap.mmap(-1, 4096) as aligned:
                    os.readv(fd, [aligned])
            finally:
                os.close(fd)
    except OSError as error:
        return no(
            f"{fs} refuses O_DIRECT: {error.strerror}", "export LABKIT_HOME=/path/on/ext4-or-xfs"
        )
    if fs in ("tmpfs", "ramfs", "overlay"):
        return yes(
            f"{fs} accepts O_DIRECT, but may not bypass the cache",
            limit=True,
            fix="export LABKIT_HOME=/path/on/ext4-or-xfs",
        )
    return yes(fs)


@probe(
    "page-cache-proof",
    "page residency",
    "`cold` is proven by asking the kernel which pages are in memory",
)
def _page_cache_proof() -> Capability:
    from labkit.core import cold, residency

    where = host.workspace_parent()
    fs = proc.filesystem_of(where)["fs"]
    if fs in residency.NEVER_EVICTABLE:
        return no(
            f"{where} is {fs}: its pages are its storage and cannot be cold",
            "export LABKIT_HOME=/path/on/a/disk",
        )
    with tempfile.TemporaryFile(dir=where) as file:
        file.write(b"\1" * (1 << 20))
        file.flush()
        os.fsync(file.fileno())
        name = f"/proc/self/fd/{file.fileno()}"
        before = residency.residency([name])
        cold.evict([name], caches=False)
        after = residency.residency([name])
    if not before.resident_bytes:
        return no(
            f"{before.method} sees no page of a file just written",
            "use a file system of the host, not a remote one",
        )
    if after.resident_bytes:
        return no(
            f"posix_fadvise leaves {after.resident_bytes} of {after.total_bytes} B in memory",
            "sudo -E labkit …, or another file system",
        )
    if after.method == "mincore":
        return yes("mincore (cachestat comes with Linux 6.5)", limit=True)
    return yes(after.method)


@probe(
    "drop_caches",
    "drop_caches",
    "names and inodes are made cold too, not only pages: opening 20 000 files costs what it costs"
    " on a fresh node",
)
def _drop_caches() -> Capability:
    if os.access("/proc/sys/vm/drop_caches", os.W_OK) and os.geteuid() == 0:
        return yes()
    return no(
        "not permitted",
        "sudo -E labkit …  (without it: pages are cold, directory entries may be warm)",
    )


@probe("memory", "memory", "the 1B subject needs about 6 GB, `small` under 2")
def _memory() -> Capability:
    total, machine = host.card()["memory_bytes"], proc.meminfo_bytes("MemTotal")
    text = f"{total / 2**30:.1f} GiB" + (
        f", by a control group's limit; the machine has {machine / 2**30:.1f} GiB"
        if total < machine
        else ""
    )
    return (
        yes(text)
        if total >= 6 * 2**30
        else yes(text + ": keep to the presets tiny and small", limit=True)
    )


@probe("disk-space", "disk space", "images, checkpoints in several formats, and snapshots")
def _disk_space() -> Capability:
    free = host.card()["disk"]["free_bytes"]
    fix = "export LABKIT_HOME=/path/with/room, or remove $LABKIT_HOME"
    if free < 4e9:
        return no(f"{free / 1e9:.1f} GB free, a first run needs 4", fix)
    return yes(f"{free / 1e9:.0f} GB free", limit=free < 15e9, fix=fix if free < 15e9 else "")

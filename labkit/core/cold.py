"""Cold and warm, proven: which bytes of these files are in the page cache, and how to get them out
of it or into it.

Which pages are in memory is `labkit.core.residency`'s, asked before and after. Eviction is
`posix_fadvise(DONTNEED)` on each file once its dirty pages are written, which needs no root; root
also drops names, inodes and file-system metadata (`drop_caches`), so that opening 20 000 files
costs what it costs on a fresh node.

    state = set_cache_state(["/rootfs", "model.safetensors"], want="cold")     # evict, then prove
    state.state, state.resident_bytes, state.total_bytes              # ("cold", 0, 1_532_000_000)
    verify_cache_state(["model.safetensors"], want="warm").note       # only looks: "only 3.2% is in
        memory …"

What this cannot do, and says (state `unverified`, with a `note`): pages mapped or locked by a
running process stay · tmpfs is memory, never cold · as an ordinary user, residency of files of
other owners is hidden by the kernel · a loader using O_DIRECT is as fast cold as warm, so compare
it only with its own kind · a disk or hypervisor may cache below the kernel. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from labkit.core.residency import CacheState, DirectoryState, page_calls, residency, walk
from labkit.errors import BadInput

#: Up to this share may stay resident in a cold state: pages of shared libraries that other
#: processes have mapped.
TOLERANCE = 0.01

_READ_BYTES = 1 << 20
_READERS = 16
_WARMINGS = 3


def evict(paths: Iterable[str | os.PathLike[str]] | DirectoryState, *, caches: bool = True) -> bool:
    """Write out and evict these files. With `caches` and root also directory entries, inodes and
    metadata of the host.

    Returns whether the host's caches were dropped."""
    tree = paths if isinstance(paths, DirectoryState) else walk(paths)
    libc = page_calls()
    synced: set[int] = set()
    for path, _, device, _ in tree.files:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            # a dirty page is not evicted; one syncfs is cheaper than 20 000 fsyncs
            if device not in synced:
                synced.add(device)
                libc.syncfs(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
    return caches and drop_caches()


def drop_caches() -> bool:
    """Drop the host's clean caches (root). False where that is not permitted: an ordinary user, or
    a container."""
    if os.geteuid() != 0:
        return False
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except OSError:
        return False
    return True


def warm(paths: Iterable[str | os.PathLike[str]] | DirectoryState) -> int:
    """Read every byte into the page cache, several files at a time. Returns bytes read."""
    from concurrent.futures import ThreadPoolExecutor

    tree = paths if isinstance(paths, DirectoryState) else walk(paths)
    ways = min(_READERS, len(tree.files)) or 1
    # many small files wait for the disk one by one otherwise
    with ThreadPoolExecutor(ways) as readers:
        return sum(readers.map(_read_all, (tree.files[i::ways] for i in range(ways))))


def _read_all(files: Iterable[tuple[str, int, int, int]]) -> int:
    buffer, total = bytearray(_READ_BYTES), 0
    for path, *_ in files:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            while got := os.readv(fd, [buffer]):
                total += got
        finally:
            os.close(fd)
    return total


def verify_cache_state(
    paths: Iterable[str | os.PathLike[str]] | DirectoryState,
    want: str = "cold",
    *,
    tolerance: float = TOLERANCE,
) -> CacheState:
    """Look, change nothing: `state` is `want` if the pages say so, else `unverified` with the
    reason in `note`. Of no bytes neither is ever proven."""
    if want not in ("cold", "warm"):
        raise BadInput(f"no cache state {want!r}", fix="cold or warm")
    seen = residency(paths)
    reached = seen.share >= 1 - tolerance if want == "warm" else seen.share <= tolerance
    reasons = list(_doubts(seen, want, reached))
    return replace(
        seen,
        state="unverified" if reasons else want,
        note="; ".join(reasons),
        stubborn=seen.stubborn if want == "cold" else [],
    )


def set_cache_state(
    paths: Iterable[str | os.PathLike[str]],
    want: str = "cold",
    *,
    caches: bool = True,
    tolerance: float = TOLERANCE,
    roots: Collection[str | os.PathLike[str]] = (),
) -> CacheState:
    """Bring the files into the state wanted, then prove it. `caches`: as root, drop the host's
    caches too. `roots`: as in `walk`."""
    tree = walk(paths, roots)
    if want == "warm":
        for _ in range(_WARMINGS):  # another process may drop the host's caches meanwhile
            warm(tree)
            seen = verify_cache_state(tree, want, tolerance=tolerance)
            if seen.state == want:
                break
        return seen
    dropped = evict(tree, caches=caches)
    seen = verify_cache_state(tree, want, tolerance=tolerance)
    # pages under write-back or held in per-CPU batches leave at the second asking
    if seen.resident_bytes:
        evict(tree, caches=False)
        seen = verify_cache_state(tree, want, tolerance=tolerance)
    return replace(seen, names_dropped=dropped)


def _doubts(seen: CacheState, want: str, reached: bool) -> Iterator[str]:
    if not seen.total_bytes:
        yield seen.note
    elif seen.never_evictable_files and want == "cold":
        yield (
            f"{seen.never_evictable_files} files lie on a file system in memory (tmpfs): they"
            " cannot be cold; export LABKIT_HOME=/path/on/a/disk"
        )
    elif not reached and want == "cold":
        worst = ", ".join(
            f"{os.path.basename(s['path'])}{held_by(s['path'])}" for s in seen.stubborn[:3]
        )
        yield f"{seen.share:.1%} stayed in memory: {worst}"
    elif not reached:
        yield f"only {seen.share:.1%} is in memory: it may not fit"
    if seen.unprovable_files:
        yield (
            f"the kernel hides the residency of {seen.unprovable_files} files that belong to others"
            " from an ordinary user"
        )
    if seen.links_out:
        yield (
            f"{seen.links_out} links were not followed: they lead to what this user may not look"
            " at, or to a directory around the tree; give what is read through them instead"
        )


def held_by(path: str) -> str:
    """ " (mapped by python3)" for a file that running processes have mapped, this one named as
    such; "" when none that we may look at has."""
    names = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if path in Path(f"/proc/{pid}/maps").read_text(errors="replace"):
                names.add(
                    "this process"
                    if int(pid) == os.getpid()
                    else Path(f"/proc/{pid}/comm").read_text().strip()
                )
        except OSError:
            continue
    return f" (mapped by {', '.join(sorted(names)[:3])})" if names else ""

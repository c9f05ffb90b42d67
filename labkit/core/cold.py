"""Cold and warm, proven: which bytes of these files are in the page cache, and how to get them out
of it or into it.

The kernel is asked page by page – `cachestat(2)` (Linux 6.5), else `mincore(2)` over a mapping –
before and after. Eviction is `posix_fadvise(DONTNEED)` on each file once its dirty pages are
written, which needs no root; root also drops names, inodes and file-system metadata
(`drop_caches`), so that opening 20 000 files costs what it costs on a fresh node.

    state = settle(["/rootfs", "model.safetensors"], want="cold")     # evict, then prove
    state.state, state.resident_bytes, state.total_bytes              # ("cold", 0, 1_532_000_000)
    prove(["model.safetensors"], want="warm").note                    # only looks: "only 3.2% is in
        memory …"

What this cannot do, and says (state `unverified`, with a `note`): pages mapped or locked by a
running process stay · tmpfs is memory, never cold · as an ordinary user, residency of files of
other owners is hidden by the kernel · a loader using O_DIRECT is as fast cold as warm, so compare
it only with its own kind · a disk or hypervisor may cache below the kernel. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.core import proc
from labkit.core.pages import cached_pages
from labkit.errors import BadInput

PAGE_BYTES = mmap.PAGESIZE
#: Their pages are their storage.
NEVER_EVICTABLE = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"})
#: Up to this share may stay resident in a cold state: pages of shared libraries that other
#: processes have mapped.
TOLERANCE = 0.01

_CHUNK_BYTES = 1 << 30
_READ_BYTES = 1 << 20
_READERS = 16
_WARMINGS = 3


@dataclass(frozen=True)
class CacheState:
    """`state`: cold | warm | partial | unverified. `share` = resident ÷ total. `names_dropped`:
    directory entries and inodes too."""

    state: str
    method: str  # cachestat | mincore | nothing-to-read
    files: int
    total_bytes: int
    resident_bytes: int
    dirty_bytes: int = 0
    unprovable_files: int = 0  # the kernel hides their residency from this user
    never_evictable_files: int = 0
    links_out: int = 0  # links leading out of a tree, whose targets were not given
    names_dropped: bool = False
    note: str = ""  # why it is unverified
    # files that stayed: path, resident_bytes
    stubborn: list[dict[str, Any]] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class DirectoryState:
    """Regular files below some paths: each inode once, never through a link, never across a
    mount."""

    files: tuple[tuple[str, int, int, int], ...]  # path, size, device, owner
    links_out: int = 0

    @property
    def total_bytes(self) -> int:
        return sum(f[1] for f in self.files)


def walk(paths: Iterable[str | os.PathLike[str]]) -> DirectoryState:
    """Files of these files and directories. A link given as a path is followed, links below a
    directory are not.

    Raises BadInput for a path that is not there: what does not exist cannot be proven cold."""
    files: list[tuple[str, int, int, int]] = []
    seen: set[tuple[int, int]] = set()
    outward: list[str] = []

    def add(path: str, facts: os.stat_result) -> None:
        if (facts.st_dev, facts.st_ino) not in seen:
            seen.add((facts.st_dev, facts.st_ino))
            files.append((path, facts.st_size, facts.st_dev, facts.st_uid))

    for given in paths:
        top = os.path.realpath(given)
        # an open file without a name, by its descriptor: /proc/self/fd/3
        if not os.path.exists(top) and os.path.exists(given):
            top = os.fspath(given)
        try:
            facts = os.stat(top)
        except OSError as error:
            raise BadInput(
                f"{given}: {error.strerror}",
                why="its cache state cannot be set or proven",
                fix="prepare the artifact again",
            ) from None
        if stat.S_ISREG(facts.st_mode):
            add(top, facts)
            continue
        waiting = [top]
        while waiting:
            try:
                entries = os.scandir(waiting.pop())
            except OSError:
                # a directory that closes itself to us holds nothing we could read either
                continue
            with entries:
                for entry in entries:
                    if entry.is_symlink():
                        outward.extend(_outward(top, entry))
                        continue
                    try:
                        below = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISREG(below.st_mode):
                        add(entry.path, below)
                    elif stat.S_ISDIR(below.st_mode) and below.st_dev == facts.st_dev:
                        waiting.append(entry.path)
    missed = 0
    for target in set(outward):
        facts = os.stat(target)
        missed += (facts.st_dev, facts.st_ino) not in seen
    return DirectoryState(tuple(files), missed)


def _outward(top: str, link: os.DirEntry[str]) -> Iterator[str]:
    """The target of a relative link to a regular file outside the tree (a model directory of the
    Hugging Face cache).

    Absolute links of an image mean its own root, not this host's: they are none of ours."""
    target = os.readlink(link.path)
    if os.path.isabs(target):
        return
    real = os.path.normpath(os.path.join(os.path.dirname(link.path), target))
    if not real.startswith(top + "/") and os.path.isfile(real):
        yield os.path.realpath(real)


def residency(paths: Iterable[str | os.PathLike[str]] | DirectoryState) -> CacheState:
    """What is in memory now. `state` is only what the pages say: cold (none), warm (all) or
    partial."""
    tree = paths if isinstance(paths, DirectoryState) else walk(paths)
    if not tree.total_bytes:
        return CacheState(
            "cold", "nothing-to-read", len(tree.files), 0, 0, links_out=tree.links_out
        )
    probe = _Residency()
    per_file = [probe.of(*f) for f in tree.files]
    resident = sum(per_file)
    stubborn = sorted(
        ((b, f[0]) for b, f in zip(per_file, tree.files, strict=True) if b), reverse=True
    )[:8]
    kind = "cold"
    if resident:
        kind = "warm" if resident >= tree.total_bytes else "partial"
    return CacheState(
        kind,
        probe.method,
        len(tree.files),
        tree.total_bytes,
        resident,
        probe.dirty_bytes,
        probe.unprovable,
        probe.in_memory,
        tree.links_out,
        stubborn=[{"path": path, "resident_bytes": b} for b, path in stubborn],
    )


class _Residency:
    """Resident bytes of one file after another; what cannot be known is counted, never taken for
    absent."""

    def __init__(self) -> None:
        self.libc = _libc()
        self.have_cachestat = True
        self.used: set[str] = set()
        self.dirty_bytes = self.unprovable = self.in_memory = 0
        self._fs: dict[int, str] = {}

    @property
    def method(self) -> str:
        return "+".join(sorted(self.used)) or "none"

    def of(self, path: str, size: int, device: int, owner: int) -> int:
        if not size:
            return 0
        fs = self._fs.get(device)
        if fs is None:
            fs = self._fs[device] = proc.filesystem_of(path)["fs"]
        if fs in NEVER_EVICTABLE:
            self.in_memory += 1
            return size
        try:
            fd = os.open(
                path,
                (
                    os.O_RDONLY | os.O_CLOEXEC | os.O_NOATIME
                    if owner == os.geteuid()
                    else os.O_RDONLY | os.O_CLOEXEC
                ),
            )
        except OSError:
            self.unprovable += 1
            return 0
        try:
            # An overlay's own inode has no pages: cachestat on it says 0 whatever is cached. A
            # mapping shows the real file's.
            if self.have_cachestat and fs != "overlay":
                found = self._cachestat(fd, size)
                if found is not None:
                    return found
            return self._mincore(fd, path, size, owner)
        finally:
            os.close(fd)

    def _cachestat(self, fd: int, size: int) -> int | None:
        if found := cached_pages(fd):
            self.used.add("cachestat")
            self.dirty_bytes += (found.dirty + found.writeback) * PAGE_BYTES
            return min(found.cached * PAGE_BYTES, size)
        if ctypes.get_errno() in (errno.ENOSYS, errno.EPERM) and not self.used:
            self.have_cachestat = ctypes.get_errno() != errno.ENOSYS
        return None

    def _mincore(self, fd: int, path: str, size: int, owner: int) -> int:
        # Since Linux 5.2 the kernel answers "all resident" about files that this user neither owns
        # nor may write.
        if owner != os.geteuid() and os.geteuid() != 0 and not os.access(path, os.W_OK):
            self.unprovable += 1
            return 0
        self.used.add("mincore")
        pages = 0
        for offset in range(0, size, _CHUNK_BYTES):
            length = min(_CHUNK_BYTES, size - offset)
            address = self.libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
            if address in (None, ctypes.c_void_p(-1).value):
                self.unprovable += 1
                return 0
            answer = ctypes.create_string_buffer((length + PAGE_BYTES - 1) // PAGE_BYTES)
            try:
                if self.libc.mincore(address, length, answer):
                    self.unprovable += 1
                    return 0
            finally:
                self.libc.munmap(address, length)
            pages += len(answer.raw.translate(None, _EVEN))
        return min(pages * PAGE_BYTES, size)


#: mincore defines the lowest bit only.
_EVEN = bytes(range(0, 256, 2))


def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int,
        ctypes.c_int64,
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]
    return libc


def evict(paths: Iterable[str | os.PathLike[str]] | DirectoryState, *, caches: bool = True) -> bool:
    """Write out and evict these files. With `caches` and root also directory entries, inodes and
    metadata of the host.

    Returns whether the host's caches were dropped."""
    tree = paths if isinstance(paths, DirectoryState) else walk(paths)
    libc = _libc()
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
    reason in `note`.

    Nothing to read is cold: a fresh node holds no page of the stack."""
    if want not in ("cold", "warm"):
        raise BadInput(f"no cache state {want!r}", fix="cold or warm")
    seen = residency(paths)
    share = seen.resident_bytes / seen.total_bytes if seen.total_bytes else float(want == "warm")
    reached = share >= 1 - tolerance if want == "warm" else share <= tolerance
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
) -> CacheState:
    """Bring the files into the state wanted, then prove it. `caches`: as root, drop the host's
    caches too."""
    tree = walk(paths)
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
    if seen.never_evictable_files and want == "cold":
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
            f"{seen.links_out} links lead out of the tree to files that were not evicted: give"
            " their targets too"
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

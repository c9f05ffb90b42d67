"""Which bytes of some files are in the page cache: asked of the kernel page by page, by
`cachestat(2)` (Linux 6.5), else by `mincore(2)` over a mapping.

    state = residency(["/rootfs", "model.safetensors"])
    state.state, state.resident_bytes, state.total_bytes              # ("cold", 0, 1_532_000_000)

Limit: as an ordinary user, residency of files of other owners is hidden by the kernel
(`unprovable_files`). Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field

from labkit.core import proc
from labkit.core.json_types import JsonObject
from labkit.core.pages import cached_pages
from labkit.errors import BadInput

PAGE_BYTES = mmap.PAGESIZE
#: Their pages are their storage.
NEVER_EVICTABLE = frozenset({"tmpfs", "ramfs", "devtmpfs", "hugetlbfs", "rootfs"})

_CHUNK_BYTES = 1 << 30


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
    links_out: int = 0  # links to what may not be looked at, or to all that is around the tree
    names_dropped: bool = False
    note: str = ""  # why it is unverified
    # files that stayed: path, resident_bytes
    stubborn: list[JsonObject] = field(default_factory=list)

    @property
    def share(self) -> float:
        return self.resident_bytes / self.total_bytes if self.total_bytes else 0.0

    def as_json(self) -> JsonObject:
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class DirectoryState:
    """Regular files below some paths and where their links lead: each inode once, never across a
    mount."""

    files: tuple[tuple[str, int, int, int], ...]  # path, size, device, owner
    links_out: int = 0  # links that were not followed

    @property
    def total_bytes(self) -> int:
        return sum(f[1] for f in self.files)


def walk(
    paths: Iterable[str | os.PathLike[str]], roots: Collection[str | os.PathLike[str]] = ()
) -> DirectoryState:
    """Files of these files and directories, links followed to what is read through them.

    `roots`: directories among them that are a container's root: links there mean that root, not
    this host's, and what they lead to lies below it. Raises BadInput for a path that is not there:
    what does not exist cannot be proven cold."""
    found = _Found()
    within_root = {os.path.realpath(root) for root in roots}
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
            found.add(top, facts)
        elif stat.S_ISDIR(facts.st_mode):
            found.add_directory(top, facts, links=top not in within_root)
    return DirectoryState(tuple(found.files), found.links_out)


class _Found:
    """The files of one walk."""

    def __init__(self) -> None:
        self.files: list[tuple[str, int, int, int]] = []
        self.links_out = 0
        self._seen: set[tuple[int, int]] = set()

    def _first(self, facts: os.stat_result) -> bool:
        before = len(self._seen)
        self._seen.add((facts.st_dev, facts.st_ino))
        return len(self._seen) > before

    def add(self, path: str, facts: os.stat_result) -> None:
        if self._first(facts):
            self.files.append((path, facts.st_size, facts.st_dev, facts.st_uid))

    def add_directory(self, top: str, facts: os.stat_result, *, links: bool) -> None:
        waiting = [(top, facts)]
        while waiting:
            directory, facts = waiting.pop()
            if not self._first(facts):
                continue
            try:
                entries = os.scandir(directory)
            except OSError:
                # a directory that closes itself to us holds nothing we could read either
                continue
            with entries:
                for entry in entries:
                    if entry.is_symlink():
                        waiting += self._follow(top, entry.path) if links else ()
                        continue
                    try:
                        below = entry.stat(follow_symlinks=False)
                    except OSError:
                        continue
                    if stat.S_ISREG(below.st_mode):
                        self.add(entry.path, below)
                    elif stat.S_ISDIR(below.st_mode) and below.st_dev == facts.st_dev:
                        waiting.append((entry.path, below))

    def _follow(self, top: str, link: str) -> Iterator[tuple[str, os.stat_result]]:
        """The directory that a link leads to, unless all of the tree is below it; a file is
        added."""
        target = os.path.realpath(link)
        try:
            facts = os.stat(target)
        except (FileNotFoundError, NotADirectoryError):
            return  # broken: nothing is read through it
        except OSError:
            self.links_out += 1
            return
        if stat.S_ISREG(facts.st_mode):
            self.add(target, facts)
        elif stat.S_ISDIR(facts.st_mode):
            if f"{top}/".startswith(f"{target.rstrip('/')}/"):
                self.links_out += target != top
            else:
                yield target, facts


def residency(paths: Iterable[str | os.PathLike[str]] | DirectoryState) -> CacheState:
    """What is in memory now. `state` is only what the pages say: cold (none), warm (all) or
    partial."""
    tree = paths if isinstance(paths, DirectoryState) else walk(paths)
    if not tree.total_bytes:
        return CacheState(
            "unverified",
            "nothing-to-read",
            len(tree.files),
            0,
            0,
            links_out=tree.links_out,
            note="no byte to look at: of nothing, nothing is proven",
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
        self.libc = page_calls()
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


def page_calls() -> ctypes.CDLL:
    """libc, with the calls that ask after pages typed."""
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

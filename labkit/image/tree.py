"""A root directory that is being filled: paths resolved below the root by the kernel, modes and
times set when all is there.

    with growing(rootfs, limits) as tree:           # a hidden sibling, renamed at the block's end
        fd = tree.dir_fd("usr/lib")                 # made where missing; stays the tree's

`openat2` that follows no link (without it component by component) keeps names, links and races
inside. Limit: system calls, ~2 µs each. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from labkit.core.beside import becoming
from labkit.errors import BadInput
from labkit.image.tar_header import DIR, Member

_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 0x04, 0x08
#: What a directory is that no layer names.
UNNAMED = Member("", DIR, 0o755)


@dataclass(frozen=True)
class Limits:
    """What an image may at most ask of the disk. Far above any real image, far below a bomb."""

    total_bytes: int = 64 << 30
    members: int = 2_000_000
    absolute_links: bool = False


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


class ImageTree:
    """A root directory being filled. Directories get their modes and times at the end (`finish`),
    as later members change both."""

    CACHED_DIRS = 64

    def __init__(self, root: Path, limits: Limits = Limits()):
        self.root, self.limits = root, limits
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.written_bytes = self.members = self.skipped_xattrs = 0
        self._dirs: OrderedDict[str, int] = OrderedDict()
        # forgotten, perhaps still in a caller's hand: closed with the next member
        self._stale: list[int] = []
        self._late: dict[str, Member] = {"": UNNAMED}  # by directory
        self.is_root = os.geteuid() == 0
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._openat2 = True

    def close(self) -> None:
        self.forget_dirs()
        self.next_member()
        os.close(self.fd)

    def forget_dirs(self) -> None:
        self._stale += self._dirs.values()
        self._dirs.clear()

    def next_member(self) -> None:
        while self._stale:
            os.close(self._stale.pop())

    def open_dir(self, path: str) -> int:
        """Descriptor of a directory below the root, no link followed. Raises OSError."""
        if self._openat2:
            how = _OpenHow(
                os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC,
                0,
                _RESOLVE_BENEATH | _RESOLVE_NO_SYMLINKS,
            )
            fd = self._libc.syscall(
                _SYS_OPENAT2, self.fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how)
            )
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EPERM):
                raise OSError(code, os.strerror(code), path)
            self._openat2 = False
        fd = os.dup(self.fd)
        for part in path.split("/"):
            try:
                below = os.open(
                    part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd
                )
            finally:
                os.close(fd)
            fd = below
        return fd

    def dir_fd(self, path: str) -> int:
        """Descriptor of the directory `path` ("" is the root), made with its parents where there is
        none, in place of what is there. Stays the tree's."""
        if not path:
            return self.fd
        if path in self._dirs:
            self._dirs.move_to_end(path)
            return self._dirs[path]
        try:
            fd = self.open_dir(path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            parent, _, name = path.rpartition("/")
            parent_fd = self.dir_fd(parent)
            self.remove(parent_fd, name)
            os.mkdir(name, 0o755, dir_fd=parent_fd)
            self._late[path] = UNNAMED
            fd = self.open_dir(path)
        self._dirs[path] = fd
        if len(self._dirs) > self.CACHED_DIRS:
            self._stale.append(self._dirs.popitem(last=False)[1])
        return fd

    def remove(self, parent_fd: int, name: str) -> None:
        """A file or a whole tree, by descriptor, no link followed."""
        try:
            os.unlink(name, dir_fd=parent_fd)
            return
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
        self.forget_dirs()  # descriptors of what goes would keep it reachable
        fd = os.open(
            name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd
        )
        try:
            for child in os.listdir(fd):
                self.remove(fd, child)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent_fd)

    def own(self, member: Member, name: str, parent_fd: int) -> None:
        if self.is_root:
            os.chown(name, member.uid, member.gid, dir_fd=parent_fd, follow_symlinks=False)

    def mode_of(self, member: Member) -> int:
        # a set-id bit of one's own says nothing
        return member.mode if self.is_root else member.mode & 0o1777

    def put_xattrs(self, target: int | str, member: Member) -> None:
        for key, value in member.xattrs.items():
            try:
                os.setxattr(target, key, value, follow_symlinks=isinstance(target, int))
            except (OSError, ValueError):
                # a file system or a user that cannot hold it; containerd skips these as well
                self.skipped_xattrs += 1

    def later(self, path: str, member: Member = UNNAMED) -> None:
        self._late[path] = member

    def finish(self) -> None:
        """Modes, owners and times of directories, deepest first."""
        self.forget_dirs()
        for path, member in sorted(
            self._late.items(), key=lambda item: item[0].count("/") + bool(item[0]), reverse=True
        ):
            try:
                fd = self.open_dir(path) if path else os.dup(self.fd)
            except OSError:
                continue  # a later member took it away, or put something else in its place
            try:
                self.put_xattrs(fd, member)
                if self.is_root:
                    os.fchown(fd, member.uid, member.gid)
                os.fchmod(fd, self.mode_of(member))
                os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            finally:
                os.close(fd)
        self._late.clear()


@contextlib.contextmanager
def growing(rootfs: str | os.PathLike[str], limits: Limits = Limits()) -> Iterator[ImageTree]:
    """A tree beside `rootfs` that becomes it when the block ends well, and is removed when it does
    not."""
    final = Path(rootfs)
    if final.exists():
        raise BadInput(
            f"{final} exists already",
            why="an image is unpacked into a new directory, never over something",
            fix=f"rm -r {final}, or choose another name",
        )
    with becoming(final, mode=0o755) as part:
        tree = ImageTree(part, limits)
        try:
            yield tree
            tree.finish()
        finally:
            tree.close()

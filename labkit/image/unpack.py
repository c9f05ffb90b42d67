"""Layers become a root directory: whiteouts, hard links, modes, owners, xattrs and times, from input that may be hostile.

Every path is resolved below the root by the kernel (`openat2` with RESOLVE_IN_ROOT; without it, component by component,
no link followed), so no name, link or race leads out. An image is unpacked into a hidden sibling and renamed when all
of it is there: a refused layer leaves nothing behind. Limit: one thread of gunzip, then the disk's write rate.

    with growing(rootfs) as tree:
        for layer, plain in …: apply_layer(plain, tree)      # `plain`: chunks of the uncompressed tar

Refused with BadInput: absolute or climbing names, hard links and symlinks out of the root, members written through a
symlink of their own layer, the same path twice in a layer, device nodes when not root, more bytes or members than
`Limits` allow. Absolute symlinks are refused too unless `Limits(absolute_links=True)`: they are honest inside a
container, and lead to the host's own files wherever an image is used without a changed root. Owners are kept when root.
Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core.ledger import remove_tree
from labkit.errors import BadInput
from labkit.image.codecs import Hashed, codec_of, decompress, file_chunks
from labkit.image.oci import Layout, Manifest
from labkit.image.tar import BLOCKDEV, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, Member, TarReader

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_SYS_OPENAT2 = 437  # the same number on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10


@dataclass(frozen=True)
class Limits:
    """What an image may at most ask of the disk. Far above any real image, far below a bomb."""

    total_bytes: int = 64 << 30
    members: int = 2_000_000
    absolute_links: bool = False


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def _refuse(name: str, what: str) -> BadInput:
    return BadInput(f"layer refused: {name[:200]!r} {what}", why="it would write outside the image's root, or twice, or more than "
                    "it may; nothing of the image was kept", fix="do not run this image; its builder is broken or hostile")


class Tree:
    """A root directory being filled. Directories get their modes and times at the end (`finish`), as later members change both."""

    CACHED_DIRS = 64

    def __init__(self, root: Path, limits: Limits = Limits()):
        self.root, self.limits = root, limits
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self.written_bytes = self.members = self.skipped_xattrs = 0
        self._dirs: OrderedDict[str, int] = OrderedDict()
        self._stale: list[int] = []  # forgotten, perhaps still in a caller's hand: closed with the next member
        self._late: dict[str, tuple[Member, int]] = {}  # directory -> its member and inode
        self._is_root = os.geteuid() == 0
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

    def _open_dir(self, path: str) -> int:
        """Descriptor of a directory below the root, links resolved inside the root. Raises OSError."""
        if self._openat2:
            how = _OpenHow(os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
            fd = self._libc.syscall(_SYS_OPENAT2, self.fd, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
            if fd >= 0:
                return int(fd)
            code = ctypes.get_errno()
            if code not in (errno.ENOSYS, errno.EPERM):
                raise OSError(code, os.strerror(code), path)
            self._openat2 = False
        fd = os.dup(self.fd)
        for part in path.split("/"):
            try:
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    def dir_fd(self, path: str, made: _Layer) -> int:
        """Descriptor of the directory `path` ("" is the root), made with its parents where missing. Stays the tree's."""
        if not path:
            return self.fd
        if path in self._dirs:
            self._dirs.move_to_end(path)
            return self._dirs[path]
        made.check_links(path)
        try:
            fd = self._open_dir(path)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise _refuse(path, f"is used as a directory and is none ({os.strerror(error.errno or 0)})") from None
            parent, _, name = path.rpartition("/")
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self.dir_fd(parent, made))
            try:
                fd = self._open_dir(path)
            except OSError as again:
                raise _refuse(path, f"cannot be made a directory ({os.strerror(again.errno or 0)})") from None
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
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
        try:
            for child in os.listdir(fd):
                self.remove(fd, child)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent_fd)

    def own(self, member: Member, name: str, parent_fd: int) -> None:
        if self._is_root:
            os.chown(name, member.uid, member.gid, dir_fd=parent_fd, follow_symlinks=False)

    def mode_of(self, member: Member) -> int:
        return member.mode if self._is_root else member.mode & 0o1777  # a set-id bit of one's own says nothing

    def put_xattrs(self, target: int | str, member: Member) -> None:
        for key, value in member.xattrs.items():
            try:
                os.setxattr(target, key, value)
            except (OSError, ValueError):
                self.skipped_xattrs += 1  # a file system or a user that cannot hold it; containerd skips these as well

    def later(self, path: str, member: Member, inode: int = 0) -> None:
        self._late[path] = (member, inode)

    def finish(self) -> None:
        """Modes, owners and times of directories, deepest first."""
        self.forget_dirs()
        for path, (member, inode) in sorted(self._late.items(), key=lambda item: item[0].count("/"), reverse=True):
            try:
                fd = self._open_dir(path) if path else os.dup(self.fd)
            except OSError:
                continue  # a later layer took it away
            try:
                if path and os.fstat(fd).st_ino != inode:
                    continue  # a later layer put a link or another directory in its place
                self.put_xattrs(fd, member)
                if self._is_root:
                    os.fchown(fd, member.uid, member.gid)
                os.fchmod(fd, self.mode_of(member))
                os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
            finally:
                os.close(fd)
        self._late.clear()


class _Layer:
    """What one layer has made so far: whiteouts spare it, duplicates and tricks are found by it."""

    def __init__(self) -> None:
        self.made: set[str] = set()
        self.links: set[str] = set()
        self.parents: set[str] = set()  # directories that hold something made by this layer

    def check_links(self, path: str) -> None:
        """A directory path must not lead through a symlink that this very layer brought."""
        if self.links:
            at = len(path)
            while at > 0:
                if path[:at] in self.links:
                    raise _refuse(path, f"leads through the symlink {path[:at]!r} of its own layer")
                at = path.rfind("/", 0, at)

    def add(self, path: str) -> None:
        if path in self.made:
            raise _refuse(path, "comes twice in one layer")
        self.made.add(path)
        at = path.rfind("/")
        while at > 0 and path[:at] not in self.parents:
            self.parents.add(path[:at])
            at = path.rfind("/", 0, at)

    def holds(self, path: str) -> bool:
        return path in self.made or path in self.parents


def clean(name: str, what: str = "name") -> str:
    """A member's name as a path below the root ("" for the root itself). Raises BadInput for anything that climbs."""
    if name.startswith("/"):
        raise _refuse(name, f"is an absolute {what}")
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise _refuse(name, f"climbs out of its directory ({what})")
    raw_bytes = len(os.fsencode(name))
    if raw_bytes > 255 and (raw_bytes > 4096 or any(len(os.fsencode(p)) > 255 for p in parts)):
        raise _refuse(name, f"is longer than a {what} may be")
    return "/".join(parts)


def check_symlink(path: str, target: str, absolute_ok: bool) -> None:
    """Where a symlink leads, read as text: not out of the root."""
    if not target or len(os.fsencode(target)) > 4095:
        raise _refuse(path, "is a symlink without a usable target")
    if target.startswith("/"):
        if absolute_ok:
            return
        refused = _refuse(path, f"is an absolute symlink to {target[:100]!r}")
        refused.fix = ("an image that is only ever run with a changed root (runc, userns) may have them: "
                       "labkit image unpack --absolute-links")
        raise refused
    depth = path.count("/")
    for part in target.split("/"):
        depth += -1 if part == ".." else 0 if part in ("", ".") else 1
        if depth < 0:
            raise _refuse(path, f"is a symlink out of the root, to {target[:100]!r}")


def apply_layer(chunks: Iterable[bytes], tree: Tree) -> int:
    """Apply one layer (chunks of its plain tar) on the tree; returns its members. Raises BadInput, with the tree half done."""
    layer, reader, count = _Layer(), TarReader(chunks), 0
    for member in reader:
        count += 1
        tree.members += 1
        tree.next_member()
        if tree.members > tree.limits.members:
            raise _refuse(member.name, f"is one member too many (limit {tree.limits.members})")
        path = clean(member.name)
        if not path:
            if member.type != DIR:
                raise _refuse(member.name, "replaces the root itself")
            tree.later("", member)
            continue
        parent, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            _white_out(tree, layer, parent, name)
            continue
        layer.add(path)
        parent_fd = tree.dir_fd(parent, layer)
        if member.type == FILE:
            _write_file(tree, parent_fd, name, member, reader)
        elif member.type == DIR:
            _make_dir(tree, parent_fd, name, path, member)
        else:
            _make_other(tree, layer, parent_fd, name, path, member)
    return count


def _write_file(tree: Tree, parent_fd: int, name: str, member: Member, reader: TarReader) -> None:
    tree.written_bytes += member.size_bytes
    if tree.written_bytes > tree.limits.total_bytes:
        raise _refuse(name, f"goes over the limit of {tree.limits.total_bytes} bytes unpacked")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    except FileExistsError:
        tree.remove(parent_fd, name)
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    try:
        for view in reader.data():
            while len(view):
                view = view[os.write(fd, view):]
        if tree._is_root and (member.uid or member.gid):
            os.fchown(fd, member.uid, member.gid)
        if member.xattrs:
            tree.put_xattrs(fd, member)
        os.fchmod(fd, tree.mode_of(member))
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
    finally:
        os.close(fd)


def _make_dir(tree: Tree, parent_fd: int, name: str, path: str, member: Member) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            tree.remove(parent_fd, name)
            tree.forget_dirs()  # a cached descriptor may have come through the link that went
            os.mkdir(name, 0o700, dir_fd=parent_fd)
    tree.later(path, member, os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_ino)


def _make_other(tree: Tree, layer: _Layer, parent_fd: int, name: str, path: str, member: Member) -> None:
    if member.type in (CHAR, BLOCKDEV) and not tree._is_root:
        raise _refuse(path, "is a device node, which only root may make")
    if member.type == SYMLINK:
        check_symlink(path, member.link, tree.limits.absolute_links)
    source = clean(member.link, "hard link") if member.type == HARDLINK else ""
    if member.type == HARDLINK and (not source or source == path):
        raise _refuse(path, "is a hard link to nothing")
    if member.type == HARDLINK:
        _make_hard_link(tree, layer, parent_fd, name, path, source)
        return
    tree.remove(parent_fd, name)
    if member.type == SYMLINK:
        os.symlink(member.link, name, dir_fd=parent_fd)
        layer.links.add(path)
    elif member.type == FIFO:
        os.mkfifo(name, 0o600, dir_fd=parent_fd)
    else:
        kind = stat.S_IFCHR if member.type == CHAR else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(member.major, member.minor), dir_fd=parent_fd)
    tree.own(member, name, parent_fd)
    if member.type != SYMLINK:
        os.chmod(name, tree.mode_of(member), dir_fd=parent_fd)
    os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)


def _make_hard_link(tree: Tree, layer: _Layer, parent_fd: int, name: str, path: str, source: str) -> None:
    folder, _, source_name = source.rpartition("/")
    layer.check_links(folder)
    try:
        source_fd = tree._open_dir(folder) if folder else os.dup(tree.fd)
    except OSError:
        raise _refuse(path, f"is a hard link to {source!r}, which is not in the image") from None
    try:
        found = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            raise _refuse(path, "is a hard link to a directory")
        tree.remove(parent_fd, name)
        os.link(source_name, name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False)
    except FileNotFoundError:
        raise _refuse(path, f"is a hard link to {source!r}, which is not in the image") from None
    finally:
        os.close(source_fd)
    if stat.S_ISLNK(found.st_mode):
        layer.links.add(path)


def _white_out(tree: Tree, layer: _Layer, parent: str, name: str) -> None:
    """Hide what lower layers brought; what this layer brought stays (image-spec, "Whiteouts")."""
    if name == OPAQUE:
        _clear(tree, layer, parent)
    elif name.startswith(WHITEOUT + WHITEOUT):
        return  # aufs bookkeeping, never content
    else:
        target = name[len(WHITEOUT):]
        if target in ("", ".", ".."):
            raise _refuse(f"{parent}/{name}", "is a whiteout of no file")
        path = f"{parent}/{target}" if parent else target
        layer.check_links(path)
        if path in layer.made and path not in layer.parents:
            return
        if path in layer.made or path in layer.parents:
            _clear(tree, layer, path)
        else:
            tree.remove(tree.dir_fd(parent, layer), target)
            tree.forget_dirs()


def _clear(tree: Tree, layer: _Layer, path: str) -> None:
    """Empty a directory of what this layer did not make."""
    fd = os.dup(tree.dir_fd(path, layer))
    try:
        for child in os.listdir(fd):
            below = f"{path}/{child}" if path else child
            if not layer.holds(below):
                tree.remove(fd, child)
            elif below in layer.parents and stat.S_ISDIR(os.stat(child, dir_fd=fd, follow_symlinks=False).st_mode):
                _clear(tree, layer, below)
    finally:
        os.close(fd)
    tree.forget_dirs()


@contextlib.contextmanager
def growing(rootfs: str | os.PathLike[str], limits: Limits = Limits()) -> Iterator[Tree]:
    """A tree beside `rootfs` that becomes it when the block ends well, and is removed when it does not."""
    final = Path(rootfs)
    if final.exists():
        raise BadInput(f"{final} exists already", why="an image is unpacked into a new directory, never over something",
                       fix=f"rm -r {final}, or choose another name")
    part = final.with_name(f".{final.name}.part-{os.getpid()}")
    remove_tree(part)
    part.mkdir(mode=0o755, parents=True)
    try:
        tree = Tree(part, limits)
        try:
            yield tree
            tree.finish()
        finally:
            tree.close()
        os.rename(part, final)
    except BaseException:
        remove_tree(part)
        raise


def unpack_image(layout: Layout, manifest: Manifest, rootfs: str | os.PathLike[str], *, limits: Limits = Limits(),
                 fast: bool = False) -> dict[str, Any]:
    """All layers of an image on disk, one after the other, each checked against its diff id. Returns facts."""
    ids = layout.config(manifest)["rootfs"]["diff_ids"]
    plain_bytes = 0
    with growing(rootfs, limits) as tree:
        for layer, diff_id in zip(manifest.layers, ids, strict=True):
            plain = Hashed(decompress(file_chunks(layout.blob_path(layer.digest)), codec_of(layer.media_type), fast=fast))
            apply_layer(plain, tree)
            if plain.digest != diff_id:
                raise BadInput(f"layer {layer.digest} unpacks to {plain.digest}, the config says {diff_id}",
                               why="the image was put together wrongly, or forged; nothing of it was kept")
            plain_bytes += plain.size_bytes
        return {"layers": len(manifest.layers), "members": tree.members, "written_bytes": tree.written_bytes,
                "plain_bytes": plain_bytes, "skipped_xattrs": tree.skipped_xattrs}

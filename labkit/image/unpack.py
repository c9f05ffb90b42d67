"""Image layers become a root directory: files, links, modes, owners, xattrs and times, from input
that may be hostile.

What a layer's members mean is said by `labkit.image.changeset`, for every way in which an image
arrives; here they are written. Every path is opened below the root by the kernel (`openat2`;
without it component by component), no link followed, so no name, link or race leads out. An image
is unpacked into a hidden sibling and renamed when all of it is there: a refused layer leaves
nothing behind. Limit: one thread of gunzip, then the disk's write rate.

    with growing(rootfs) as tree:
        for plain in …: apply_layer(plain, tree)        # `plain`: chunks of the uncompressed tar

Refused with BadInput, beside what a changeset refuses: device nodes when not root, more bytes or
members than `Limits` allow, and symlinks that lead out of the root as a path of the host – absolute
ones, or with too many `..` – unless `Limits(absolute_links=True)`: they are honest inside a
container, and lead to the host's own files wherever an image is used without a changed root. Owners
are kept when root. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from labkit.core.json_types import JsonObject
from labkit.image.changeset import KINDS, Changeset, refuse
from labkit.image.oci import Manifest
from labkit.image.oci_layout import Layout
from labkit.image.tar import TarReader
from labkit.image.tar_header import BLOCKDEV, CHAR, DIR, FIFO, FILE, SYMLINK, Member
from labkit.image.tree import ImageTree, Limits, growing


def check_symlink(path: str, target: str) -> None:
    """Where a symlink leads, read as a path of the host: not out of the root."""
    offence = f"is an absolute symlink to {target[:100]!r}" if target.startswith("/") else ""
    depth = path.count("/")
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            offence = offence or f"is a symlink out of the root, to {target[:100]!r}"
    if offence:
        refused = refuse(path, offence)
        refused.fix = (
            "an image that is only ever run with a changed root (runc, userns) may have them: "
            "labkit image unpack --absolute-links"
        )
        raise refused


def apply_layer(chunks: Iterable[bytes | memoryview], tree: ImageTree) -> int:
    """Apply one layer (chunks of its plain tar) on the tree; returns its members. Raises BadInput,
    with the tree half done."""
    reader, changes = TarReader(chunks), Changeset()
    before = tree.members
    changes.apply(_counted(reader, tree), _Written(tree, reader, changes))
    return tree.members - before


def _counted(reader: TarReader, tree: ImageTree) -> Iterator[tuple[str, str, str, Member]]:
    for member in reader:
        tree.members += 1
        tree.next_member()
        if tree.members > tree.limits.members:
            raise refuse(member.name, f"is one member too many (limit {tree.limits.members})")
        yield member.name, KINDS[member.type], member.link, member


class _Written:
    """A layer's changes as system calls."""

    def __init__(self, tree: ImageTree, reader: TarReader, changes: Changeset):
        self.tree, self.reader, self.changes = tree, reader, changes

    def put(self, path: str, item: Member) -> None:
        if not path:
            self.tree.later("", item)
            return
        parent, _, name = path.rpartition("/")
        parent_fd = self.tree.dir_fd(parent)
        if item.type == FILE:
            _write_file(self.tree, parent_fd, name, item, self.reader)
        elif item.type == DIR:
            _make_dir(self.tree, parent_fd, name)
            self.tree.later(path, item)
        else:
            _make_other(self.tree, parent_fd, name, path, item)

    def link(self, path: str, source: str) -> bool:
        parent, _, name = path.rpartition("/")
        folder, _, source_name = source.rpartition("/")
        parent_fd = self.tree.dir_fd(parent)
        self.tree.remove(parent_fd, name)
        try:
            source_fd = self.tree.open_dir(folder) if folder else os.dup(self.tree.fd)
        except OSError:
            return False
        try:
            found = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                return False
            os.link(
                source_name, name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False
            )
        except FileNotFoundError:
            return False
        finally:
            os.close(source_fd)
        return True

    def hide(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self.tree.remove(self.tree.dir_fd(parent), name)

    def clear(self, path: str, *, anew: bool) -> None:
        fd = os.dup(self.tree.dir_fd(path))
        try:
            if anew and path not in self.changes.kinds:
                self.tree.later(path)
            for child in os.listdir(fd):
                below = f"{path}/{child}" if path else child
                if not self.changes.holds(below):
                    self.tree.remove(fd, child)
                elif self.changes.kinds.get(below, "dir") == "dir":
                    self.clear(below, anew=True)
        finally:
            os.close(fd)


def _write_file(
    tree: ImageTree, parent_fd: int, name: str, member: Member, reader: TarReader
) -> None:
    tree.written_bytes += member.size_bytes
    if tree.written_bytes > tree.limits.total_bytes:
        raise refuse(name, f"goes over the limit of {tree.limits.total_bytes} bytes unpacked")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    except FileExistsError:
        tree.remove(parent_fd, name)
        fd = os.open(name, flags, 0o600, dir_fd=parent_fd)
    try:
        for view in reader.data():
            while len(view):
                view = view[os.write(fd, view) :]
        if tree.is_root and (member.uid or member.gid):
            os.fchown(fd, member.uid, member.gid)
        if member.xattrs:
            tree.put_xattrs(fd, member)
        os.fchmod(fd, tree.mode_of(member))
        os.utime(fd, ns=(member.mtime_ns, member.mtime_ns))
    finally:
        os.close(fd)


def _make_dir(tree: ImageTree, parent_fd: int, name: str) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            tree.remove(parent_fd, name)
            os.mkdir(name, 0o700, dir_fd=parent_fd)


def _make_other(tree: ImageTree, parent_fd: int, name: str, path: str, member: Member) -> None:
    if member.type in (CHAR, BLOCKDEV) and not tree.is_root:
        raise refuse(path, "is a device node, which only root may make")
    if member.type == SYMLINK and not tree.limits.absolute_links:
        check_symlink(path, member.link)
    tree.remove(parent_fd, name)
    if member.type == SYMLINK:
        os.symlink(member.link, name, dir_fd=parent_fd)
    elif member.type == FIFO:
        os.mkfifo(name, 0o600, dir_fd=parent_fd)
    else:
        kind = stat.S_IFCHR if member.type == CHAR else stat.S_IFBLK
        os.mknod(name, kind | 0o600, os.makedev(member.major, member.minor), dir_fd=parent_fd)
    tree.own(member, name, parent_fd)
    if member.xattrs:
        tree.put_xattrs(f"/proc/self/fd/{parent_fd}/{name}", member)
    if member.type != SYMLINK:
        os.chmod(name, tree.mode_of(member), dir_fd=parent_fd)
    os.utime(name, ns=(member.mtime_ns, member.mtime_ns), dir_fd=parent_fd, follow_symlinks=False)


def unpack_image(
    layout: Layout,
    manifest: Manifest,
    rootfs: str | os.PathLike[str],
    *,
    limits: Limits = Limits(),
    fast: bool = False,
    fetched: bool = False,
) -> JsonObject:
    """All layers of an image on disk, one after the other, each checked against its digest (not
    again where it was `fetched` just now) and its diff id. Returns facts."""
    ids = layout.config(manifest)["rootfs"]["diff_ids"]
    plain_bytes = 0
    with growing(rootfs, limits) as tree:
        for layer, diff_id in zip(manifest.layers, ids, strict=True):
            with layout.plain_layer(layer, diff_id, fast=fast, fetched=fetched) as plain:
                apply_layer(plain, tree)
            plain_bytes += plain.size_bytes
        return {
            "layers": len(manifest.layers),
            "members": tree.members,
            "written_bytes": tree.written_bytes,
            "plain_bytes": plain_bytes,
            "skipped_xattrs": tree.skipped_xattrs,
        }

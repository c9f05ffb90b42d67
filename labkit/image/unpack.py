"""Image layers become a root directory: whiteouts, hard links, modes, owners, xattrs and times,
from input that may be hostile.

Every path is resolved below the root by the kernel (`openat2` with RESOLVE_IN_ROOT; without it,
component by component, no link followed), so no name, link or race leads out. An image is unpacked
into a hidden sibling and renamed when all of it is there: a refused layer leaves nothing behind.
Limit: one thread of gunzip, then the disk's write rate.

    with growing(rootfs) as tree:
        for plain in …: apply_layer(plain, tree)        # `plain`: chunks of the uncompressed tar

Refused with BadInput: absolute or climbing names, hard links and symlinks out of the root, members
written through a symlink of their own layer, the same path twice in a layer, device nodes when not
root, more bytes or members than `Limits` allow. Absolute symlinks are refused too unless
`Limits(absolute_links=True)`: they are honest inside a container, and lead to the host's own files
wherever an image is used without a changed root. Owners are kept when root. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from labkit.core.json_types import JsonObject
from labkit.image.oci import OPAQUE, WHITEOUT, Manifest
from labkit.image.oci_layout import Layout
from labkit.image.tar import BLOCKDEV, CHAR, DIR, FIFO, FILE, HARDLINK, SYMLINK, Member, TarReader
from labkit.image.tree import ImageTree, Limits, growing, refuse


class _Layer:
    """What one image layer has written so far: whiteouts spare it, duplicates and tricks are found
    by it."""

    def __init__(self) -> None:
        self.paths: set[str] = set()
        self.links: set[str] = set()
        self.parents: set[str] = set()  # directories that hold something of this layer

    def check_links(self, path: str) -> None:
        """A directory path must not lead through a symlink that this very layer brought."""
        if self.links:
            at = len(path)
            while at > 0:
                if path[:at] in self.links:
                    raise refuse(path, f"leads through the symlink {path[:at]!r} of its own layer")
                at = path.rfind("/", 0, at)

    def add(self, path: str) -> None:
        if path in self.paths:
            raise refuse(path, "comes twice in one layer")
        self.paths.add(path)
        at = path.rfind("/")
        while at > 0 and path[:at] not in self.parents:
            self.parents.add(path[:at])
            at = path.rfind("/", 0, at)

    def holds(self, path: str) -> bool:
        return path in self.paths or path in self.parents


def clean(name: str, kind: str = "name") -> str:
    """A member's name as a path below the root ("" for the root itself). Raises BadInput for
    anything that climbs."""
    if name.startswith("/"):
        raise refuse(name, f"is an absolute {kind}")
    parts = [p for p in name.split("/") if p not in ("", ".")]
    if ".." in parts:
        raise refuse(name, f"climbs out of its directory ({kind})")
    raw_bytes = len(os.fsencode(name))
    if raw_bytes > 255 and (raw_bytes > 4096 or any(len(os.fsencode(p)) > 255 for p in parts)):
        raise refuse(name, f"is longer than a {kind} may be")
    return "/".join(parts)


def check_symlink(path: str, target: str, absolute_ok: bool) -> None:
    """Where a symlink leads, read as text: not out of the root."""
    if not target or len(os.fsencode(target)) > 4095:
        raise refuse(path, "is a symlink without a usable target")
    if target.startswith("/"):
        if absolute_ok:
            return
        refused = refuse(path, f"is an absolute symlink to {target[:100]!r}")
        refused.fix = (
            "an image that is only ever run with a changed root (runc, userns) may have them: "
            "labkit image unpack --absolute-links"
        )
        raise refused
    depth = path.count("/")
    for part in target.split("/"):
        if part == "..":
            depth -= 1
        elif part not in ("", "."):
            depth += 1
        if depth < 0:
            raise refuse(path, f"is a symlink out of the root, to {target[:100]!r}")


def apply_layer(chunks: Iterable[bytes | memoryview], tree: ImageTree) -> int:
    """Apply one layer (chunks of its plain tar) on the tree; returns its members. Raises BadInput,
    with the tree half done."""
    layer, reader, count = _Layer(), TarReader(chunks), 0
    for member in reader:
        count += 1
        tree.members += 1
        tree.next_member()
        if tree.members > tree.limits.members:
            raise refuse(member.name, f"is one member too many (limit {tree.limits.members})")
        path = clean(member.name)
        if not path:
            if member.type != DIR:
                raise refuse(member.name, "replaces the root itself")
            tree.later("", member)
            continue
        parent, _, name = path.rpartition("/")
        if name.startswith(WHITEOUT):
            _white_out(tree, layer, parent, name)
            continue
        layer.add(path)
        parent_fd = tree.dir_fd(parent, layer.check_links)
        if member.type == FILE:
            _write_file(tree, parent_fd, name, member, reader)
        elif member.type == DIR:
            _make_dir(tree, parent_fd, name, path, member)
        else:
            _make_other(tree, layer, parent_fd, name, path, member)
    return count


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


def _make_dir(tree: ImageTree, parent_fd: int, name: str, path: str, member: Member) -> None:
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_mode):
            tree.remove(parent_fd, name)
            tree.forget_dirs()  # a cached descriptor may have come through the link that went
            os.mkdir(name, 0o700, dir_fd=parent_fd)
    tree.later(path, member, os.stat(name, dir_fd=parent_fd, follow_symlinks=False).st_ino)


def _make_other(
    tree: ImageTree, layer: _Layer, parent_fd: int, name: str, path: str, member: Member
) -> None:
    if member.type in (CHAR, BLOCKDEV) and not tree.is_root:
        raise refuse(path, "is a device node, which only root may make")
    if member.type == SYMLINK:
        check_symlink(path, member.link, tree.limits.absolute_links)
    source = clean(member.link, "hard link") if member.type == HARDLINK else ""
    if member.type == HARDLINK and (not source or source == path):
        raise refuse(path, "is a hard link to nothing")
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


def _make_hard_link(
    tree: ImageTree, layer: _Layer, parent_fd: int, name: str, path: str, source: str
) -> None:
    folder, _, source_name = source.rpartition("/")
    layer.check_links(folder)
    try:
        source_fd = tree.open_dir(folder) if folder else os.dup(tree.fd)
    except OSError:
        raise refuse(path, f"is a hard link to {source!r}, which is not in the image") from None
    try:
        found = os.stat(source_name, dir_fd=source_fd, follow_symlinks=False)
        if stat.S_ISDIR(found.st_mode):
            raise refuse(path, "is a hard link to a directory")
        tree.remove(parent_fd, name)
        os.link(
            source_name, name, src_dir_fd=source_fd, dst_dir_fd=parent_fd, follow_symlinks=False
        )
    except FileNotFoundError:
        raise refuse(path, f"is a hard link to {source!r}, which is not in the image") from None
    finally:
        os.close(source_fd)
    if stat.S_ISLNK(found.st_mode):
        layer.links.add(path)


def _white_out(tree: ImageTree, layer: _Layer, parent: str, name: str) -> None:
    """Hide what lower layers brought; what this layer brought stays (image-spec, "Whiteouts")."""
    if name == OPAQUE:
        _clear(tree, layer, parent)
    elif name.startswith(WHITEOUT + WHITEOUT):
        return  # aufs bookkeeping, never content
    else:
        target = name[len(WHITEOUT) :]
        if target in ("", ".", ".."):
            raise refuse(f"{parent}/{name}", "is a whiteout of no file")
        path = f"{parent}/{target}" if parent else target
        layer.check_links(path)
        if path in layer.paths and path not in layer.parents:
            return
        if path in layer.paths or path in layer.parents:
            _clear(tree, layer, path)
        else:
            tree.remove(tree.dir_fd(parent, layer.check_links), target)
            tree.forget_dirs()


def _clear(tree: ImageTree, layer: _Layer, path: str) -> None:
    """Empty a directory of what this layer did not make."""
    fd = os.dup(tree.dir_fd(path, layer.check_links))
    try:
        for child in os.listdir(fd):
            below = f"{path}/{child}" if path else child
            if not layer.holds(below):
                tree.remove(fd, child)
            elif below in layer.parents and stat.S_ISDIR(
                os.stat(child, dir_fd=fd, follow_symlinks=False).st_mode
            ):
                _clear(tree, layer, below)
    finally:
        os.close(fd)
    tree.forget_dirs()


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

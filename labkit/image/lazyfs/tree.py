"""TOCs of image layers merged into one tree, as a union mount would show them.

    tree = build([toc_of_lowest_layer, …, toc_of_topmost])
    node = tree.at("usr/bin/python3.11"); node.layer, node.chunks

Upper entries replace lower ones, `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all of a
directory; names of one hard link are one node. Entries below a symbolic link of a lower layer land
where the link leads, within the root. Cost: 5 µs an entry, held in memory (about 0.5 kB each).
Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from labkit.errors import BadInput
from labkit.image.estargz.layout import OWN_NAMES
from labkit.image.estargz.toc import Chunk, Toc, TOCEntry
from labkit.image.lazyfs import wire
from labkit.image.oci import OPAQUE, WHITEOUT

_LINKS_LIMIT = 40


class Node:
    """An inode. `children` of a directory by name in bytes; `layer` and `chunks` of a file."""

    __slots__ = (
        "children",
        "chunks",
        "gid",
        "ino",
        "kind",
        "layer",
        "mode",
        "mtime_s",
        "nlink",
        "parent",
        "path",
        "rdev",
        "size",
        "starts",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(
        self,
        kind: str,
        path: str,
        mode: int = 0o755,
        uid: int = 0,
        gid: int = 0,
        mtime_s: int = 0,
        layer: int = -1,
    ):
        self.ino, self.kind, self.mode, self.uid, self.gid, self.mtime_s = (
            0,
            kind,
            mode,
            uid,
            gid,
            mtime_s,
        )
        self.size, self.nlink, self.rdev, self.target, self.layer = 0, 1, 0, b"", layer
        self.xattrs: dict[bytes, bytes] | None = None
        self.children: dict[bytes, Node] | None = {} if kind == "dir" else None
        self.parent: Node = self
        self.chunks: Sequence[Chunk] = ()
        self.starts: Sequence[int] = ()  # file offsets of the chunks, where there are several
        self.path = path

    def attributes(self, squash: tuple[int, int] | None = None) -> bytes:
        uid, gid = squash or (self.uid, self.gid)
        size = len(self.target) if self.kind == "symlink" else self.size
        return wire.attributes(
            self.ino,
            wire.TYPE_BITS[self.kind] | self.mode,
            size,
            self.nlink,
            uid,
            gid,
            self.rdev,
            self.mtime_s,
        )

    def child(self, name: bytes) -> Node | None:
        return self.children.get(name) if self.children else None

    def chunks_of(self, offset: int, size: int) -> Sequence[Chunk]:
        """The chunks that hold [offset, offset + size)."""
        if len(self.chunks) < 2:
            return self.chunks
        if not self.starts:
            self.starts = [c.file_offset for c in self.chunks]
        return self.chunks[
            max(0, bisect_right(self.starts, offset) - 1) : bisect_right(
                self.starts, offset + size - 1
            )
        ]


class InodeTree:
    def __init__(self) -> None:
        self.root = Node("dir", "")
        self.nodes: list[Node] = []
        self.has_xattrs = False

    def at(self, path: str) -> Node | None:
        node: Node | None = self.root
        for part in (p for p in path.split("/") if p):
            node = node.child(_bytes(part)) if node else None
        return node

    def number(self) -> None:
        """Give every node its inode number: the index in `nodes`, plus one."""
        self.nodes, seen, stack = [], set(), [self.root]
        while stack:
            node = stack.pop()
            if id(node) in seen:
                continue
            seen.add(id(node))
            self.nodes.append(node)
            node.ino = len(self.nodes)
            self.has_xattrs |= bool(node.xattrs)
            if node.children:
                stack.extend(node.children.values())


def build(
    tocs: Sequence[Toc], extra_dirs: Iterable[str] = (), extra_files: Iterable[str] = ()
) -> InodeTree:
    """Lowest layer first. `extra_dirs`, `extra_files`: empty mount points to add for a runtime.
    Raises BadInput."""
    tree = InodeTree()
    for index, toc in enumerate(tocs):
        _apply(tree, toc.entries, index)
    for names, kind in ((extra_dirs, "dir"), (extra_files, "reg")):
        for name in names:
            parent, leaf = _parent(tree, name.strip("/"), -1)
            if leaf and parent.child(leaf) is None:
                mode = 0o755 if kind == "dir" else 0o644
                _attach(parent, leaf, Node(kind, name.strip("/"), mode))
    tree.number()
    return tree


def _bytes(name: str) -> bytes:
    return os.fsencode(name) if name.isascii() else name.encode("utf-8", "surrogateescape")


def _apply(tree: InodeTree, entries: list[TOCEntry], layer: int) -> None:
    plain, links = [], []
    for entry in entries:
        directory, _, leaf = entry.name.rpartition("/")
        if leaf == OPAQUE:
            node = tree.at(directory)
            if node is not None and node.children is not None:
                node.children.clear()
        elif leaf.startswith(WHITEOUT):
            hidden = leaf[len(WHITEOUT) :]
            node = tree.at(directory)
            if node is not None and node.children is not None and hidden not in ("", ".", ".."):
                removed = node.children.pop(_bytes(hidden), None)
                if removed is not None:
                    removed.nlink -= 1
        elif entry.name in OWN_NAMES:
            continue
        elif entry.kind == "hardlink":
            links.append(entry)
        else:
            plain.append(entry)
    known: dict[str, Node] = {}
    for entry in plain:
        _add(tree, entry, layer, known)
    waiting = links
    while waiting:
        left = [entry for entry in waiting if not _link(tree, entry, layer)]
        if len(left) == len(waiting):
            raise BadInput(
                f"the hard link {left[0].name[:80]!r} points at no file of its layer",
                why="a corrupt or forged layer",
            )
        waiting = left


def _add(tree: InodeTree, entry: TOCEntry, layer: int, known: dict[str, Node]) -> None:
    """`known`: directories by their text, looked up before; as files come directory by directory,
    nearly all are."""
    if not entry.name:
        root = tree.root
        root.mode, root.uid, root.gid, root.mtime_s = (
            entry.mode,
            entry.uid,
            entry.gid,
            entry.mtime_s,
        )
        return
    node = Node(entry.kind, entry.name, entry.mode, entry.uid, entry.gid, entry.mtime_s, layer)
    node.size, node.chunks = entry.size, entry.chunks
    if entry.link:
        node.target = _bytes(entry.link)
    if entry.kind in ("char", "block"):
        node.rdev = (entry.major & 0xFFF) << 8 | (entry.minor & 0xFF) | (entry.minor & ~0xFF) << 12
    if entry.xattrs:
        node.xattrs = {_bytes(k): v for k, v in entry.xattrs.items()}
    directory, _, name = entry.name.rpartition("/")
    parent, leaf = known.get(directory), _bytes(name)
    if parent is None:
        parent, leaf = _parent(tree, entry.name, layer)
        known[directory] = parent
    assert parent.children is not None
    old = parent.children.get(leaf)
    if old is not None and (old.children is not None or old.kind == "symlink"):
        known.clear()  # paths that led through it lead elsewhere now
    if old is not None and old.children is not None and node.children is not None:
        node.children = old.children  # a directory over a directory keeps what is in it
        for child in node.children.values():
            child.parent = node
    _attach(parent, leaf, node)


def _attach(parent: Node, leaf: bytes, node: Node) -> None:
    assert parent.children is not None
    old = parent.children.get(leaf)
    if old is not None:
        old.nlink -= 1
    parent.children[leaf] = node
    node.parent = parent


def _link(tree: InodeTree, entry: TOCEntry, layer: int) -> bool:
    node = tree.at(entry.link)
    if node is None or node.children is not None or node.layer != layer:
        return False
    parent, leaf = _parent(tree, entry.name, layer)
    if parent.child(leaf) is not node:
        node.nlink += 1
        held = node.parent
        _attach(parent, leaf, node)
        node.parent = held
    return True


def _parent(tree: InodeTree, name: str, layer: int) -> tuple[Node, bytes]:
    """(directory node, last part) for an entry, making directories that no entry names, following
    lower layers' links."""
    parts = name.split("/")
    node, todo, followed = tree.root, parts[:-1][::-1], 0
    while todo:
        part = todo.pop()
        if part in ("", "."):
            continue
        if part == "..":
            node = node.parent
            continue
        assert node.children is not None
        key = _bytes(part)
        child = node.children.get(key)
        if child is not None and child.kind == "symlink" and followed < _LINKS_LIMIT:
            followed += 1
            target = child.target.decode("utf-8", "surrogateescape")
            if target.startswith("/"):
                node = tree.root
            todo.extend(target.split("/")[::-1])
            continue
        if child is None or child.children is None:
            child = Node("dir", f"{node.path}/{part}".lstrip("/"), layer=layer)
            _attach(node, key, child)
        node = child
    assert node.children is not None
    return node, _bytes(parts[-1])

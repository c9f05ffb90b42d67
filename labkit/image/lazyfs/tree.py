"""TOCs of image layers merged into one tree, as a union mount would show them.

    tree = build([toc_of_lowest_layer, …, toc_of_topmost])
    node = tree.at("usr/bin/python3.11"); node.layer, node.chunks

What an entry changes is said by `labkit.image.changeset`, as for a layer that is unpacked; names of
one hard link are one node. Cost: 5 µs an entry, held in memory (about 0.5 kB each). Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Iterable, Sequence

from labkit.image.changeset import Changeset
from labkit.image.estargz.toc import Chunk, Toc, TOCEntry
from labkit.image.lazyfs import wire

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
        "mtime_ns",
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
        mtime_ns: int = 0,
        layer: int = -1,
    ):
        self.ino, self.kind, self.mode, self.uid, self.gid, self.mtime_ns = (
            0,
            kind,
            mode,
            uid,
            gid,
            mtime_ns,
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
        # a set-id bit of one's own says nothing
        mode = self.mode & 0o1777 if squash else self.mode
        size = len(self.target) if self.kind == "symlink" else self.size
        return wire.attributes(
            self.ino,
            wire.TYPE_BITS[self.kind] | mode,
            size,
            self.nlink,
            uid,
            gid,
            self.rdev,
            self.mtime_ns,
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

    def resolved(self, path: str) -> str:
        """Where a program in this tree that names `path` gets to: symlinks followed, below the
        root."""
        todo, done, followed = path.split("/")[::-1], [""], 0
        while todo:
            part = todo.pop()
            if part == "..":
                done = done[:-1] or done
            elif part not in ("", "."):
                node = self.at("/".join([*done, part]))
                if node is not None and node.kind == "symlink" and followed < _LINKS_LIMIT:
                    followed += 1
                    target = node.target.decode("utf-8", "surrogateescape")
                    done = [""] if target.startswith("/") else done
                    todo += target.split("/")[::-1]
                else:
                    done.append(part)
        return "/".join(done[1:])

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
        changes = Changeset()
        entries = ((e.name, e.kind, e.link, e) for e in toc.entries)
        changes.apply(entries, _Merged(tree, index, changes))
    mount_points = _Merged(tree, -1, Changeset())
    for names, kind in ((extra_dirs, "dir"), (extra_files, "reg")):
        for name in map(tree.resolved, names):
            if name and tree.at(name) is None:
                mode = 0o755 if kind == "dir" else 0o644
                mount_points.put(name, TOCEntry(name, kind, mode=mode))
    tree.number()
    return tree


def _bytes(name: str) -> bytes:
    return os.fsencode(name) if name.isascii() else name.encode("utf-8", "surrogateescape")


class _Merged:
    """A layer's changes in the tree. `_known`: directories by their path; as files come directory
    by directory, nearly all are."""

    def __init__(self, tree: InodeTree, layer: int, changes: Changeset):
        self.tree, self.layer, self.changes = tree, layer, changes
        self._known: dict[str, Node] = {}

    def put(self, path: str, item: TOCEntry) -> None:
        node = Node(item.kind, path, item.mode, item.uid, item.gid, item.mtime_ns, self.layer)
        node.size, node.chunks = item.size, item.chunks
        if item.kind == "symlink":
            node.target, node.mode = _bytes(item.link), 0o777  # Linux knows no other
        elif item.kind in ("char", "block"):
            node.rdev = (item.major & 0xFFF) << 8 | (item.minor & 0xFF) | (item.minor & ~0xFF) << 12
        if item.xattrs:
            node.xattrs = {_bytes(k): v for k, v in item.xattrs.items()}
        if not path:
            self._take_over(self.tree.root, node)
            self.tree.root = node.parent = node
            return
        directory, _, leaf = path.rpartition("/")
        parent = self._known.get(directory) or self._directory(directory)
        self._attach(parent, _bytes(leaf), node)

    def link(self, path: str, source: str) -> bool:
        parent, leaf = self._place(path)
        self._detach(parent, leaf)
        node = self.tree.at(source)
        if node is None or node.children is not None:
            return False
        held = node.parent
        node.nlink += 1
        self._attach(parent, leaf, node)
        node.parent = held
        return True

    def hide(self, path: str) -> None:
        parent, leaf = self._place(path)
        self._detach(parent, leaf)

    def clear(self, path: str, *, anew: bool) -> None:
        directory = self._directory(path)
        assert directory.children is not None
        if anew and path not in self.changes.kinds:
            bare = Node("dir", path)
            directory.mode, directory.uid, directory.gid = bare.mode, bare.uid, bare.gid
            directory.mtime_ns, directory.xattrs = bare.mtime_ns, None
        for leaf in list(directory.children):
            name = leaf.decode("utf-8", "surrogateescape")
            below = f"{path}/{name}" if path else name
            if not self.changes.holds(below):
                self._detach(directory, leaf)
            elif self.changes.kinds.get(below, "dir") == "dir":
                self.clear(below, anew=True)

    def _place(self, path: str) -> tuple[Node, bytes]:
        directory, _, leaf = path.rpartition("/")
        return self._directory(directory), _bytes(leaf)

    def _directory(self, path: str) -> Node:
        """The directory at `path`, made with its parents where there is none, in place of what is
        there."""
        node = self._known.get(path)
        if node is None:
            node = self.tree.root
            if path:
                above, _, name = path.rpartition("/")
                parent, leaf = self._directory(above), _bytes(name)
                found = parent.child(leaf)
                node = found if found is not None else Node("dir", path, layer=self.layer)
                if node.children is None:
                    node = Node("dir", path, layer=self.layer)
                if node is not found:
                    self._attach(parent, leaf, node)
            self._known[path] = node
        return node

    def _attach(self, parent: Node, leaf: bytes, node: Node) -> None:
        assert parent.children is not None
        old = parent.children.get(leaf)
        if old is not None:
            if old.children is not None and node.children is not None:
                self._take_over(old, node)
            else:
                self._detach(parent, leaf)
        parent.children[leaf] = node
        node.parent = parent

    def _take_over(self, old: Node, node: Node) -> None:
        """A directory over a directory keeps what is in it."""
        node.children = old.children
        for child in (node.children or {}).values():
            child.parent = node
        self._known.clear()

    def _detach(self, parent: Node, leaf: bytes) -> None:
        gone = parent.children.pop(leaf, None) if parent.children else None
        stack = [gone] if gone is not None else []
        while stack:
            node = stack.pop()
            if node.children is None:
                node.nlink -= 1  # of the names that other directories have for it
            else:
                self._known.clear()
                stack.extend(node.children.values())

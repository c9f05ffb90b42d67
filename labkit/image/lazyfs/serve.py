"""The request loop of a read-only FUSE file system over a tree and a feed.

    server = FuseServer(fd, tree, feed, stats)
    server.run()              # until unmounted

A few threads read /dev/fuse; what is in memory is answered at once (10–20 µs), a read that has to
wait goes to a pool, so that one slow chunk never holds a look-up. Opens and directory opens are
declined once ("needs no open"), after which the kernel sends none and keeps pages and directories
cached; extended attributes likewise where the image has none. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from labkit.errors import LabError
from labkit.image.estargz.toc import Chunk
from labkit.image.lazyfs import wire
from labkit.image.lazyfs.feed import Feed
from labkit.image.lazyfs.stats import Stats
from labkit.image.lazyfs.tree import InodeTree, Node

log = logging.getLogger("labkit.lazyfs")

_SILENT = frozenset((wire.FORGET, wire.BATCH_FORGET))
_UNKNOWN = (
    *(wire.OPEN, wire.OPENDIR, wire.FLUSH, wire.ACCESS),
    *(wire.BMAP, wire.POLL, wire.LSEEK, wire.STATX),
)
#: What requests without a handler get; all others would write.
_ANSWERS = {
    **dict.fromkeys(_UNKNOWN, errno.ENOSYS),
    **dict.fromkeys((wire.RELEASE, wire.RELEASEDIR, wire.DESTROY), 0),
    wire.IOCTL: errno.ENOTTY,
}


class Refusal(Exception):
    def __init__(self, code: int):
        super().__init__(code)
        self.code = code


class FuseServer:
    """`on_read(node, offset, size)` sees every read that reaches the server: the kernel asks for
    each page once."""

    def __init__(
        self,
        fd: int,
        tree: InodeTree,
        feed: Feed,
        stats: Stats,
        *,
        threads: int = 3,
        squash: tuple[int, int] | None = None,
        on_read: Callable[[Node, int, int], None] | None = None,
    ):
        self.fd, self.tree, self.feed, self.stats = fd, tree, feed, stats
        self.threads, self.squash, self.on_read = threads, squash, on_read
        self.ready = threading.Event()
        self._waiting: set[int] = set()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(32, "read")
        self._entries: dict[int, bytes] = {}
        self._listings: dict[int, list[tuple[Node, bytes, bytes]]] = {}
        self._handlers = {
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.READLINK: self._readlink,
            wire.READDIR: self._readdir,
            wire.READDIRPLUS: self._readdirplus,
            wire.STATFS_OP: self._statfs,
            wire.GETXATTR: self._getxattr,
            wire.LISTXATTR: self._listxattr,
            wire.INIT: self._init,
        }

    def run(self) -> None:
        """Serve until the file system is unmounted (or the connection aborted)."""
        others = [
            threading.Thread(target=self._loop, name=f"fuse-{i}", daemon=True)
            for i in range(1, self.threads)
        ]
        for thread in others:
            thread.start()
        self._loop()
        for thread in others:
            thread.join(1.0)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _loop(self) -> None:
        buffer = bytearray(wire.REQUEST_BYTES)
        view = memoryview(buffer)
        while True:
            try:
                size = os.readv(self.fd, [buffer])
            except OSError as error:
                if error.errno in (errno.EINTR, errno.EAGAIN, errno.ENOENT):
                    continue
                if error.errno not in (errno.ENODEV, errno.EBADF):
                    log.error("reading /dev/fuse: %s", error)
                return
            _, opcode, unique, nodeid, *_ = wire.IN.unpack_from(buffer)
            self.stats.requests[_NAMES.get(opcode, "OTHER")] += 1
            if opcode in _SILENT:
                continue
            if opcode == wire.READ:
                self._read(unique, nodeid, view[wire.IN.size : size])
                continue
            if opcode == wire.INTERRUPT:
                self._interrupt(int.from_bytes(view[wire.IN.size : wire.IN.size + 8], "little"))
                continue
            try:
                handler = self._handlers.get(opcode)
                if handler is None:
                    raise Refusal(_ANSWERS.get(opcode, errno.EROFS))
                body = handler(nodeid, view[wire.IN.size : size])
                self._send([wire.header_of(unique, len(body)), body])
            except Refusal as refusal:
                self._send([wire.failure(unique, refusal.code)])
            except Exception:
                log.exception("request %s failed", _NAMES.get(opcode, opcode))
                self._send([wire.failure(unique, errno.EIO)])

    def _send(self, parts: list[bytes | memoryview]) -> None:
        try:
            os.writev(self.fd, parts)
        except OSError as error:
            # the asker was interrupted, or all is over
            if error.errno not in (errno.ENOENT, errno.ENODEV, errno.EBADF):
                log.error("writing /dev/fuse: %s", error)

    # ---- names and attributes

    def _node(self, nodeid: int) -> Node:
        try:
            return self.tree.nodes[nodeid - 1]
        except IndexError:
            raise Refusal(errno.ESTALE) from None

    def _entry(self, node: Node) -> bytes:
        entry = self._entries.get(node.ino)
        if entry is None:
            entry = self._entries[node.ino] = wire.entry(node.ino, node.attributes(self.squash))
        return entry

    def _init(self, _node: int, body: memoryview) -> bytes:
        major, minor, readahead, flags = wire.INIT_IN.unpack_from(body)
        if major != wire.MAJOR or minor < wire.MINOR:
            log.error("the kernel speaks FUSE %d.%d, 7.31 is needed", major, minor)
            raise Refusal(errno.EPROTO)
        self.ready.set()
        return wire.init_reply(minor, readahead, flags)

    def _lookup(self, nodeid: int, body: memoryview) -> bytes:
        children = self._node(nodeid).children
        if children is None:
            raise Refusal(errno.ENOTDIR)
        node = children.get(bytes(body).rstrip(b"\0"))
        return self._entry(node) if node is not None else wire.NEGATIVE

    def _getattr(self, nodeid: int, _body: memoryview) -> bytes:
        return wire.ATTR_OUT.pack(wire.FOREVER_S, 0, 0) + self._node(nodeid).attributes(self.squash)

    def _readlink(self, nodeid: int, _body: memoryview) -> bytes:
        node = self._node(nodeid)
        if node.kind != "symlink":
            raise Refusal(errno.EINVAL)
        return node.target

    def _statfs(self, _node: int, _body: memoryview) -> bytes:
        blocks = sum(feed.blob.size_bytes for feed in self.feed.layers) // wire.PAGE
        return wire.STATFS.pack(blocks, 0, 0, len(self.tree.nodes), 0, wire.PAGE, 255, wire.PAGE, 0)

    def _listing(self, nodeid: int) -> list[tuple[Node, bytes, bytes]]:
        """(node, name, plain directory entry) with cookies in order; computed once."""
        listing = self._listings.get(nodeid)
        if listing is None:
            node = self._node(nodeid)
            if node.children is None:
                raise Refusal(errno.ENOTDIR)
            names = [(b".", node), (b"..", node.parent), *node.children.items()]
            listing = [
                (child, name, wire.dirent(child.ino, at + 1, name, wire.TYPE_BITS[child.kind]))
                for at, (name, child) in enumerate(names)
            ]
            self._listings[nodeid] = listing
        return listing

    def _readdir(self, nodeid: int, body: memoryview, plus: bool = False) -> bytes:
        _, offset, size, _ = wire.READ_IN.unpack_from(body)
        parts, left = [], size
        for node, name, plain in self._listing(nodeid)[offset:]:
            head = b""
            if plus:
                own = name in (b".", b"..")
                head = bytes(len(wire.NEGATIVE)) if own else self._entry(node)
            left -= len(head) + len(plain)
            if left < 0:
                break
            parts += [head, plain]
        return b"".join(parts)

    def _readdirplus(self, nodeid: int, body: memoryview) -> bytes:
        return self._readdir(nodeid, body, plus=True)

    def _getxattr(self, nodeid: int, body: memoryview) -> bytes:
        if not self.tree.has_xattrs:
            raise Refusal(errno.ENOSYS)
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        value = (self._node(nodeid).xattrs or {}).get(
            bytes(body[wire.GETXATTR_IN.size :]).rstrip(b"\0")
        )
        if value is None:
            raise Refusal(errno.ENODATA)
        return _sized(value, size)

    def _listxattr(self, nodeid: int, body: memoryview) -> bytes:
        if not self.tree.has_xattrs:
            raise Refusal(errno.ENOSYS)
        size, _ = wire.GETXATTR_IN.unpack_from(body)
        return _sized(b"".join(name + b"\0" for name in self._node(nodeid).xattrs or ()), size)

    # ---- reads

    def _read(self, unique: int, nodeid: int, body: memoryview) -> None:
        _, offset, size, _ = wire.READ_IN.unpack_from(body)
        try:
            node = self._node(nodeid)
        except Refusal as refusal:
            return self._send([wire.failure(unique, refusal.code)])
        size = max(0, min(size, node.size - offset))
        if self.on_read is not None and size:
            self.on_read(node, offset, size)
        chunks = node.chunks_of(offset, size) if size else ()
        data = []
        for chunk in chunks:
            held = self.feed.memory.get(chunk.digest)
            if held is None:
                with self._lock:
                    self._waiting.add(unique)
                self._pool.submit(self._read_slowly, unique, node, offset, size, chunks)
                return None
            data.append(held)
        for _ in chunks:
            self.stats.hits["memory"] += 1
        self._answer(unique, offset, size, chunks, data)
        return None

    def _read_slowly(
        self, unique: int, node: Node, offset: int, size: int, chunks: Sequence[Chunk]
    ) -> None:
        started_s = time.monotonic()
        try:
            data = [self.feed.chunk(node.layer, chunk) for chunk in chunks]
        except BaseException as error:
            if isinstance(error, (LabError, OSError, TimeoutError)):
                self.stats.add(self.stats.counts, "errors")
            if not isinstance(error, LabError):
                known = isinstance(error, (OSError, TimeoutError))
                log.error("reading %s: %s", node.path, error, exc_info=not known)
            if self._claim(unique):
                self._send([wire.failure(unique, errno.EIO)])
            return
        finally:
            self.stats.blocked(time.monotonic() - started_s)
        if self._claim(unique):
            self._answer(unique, offset, size, chunks, data)

    def _answer(
        self, unique: int, offset: int, size: int, chunks: Sequence[Chunk], data: list[bytes]
    ) -> None:
        parts: list[bytes | memoryview] = [wire.header_of(unique, size)]
        for chunk, held in zip(chunks, data, strict=True):
            low = max(0, offset - chunk.file_offset)
            high = min(chunk.size, offset + size - chunk.file_offset)
            parts.append(held if low == 0 and high == chunk.size else memoryview(held)[low:high])
            self.stats.touch(chunk.digest, chunk.size)
            self.feed.memory.served(chunk.digest, high == chunk.size)
        self._send(parts)
        self.stats.counts["reads"] += 1
        self.stats.counts["read_bytes"] += size

    def _claim(self, unique: int) -> bool:
        with self._lock:
            if unique in self._waiting:
                self._waiting.discard(unique)
                return True
        return False

    def _interrupt(self, unique: int) -> None:
        """A reader was killed or interrupted while it waited: let it go."""
        if self._claim(unique):
            self._send([wire.failure(unique, errno.EINTR)])


def _sized(value: bytes, size: int) -> bytes:
    """The kernel asks for the size first (size 0), then for the bytes."""
    if size == 0:
        return wire.GETXATTR_IN.pack(len(value), 0)
    if size < len(value):
        raise Refusal(errno.ERANGE)
    return value


_NAMES = {
    getattr(wire, name): name
    for name in (
        "LOOKUP",
        "FORGET",
        "GETATTR",
        "READLINK",
        "OPEN",
        "READ",
        "RELEASE",
        "GETXATTR",
        "LISTXATTR",
        "FLUSH",
        "INIT",
        "OPENDIR",
        "READDIR",
        "RELEASEDIR",
        "ACCESS",
        "INTERRUPT",
        "DESTROY",
        "IOCTL",
        "BATCH_FORGET",
        "READDIRPLUS",
        "LSEEK",
        "STATX",
    )
}

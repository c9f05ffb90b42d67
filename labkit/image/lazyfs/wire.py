"""The FUSE kernel protocol of a read-only file system: requests as numbers, replies as bytes.

A request is a header of 40 bytes and a body, read from /dev/fuse; a reply is a header of 16 and a
body. Protocol 7.31 is the least asked for (Linux 5.4: FUSE_MAX_PAGES, cached symlinks, opens that
need no answer). Source: linux/fuse.h. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import stat
import struct

IN = struct.Struct("<IIQQIIIHH")  # len, opcode, unique, node, uid, gid, pid, extension, padding
OUT = struct.Struct("<IiQ")  # len, -errno, unique
INIT_IN = struct.Struct("<IIII")  # major, minor, max_readahead, flags
INIT_OUT = struct.Struct("<IIIIHHIIHHII24x")
READ_IN = struct.Struct("<QQII")  # handle, offset, size, flags (and more that is not needed)
ATTR = struct.Struct("<QQQqqqIIIIIIIIII")  # seconds before 1970 are negative
ENTRY = struct.Struct("<QQQQII")
ATTR_OUT = struct.Struct("<QII")
DIRENT = struct.Struct("<QQII")
STATFS = struct.Struct("<QQQQQIIII24x")
GETXATTR_IN = struct.Struct("<II")
MAJOR, MINOR = 7, 31

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ, STATFS_OP, RELEASE = 1, 2, 3, 5, 14, 15, 17, 18
GETXATTR, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR = 22, 23, 25, 26, 27, 28, 29
ACCESS, INTERRUPT, BMAP, DESTROY, IOCTL, POLL, BATCH_FORGET = 34, 36, 37, 38, 39, 40, 42
READDIRPLUS, LSEEK, STATX = 44, 46, 52

ASYNC_READ, EXPORT_SUPPORT, BIG_WRITES = 1 << 0, 1 << 4, 1 << 5
DO_READDIRPLUS, READDIRPLUS_AUTO, NO_OPEN_SUPPORT, PARALLEL_DIROPS = (
    1 << 13,
    1 << 14,
    1 << 17,
    1 << 18,
)
MAX_PAGES, CACHE_SYMLINKS, NO_OPENDIR_SUPPORT = 1 << 22, 1 << 23, 1 << 24
WANTED = (
    ASYNC_READ
    | EXPORT_SUPPORT
    | BIG_WRITES
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | NO_OPEN_SUPPORT
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
    | NO_OPENDIR_SUPPORT
)

FOREVER_S = 365 * 86400  # the tree never changes while it is mounted
PAGE = 4096
MAX_READ_PAGES = 256
MAX_WRITE = 4096
REQUEST_BYTES = 64 << 10  # more than any request of a read-only mount
TYPE_BITS = {
    "dir": stat.S_IFDIR,
    "reg": stat.S_IFREG,
    "symlink": stat.S_IFLNK,
    "char": stat.S_IFCHR,
    "block": stat.S_IFBLK,
    "fifo": stat.S_IFIFO,
}


def attributes(
    ino: int, mode: int, size: int, nlink: int, uid: int, gid: int, rdev: int, mtime_ns: int
) -> bytes:
    seconds, nanos = divmod(mtime_ns, 1_000_000_000)
    return ATTR.pack(
        ino,
        size,
        (size + 511) // 512,
        seconds,
        seconds,
        seconds,
        nanos,
        nanos,
        nanos,
        mode,
        nlink,
        uid,
        gid,
        rdev,
        PAGE,
        0,
    )


def entry(ino: int, attr: bytes) -> bytes:
    return ENTRY.pack(ino, 0, FOREVER_S, FOREVER_S, 0, 0) + attr


#: "No such name, and do not ask again": a start looks up far more names than exist.
NEGATIVE = ENTRY.pack(0, 0, FOREVER_S, 0, 0, 0) + bytes(ATTR.size)


def dirent(ino: int, cookie: int, name: bytes, mode: int) -> bytes:
    return DIRENT.pack(ino, cookie, len(name), mode >> 12) + name + bytes(-len(name) % 8)


def init_reply(minor: int, readahead: int, flags: int) -> bytes:
    """Everything wanted that the kernel offers."""
    return INIT_OUT.pack(
        MAJOR,
        min(minor, 38),
        max(readahead, MAX_READ_PAGES * PAGE),
        flags & WANTED,
        64,
        48,
        MAX_WRITE,
        1,
        MAX_READ_PAGES,
        0,
        0,
        0,
    )


def header_of(unique: int, body_bytes: int) -> bytes:
    return OUT.pack(OUT.size + body_bytes, 0, unique)


def failure(unique: int, errno: int) -> bytes:
    return OUT.pack(OUT.size, -errno, unique)

"""A tar header as a member: the block's fields and the PAX records in front of it, checked.

    check_sum(head)
    member = read_member(head, FILE, pax_records(raw), long_name=None, long_link=None)

What is read can be stored: owners, devices and attributes that no file has are refused (ValueError,
with the defect; the reader says where). Where writers differ, it reads as Go's archive/tar, and so
containerd, does: an empty PAX record says nothing, a GNU long name goes before a PAX one. Times
outside of 1901 to 2262 become 1970. Limit: some 5 µs a header. Source: POSIX pax, GNU tar's manual.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from dataclasses import dataclass, field

from labkit.image import sparse
from labkit.image.sparse import Extents

BLOCK = 512
FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = "0", "1", "2", "3", "4", "5", "6"
_KNOWN = {FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO}
_XATTR = "SCHILY.xattr."
OWNER_LIMIT = (1 << 32) - 2  # the next one is "unchanged" to chown(2)
MAJOR_LIMIT, MINOR_LIMIT = (1 << 12) - 1, (1 << 20) - 1
SIZE_LIMIT_BYTES = (1 << 63) - 1
_XATTRS_BYTES = 1 << 16
_TIMES_NS = (-(1 << 31) * 10**9, (1 << 63) - 1)  # what ext4 and a 64-bit count of ns both hold


@dataclass(slots=True)
class Member:
    """Names are as in the archive (surrogateescape for bytes that are not UTF-8); times in ns."""

    name: str
    type: str
    mode: int = 0
    uid: int = 0
    gid: int = 0
    size_bytes: int = 0
    mtime_ns: int = 0
    link: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    #: Of a sparse file: where its stored bytes go, one after the other; the rest are zeros.
    extents: Extents | None = None


def storable_xattrs(xattrs: dict[str, bytes]) -> bool:
    """Whether Linux can keep them: 64 KiB, names of 255 bytes."""
    return sum(len(k) + len(v) for k, v in xattrs.items()) <= _XATTRS_BYTES and all(
        0 < len(k) <= 255 and "\0" not in k for k in xattrs
    )


def bounded_time_ns(time_ns: int) -> int:
    """A time that every file system and FUSE can hold; others become 1970, as in containerd."""
    return time_ns if _TIMES_NS[0] <= time_ns <= _TIMES_NS[1] else 0


def text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def pax_records(raw: bytes) -> dict[str, bytes]:
    """Raises ValueError. The two repeated records of sparse version 0.0 are joined as one map."""
    records: dict[str, bytes] = {}
    pairs: list[bytes] = []
    at = 0
    while at < len(raw):
        space = raw.find(b" ", at, at + 20)
        head = raw[at:space] if space > at else b""
        if not head.isdigit():
            raise ValueError("a PAX record without a length")
        end = at + int(head)
        if end > len(raw) or end <= space + 1 or raw[end - 1 : end] != b"\n":
            raise ValueError("a PAX record that lies about its length")
        key, equals, value = raw[space + 1 : end - 1].partition(b"=")
        if not equals:
            raise ValueError("a PAX record without a value")
        name = key.decode("utf-8", "surrogateescape")
        if name in sparse.PAIRS:
            pairs.append(value)
        else:
            records[name] = value
        at = end
    if pairs:
        records[sparse.MAP] = b",".join(pairs)
    return records


def check_sum(head: bytes) -> None:
    expected = number(head[148:156])
    unsigned = sum(head[:148]) + sum(head[156:]) + 8 * 32
    if expected == unsigned:
        return
    # some old writers summed signed bytes
    if expected != unsigned - 256 * sum(byte > 127 for byte in head[:148] + head[156:]):
        raise ValueError("a header with a wrong checksum")


def number(raw: bytes) -> int:
    """Octal digits, or GNU's base-256, which has a sign. Raises ValueError."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = raw.strip(b" \0").partition(b"\0")[0]
    if text.strip(b"01234567"):
        raise ValueError(f"a field that is no octal number: {raw[:12]!r}")
    return int(text, 8) if text else 0


def within(noun: str, value: int, limit: int) -> int:
    if not 0 <= value <= limit:
        raise ValueError(f"the {noun} {value}, which no file can have,")
    return value


def read_member(
    head: bytes,
    kind: str,
    pax: dict[str, bytes],
    long_name: bytes | None,
    long_link: bytes | None,
) -> Member:
    """Raises ValueError, with the defect."""
    if kind in ("7", "S"):  # contiguous and sparse: files
        kind = FILE
    if kind not in _KNOWN:
        raise ValueError(f"a member of unknown type {kind!r}")
    name = head[:100].partition(b"\0")[0]
    if head[257:262] == b"ustar" and head[263:265] != b" \0" and head[345]:
        name = head[345:500].partition(b"\0")[0] + b"/" + name
    member = Member(
        name=name.decode("utf-8", "surrogateescape"),
        type=kind,
        mode=number(head[100:108]) & 0o7777,
        uid=number(head[108:116]),
        gid=number(head[116:124]),
        mtime_ns=number(head[136:148]) * 1_000_000_000,
        link=text(head[157:257]),
    )
    if kind in (CHAR, BLOCKDEV):
        member.major = within("device major", number(head[329:337]), MAJOR_LIMIT)
        member.minor = within("device minor", number(head[337:345]), MINOR_LIMIT)
    if pax:
        _apply_pax(member, pax)
    if long_name:
        member.name = text(long_name)
    if long_link:
        member.link = text(long_link)
    if "\0" in member.name or "\0" in member.link:
        raise ValueError("a name with a NUL")
    if member.xattrs and not storable_xattrs(member.xattrs):
        raise ValueError("extended attributes that no file can have")
    if not head[156] and member.name.endswith("/"):
        member.type = DIR  # pre-POSIX archives
    if not (0 <= member.uid <= OWNER_LIMIT and 0 <= member.gid <= OWNER_LIMIT):
        within("uid", member.uid, OWNER_LIMIT)
        within("gid", member.gid, OWNER_LIMIT)
    member.mtime_ns = bounded_time_ns(member.mtime_ns)
    return member


def stored_bytes(member: Member, size: int, pax: dict[str, bytes]) -> int:
    """Bytes of the member in the archive; what is no file has none, whatever its header says."""
    if pax.get("size"):
        size = decimal(pax["size"])
    within("size", size, SIZE_LIMIT_BYTES)
    member.size_bytes = size if member.type == FILE else 0
    return member.size_bytes


def _apply_pax(member: Member, pax: dict[str, bytes]) -> None:
    for key, value in pax.items():
        if key.startswith(_XATTR):
            member.xattrs[key[len(_XATTR) :]] = value
        if not value:
            continue  # POSIX: as if it were not there
        try:
            if key == "path":
                member.name = value.decode("utf-8", "surrogateescape")
            elif key == "linkpath":
                member.link = value.decode("utf-8", "surrogateescape")
            elif key == "uid":
                member.uid = decimal(value)
            elif key == "gid":
                member.gid = decimal(value)
            elif key == "mtime":
                member.mtime_ns = _time_ns(value)
        except ValueError:
            raise ValueError(f"a PAX record {key!r} of {value[:20]!r}") from None
    if sparse.is_pax(pax) and pax.get("GNU.sparse.name"):
        member.name = pax["GNU.sparse.name"].decode("utf-8", "surrogateescape")


def decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise ValueError(f"{value[:20]!r}, which is no number,")
    return int(value)


def _time_ns(value: bytes) -> int:
    whole, _, part = value.partition(b".")
    negative = whole.startswith(b"-")
    seconds = decimal(whole[1:] if negative else whole)
    nanos = decimal(part[:9].ljust(9, b"0")) if part else 0
    time_ns = seconds * 1_000_000_000 + nanos
    return -time_ns if negative else time_ns

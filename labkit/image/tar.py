"""A tar stream as members, read once and forwards: ustar, PAX records, GNU long names and sparse
files, hostile until proven otherwise.

Python's `tarfile` spends 60–100 µs on a member and copies every byte twice; an image of 15 000
files pays for that in every pull. This reader takes the chunks that a decompressor makes and hands
out views of them. Limit: memory bandwidth, then what the consumer does with each member.

    for member in (tar := TarReader(chunks)):
        if member.type == FILE:
            for view in tar.data(): os.write(fd, view)

What is read can be stored: owners, devices and sizes that no file has are refused with the member's
name, as are wrong checksums, PAX or long-name records over 1 MiB and an end in mid-member
(BadInput). Where writers differ, it reads as Go's archive/tar, and so containerd, does: an empty
PAX record says nothing, a GNU long name goes before a PAX one, sparse files are read in full. Times
outside of 1901 to 2262 become 1970. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from labkit.errors import BadInput
from labkit.image import sparse
from labkit.image.sparse import Extents

BLOCK = 512
FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO = "0", "1", "2", "3", "4", "5", "6"
_KNOWN = {FILE, HARDLINK, SYMLINK, CHAR, BLOCKDEV, DIR, FIFO}
_RECORD_LIMIT_BYTES = 1 << 20  # a PAX or long-name record; real ones are a few hundred bytes
_XATTR = "SCHILY.xattr."
OWNER_LIMIT = (1 << 32) - 2  # the next one is "unchanged" to chown(2)
MAJOR_LIMIT, MINOR_LIMIT = (1 << 12) - 1, (1 << 20) - 1
_SIZE_LIMIT_BYTES = (1 << 63) - 1
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


def _broken(defect: str, at: int, name: str = "") -> BadInput:
    of = f" of {name[:200]!r}" if name else ""
    return BadInput(
        f"layer is not a sound tar stream: {defect}{of} at byte {at}",
        why="a truncated, corrupt or forged layer; nothing of it was kept",
        fix="fetch the layer again; if its digest is right, the image itself is broken",
    )


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "surrogateescape")


class TarReader:
    """Iterate for members; between two members, `data()` yields the current one's bytes (unread
    bytes are skipped)."""

    def __init__(self, chunks: Iterable[bytes | memoryview]):
        self._chunks = iter(chunks)
        self._view = memoryview(b"")
        self._left = 0  # of the current member's data
        self._pad = 0
        self._member: Member | None = None
        self.offset = 0  # bytes of the stream consumed

    def _refill(self) -> bool:
        for chunk in self._chunks:
            if len(chunk):
                self._view = memoryview(chunk)
                return True
        return False

    def _take(self, size: int) -> bytes:
        """Exactly `size` bytes, or fewer at the end of the stream."""
        if len(self._view) >= size:
            data = bytes(self._view[:size])
            self._view = self._view[size:]
            self.offset += size
            return data
        parts, missing = [], size
        while missing:
            if not len(self._view) and not self._refill():
                break
            piece = self._view[:missing]
            self._view = self._view[len(piece) :]
            parts.append(bytes(piece))
            missing -= len(piece)
        data = b"".join(parts)
        self.offset += len(data)
        return data

    def data(self) -> Iterator[memoryview]:
        """The current member's bytes, a sparse file's in full."""
        member = self._member
        if member is None or member.extents is None:
            return self._stored()
        return sparse.expanded(member.extents, member.size_bytes, self._stored)

    def _stored(self, limit: int | None = None) -> Iterator[memoryview]:
        """The current member's bytes as the archive has them, at most `limit`."""
        floor = 0 if limit is None else max(0, self._left - limit)
        while self._left > floor:
            if not len(self._view) and not self._refill():
                raise _broken("it ends inside a member", self.offset)
            piece = self._view[: self._left - floor]
            self._view = self._view[len(piece) :]
            self._left -= len(piece)
            self.offset += len(piece)
            yield piece

    def _skip(self) -> None:
        for _ in self._stored():
            pass
        if self._pad and len(self._take(self._pad)) < self._pad:
            raise _broken("it ends inside padding", self.offset)
        self._pad = 0

    def _record(self, size_bytes: int) -> bytes:
        if size_bytes > _RECORD_LIMIT_BYTES:
            raise _broken(f"an extended header of {size_bytes} bytes", self.offset)
        record = self._take(size_bytes)
        pad = -size_bytes % BLOCK
        if len(record) < size_bytes or len(self._take(pad)) < pad:
            raise _broken("it ends inside an extended header", self.offset)
        return record

    def _pax(self, raw: bytes) -> dict[str, bytes]:
        records: dict[str, bytes] = {}
        at = 0
        while at < len(raw):
            space = raw.find(b" ", at, at + 20)
            head = raw[at:space] if space > at else b""
            if not head.isdigit():
                raise _broken("a PAX record without a length", self.offset)
            end = at + int(head)
            if end > len(raw) or end <= space + 1 or raw[end - 1 : end] != b"\n":
                raise _broken("a PAX record that lies about its length", self.offset)
            key, equals, value = raw[space + 1 : end - 1].partition(b"=")
            if not equals:
                raise _broken("a PAX record without a value", self.offset)
            name = key.decode("utf-8", "surrogateescape")
            if name in sparse.PAIRS and sparse.MAP in records:  # version 0.0 repeats two records
                records[sparse.MAP] += b"," + value
            else:
                records[sparse.MAP if name in sparse.PAIRS else name] = value
            at = end
        return records

    def __iter__(self) -> Iterator[Member]:
        shared: dict[str, bytes] = {}
        own: dict[str, bytes] = {}
        long_name = long_link = None
        while True:
            self._skip()
            head = self._take(BLOCK)
            if not head or head == bytes(BLOCK):
                if own or long_name is not None or long_link is not None:
                    raise _broken("an extended header without a member", self.offset)
                return self._drain(bool(head))
            if len(head) < BLOCK:
                raise _broken("it ends inside a header", self.offset)
            kind = chr(head[156]) if head[156] else FILE
            try:
                _check(head)
                size = _number(head[124:136])
            except ValueError as bad:
                raise _broken(str(bad), self.offset - BLOCK, _text(head[:100])) from None
            if kind in "xg":
                records = self._pax(self._record(size))
                if kind == "g":
                    shared |= records
                else:
                    own = records
                continue
            if kind == "L":
                long_name = self._record(size)
                continue
            if kind == "K":
                long_link = self._record(size)
                continue
            pax = {**shared, **own} if shared or own else own
            try:
                member = _member(head, kind, size, pax, long_name, long_link)
                self._left = size = _stored_bytes(member, size, pax)
                self._pad = -size % BLOCK
                self._map_sparse(head, member, pax)
            except ValueError as bad:
                name = _text(long_name or pax.get("path", b"") or head[:100])
                raise _broken(str(bad), self.offset, name) from None
            own, long_name, long_link = {}, None, None
            self._member = member
            yield member

    def _map_sparse(self, head: bytes, member: Member, pax: dict[str, bytes]) -> None:
        """The extents of a sparse file: in its header, its PAX records or in front of its bytes."""
        if head[156:157] == b"S":
            # blocks of the map lie between header and data
            raw_map, real = sparse.old_gnu(head, lambda: self._take(BLOCK))
            real_size = _number(real)
            numbers = [_number(raw) for raw in raw_map]
        elif sparse.is_pax(pax):
            real_size = _decimal(pax.get("GNU.sparse.size") or pax.get("GNU.sparse.realsize", b""))
            numbers = sparse.pax_numbers(pax, lambda: self._take_stored(BLOCK))
        else:
            return
        member.size_bytes = _bounded("size", real_size, _SIZE_LIMIT_BYTES)
        member.extents = sparse.extents(numbers, real_size, self._left)

    def _take_stored(self, size: int) -> bytes:
        data = b"".join(bytes(view) for view in self._stored(size))
        if len(data) < size:
            raise ValueError("a sparse map that is cut off")
        return data

    def _drain(self, end_seen: bool) -> None:
        """Read on to the end of the stream: digests cover it whole. Only zeros may follow the end
        mark."""
        del end_seen  # both ends occur in the wild: two zero blocks, or none
        while len(self._view) or self._refill():
            self.offset += len(self._view)
            if any(bytes(self._view[:BLOCK])):
                raise _broken("data after the end mark", self.offset)
            self._view = memoryview(b"")


def _check(head: bytes) -> None:
    expected = _number(head[148:156])
    unsigned = sum(head[:148]) + sum(head[156:]) + 8 * 32
    if expected == unsigned:
        return
    # some old writers summed signed bytes
    if expected != unsigned - 256 * sum(byte > 127 for byte in head[:148] + head[156:]):
        raise ValueError("a header with a wrong checksum")


def _number(raw: bytes) -> int:
    """Octal digits, or GNU's base-256, which has a sign. Raises ValueError."""
    if raw[0] & 0x80:
        value = int.from_bytes(bytes([raw[0] & 0x7F]) + raw[1:], "big")
        return value - (1 << (8 * len(raw) - 1)) if raw[0] & 0x40 else value
    text = raw.strip(b" \0").partition(b"\0")[0]
    if text.strip(b"01234567"):
        raise ValueError(f"a field that is no octal number: {raw[:12]!r}")
    return int(text, 8) if text else 0


def _bounded(noun: str, value: int, limit: int) -> int:
    if not 0 <= value <= limit:
        raise ValueError(f"the {noun} {value}, which no file can have,")
    return value


def _member(
    head: bytes,
    kind: str,
    size: int,
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
        mode=_number(head[100:108]) & 0o7777,
        uid=_number(head[108:116]),
        gid=_number(head[116:124]),
        mtime_ns=_number(head[136:148]) * 1_000_000_000,
        link=_text(head[157:257]),
    )
    if kind in (CHAR, BLOCKDEV):
        member.major = _bounded("device major", _number(head[329:337]), MAJOR_LIMIT)
        member.minor = _bounded("device minor", _number(head[337:345]), MINOR_LIMIT)
    if pax:
        _apply_pax(member, pax)
    if long_name:
        member.name = _text(long_name)
    if long_link:
        member.link = _text(long_link)
    if "\0" in member.name or "\0" in member.link:
        raise ValueError("a name with a NUL")
    if member.xattrs and not storable_xattrs(member.xattrs):
        raise ValueError("extended attributes that no file can have")
    if not head[156] and member.name.endswith("/"):
        member.type = DIR  # pre-POSIX archives
    _bounded("uid", member.uid, OWNER_LIMIT)
    _bounded("gid", member.gid, OWNER_LIMIT)
    member.mtime_ns = bounded_time_ns(member.mtime_ns)
    return member


def _stored_bytes(member: Member, size: int, pax: dict[str, bytes]) -> int:
    """Bytes of the member in the archive; what is no file has none, whatever its header says."""
    if pax.get("size"):
        size = _decimal(pax["size"])
    _bounded("size", size, _SIZE_LIMIT_BYTES)
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
                member.uid = _decimal(value)
            elif key == "gid":
                member.gid = _decimal(value)
            elif key == "mtime":
                member.mtime_ns = _time_ns(value)
        except ValueError:
            raise ValueError(f"a PAX record {key!r} of {value[:20]!r}") from None
    if sparse.is_pax(pax) and pax.get("GNU.sparse.name"):
        member.name = pax["GNU.sparse.name"].decode("utf-8", "surrogateescape")


def _decimal(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise ValueError(f"{value[:20]!r}, which is no number,")
    return int(value)


def _time_ns(value: bytes) -> int:
    whole, _, part = value.partition(b".")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole[1:] if negative else whole)
    nanos = _decimal(part[:9].ljust(9, b"0")) if part else 0
    time_ns = seconds * 1_000_000_000 + nanos
    return -time_ns if negative else time_ns

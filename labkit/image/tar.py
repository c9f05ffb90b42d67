"""A tar stream as members, read once and forwards: ustar, PAX records, GNU long names and sparse
files, hostile until proven otherwise.

Python's `tarfile` spends 60–100 µs on a member and copies every byte twice; an image of 15 000
files pays for that in every pull. This reader takes the chunks that a decompressor makes and hands
out views of them. Limit: memory bandwidth, then what the consumer does with each member.

    for member in (tar := TarReader(chunks)):
        if member.type == FILE:
            for view in tar.data(): os.write(fd, view)

Refused with BadInput and the member's name: what its header says and no file can have
(`labkit.image.tar_header`), PAX or long-name records over 1 MiB, an end in mid-member. Sparse files
are read in full. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from labkit.errors import BadInput
from labkit.image import sparse
from labkit.image.tar_header import (
    BLOCK,
    FILE,
    SIZE_LIMIT_BYTES,
    Member,
    check_sum,
    decimal,
    number,
    pax_records,
    read_member,
    stored_bytes,
    text,
    within,
)

_RECORD_LIMIT_BYTES = 1 << 20  # a PAX or long-name record; real ones are a few hundred bytes


def _broken(defect: str, at: int, name: str = "") -> BadInput:
    of = f" of {name[:200]!r}" if name else ""
    return BadInput(
        f"layer is not a sound tar stream: {defect}{of} at byte {at}",
        why="a truncated, corrupt or forged layer; nothing of it was kept",
        fix="fetch the layer again; if its digest is right, the image itself is broken",
    )


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
        if self._left:
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
                check_sum(head)
                size = within("size", number(head[124:136]), SIZE_LIMIT_BYTES)
            except ValueError as bad:
                raise _broken(str(bad), self.offset - BLOCK, text(head[:100])) from None
            if kind in "xg":
                raw = self._record(size)
                try:
                    records = pax_records(raw)
                except ValueError as bad:
                    raise _broken(str(bad), self.offset) from None
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
                member = read_member(head, kind, pax, long_name, long_link)
                self._left = size = stored_bytes(member, size, pax)
                self._pad = -size % BLOCK
                if pax or kind == "S":
                    self._map_sparse(head, member, pax)
            except ValueError as bad:
                name = text(long_name or pax.get("path", b"") or head[:100])
                raise _broken(str(bad), self.offset, name) from None
            own, long_name, long_link = {}, None, None
            self._member = member
            yield member

    def _map_sparse(self, head: bytes, member: Member, pax: dict[str, bytes]) -> None:
        """The extents of a sparse file: in its header, its PAX records or in front of its bytes."""
        if head[156:157] == b"S":
            # blocks of the map lie between header and data
            raw_map, real = sparse.old_gnu(head, lambda: self._take(BLOCK))
            real_size = number(real)
            numbers = [number(raw) for raw in raw_map]
        elif member.type == FILE and sparse.is_pax(pax):
            real_size = decimal(pax.get("GNU.sparse.size") or pax.get("GNU.sparse.realsize", b""))
            numbers = sparse.pax_numbers(pax, lambda: self._take_stored(BLOCK))
        else:
            return
        member.size_bytes = within("size", real_size, SIZE_LIMIT_BYTES)
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

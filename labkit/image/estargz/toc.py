"""A TOC as files: every entry of `stargz.index.json`, checked before anything is believed.

    toc = parse(raw_json, toc_offset=footer_offset)
    toc.entries[3].chunks[0]      # Chunk(start, end, file_offset=0, size=4096, digest="sha256:…")

A TOC comes from whoever built the image. Refused with BadInput, never repaired: names that leave
the root, types nobody knows, numbers that no file can have, chunks outside of the blob, overlapping
or with gaps, larger than 128 MiB (they are decompressed in memory), or without a digest. What the
entries change in the layers below is judged where they are merged. Cost: about 10 µs an entry.
Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import base64
import json
import re
from bisect import bisect_right
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache
from typing import NamedTuple, TypeGuard

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.changeset import KINDS, clean
from labkit.image.estargz.layout import PREFETCH
from labkit.image.tar_header import (
    MAJOR_LIMIT,
    MINOR_LIMIT,
    OWNER_LIMIT,
    bounded_time_ns,
    storable_xattrs,
)

TOC_LIMIT_BYTES = 512 << 20
ENTRIES_LIMIT = 4_000_000
CHUNK_LIMIT_BYTES = 128 << 20
SIZE_LIMIT_BYTES = 1 << 50
_KINDS = frozenset(KINDS.values())
_EPOCH_DAYS = date(1970, 1, 1).toordinal()
#: RFC 3339, as Go's time package reads it: fractions of a second are allowed.
_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[Tt](\d\d):(\d\d):(\d\d)(?:[.,](\d+))?(?:[Zz]|([+-])(\d\d):(\d\d))",
    re.ASCII,
).fullmatch


class Chunk(NamedTuple):
    """[start, end) of the blob holds a gzip member of `size` bytes, to be found at `file_offset` of
    its file."""

    start: int
    end: int
    file_offset: int
    size: int
    digest: str


@dataclass(slots=True)
class TOCEntry:
    """One file. `name`: below the root ("" is the root), surrogateescape for bytes that are no
    UTF-8."""

    name: str
    kind: str
    size: int = 0
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    link: str = ""
    major: int = 0
    minor: int = 0
    xattrs: dict[str, bytes] = field(default_factory=dict)
    chunks: list[Chunk] = field(default_factory=list)


@dataclass(frozen=True)
class Toc:
    entries: list[TOCEntry]
    toc_offset: int
    prefetch_end: int  # bytes from the start of the blob that hold the prioritised files; 0: none

    @property
    def content_bytes(self) -> int:
        return sum(e.size for e in self.entries)


def _refuse(offence: str) -> BadInput:
    return BadInput(
        f"the layer's TOC is refused: {offence}",
        why="a corrupt or forged eStargz layer; nothing of it was mounted",
        fix="convert the image again from its source: labkit image convert LAYOUT OUT",
    )


def _name(raw: object) -> str:
    if not isinstance(raw, str):
        raise _refuse(f"a name that is no name: {str(raw)[:60]!r}")
    return clean(raw)


def _whole(doc: JsonObject, key: str, limit: int) -> int:
    value = doc.get(key)
    if value is None:  # also where it says null, as Go reads it
        return 0
    if type(value) is not int or not 0 <= value <= limit:
        raise _refuse(f"{key}={str(value)[:40]} of {str(doc.get('name'))[:80]!r}")
    return value


@lru_cache(maxsize=4096)
def _time_ns(text: str) -> int:
    """RFC 3339 -> ns since 1970, 0 where there is no time."""
    if not text:
        return 0
    found = _TIME(text)
    if found is None:
        raise _refuse(f"the time {text[:40]!r}")
    hour, minute, second = (int(found[i]) for i in (4, 5, 6))
    try:
        # a year 0 is allowed there: years before 1901 are all one here
        days = date(int(found[1]) or 1, int(found[2]), int(found[3])).toordinal() - _EPOCH_DAYS
    except ValueError:
        days = None
    if days is None or hour > 23 or minute > 59 or second > 60:
        raise _refuse(f"the time {text[:40]!r}")
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    if found[8]:
        seconds -= int(found[8] + "1") * (int(found[9]) * 60 + int(found[10])) * 60
    return bounded_time_ns(seconds * 10**9 + int((found[7] or "0")[:9].ljust(9, "0")))


def _is_digest(text: object) -> TypeGuard[str]:
    return (
        isinstance(text, str)
        and len(text) == 71
        and text.startswith("sha256:")
        and not text[7:].strip("0123456789abcdef")
    )


def parse(raw: bytes, toc_offset: int) -> Toc:
    """Every entry of the TOC, with its chunks. Raises BadInput."""
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError) as bad:
        raise _refuse(f"it is not JSON ({str(bad)[:80]})") from None
    if (
        not isinstance(doc, dict)
        or doc.get("version") != 1
        or not isinstance(doc.get("entries"), list)
    ):
        raise _refuse("it is no TOC of version 1")
    if len(doc["entries"]) > ENTRIES_LIMIT:
        raise _refuse(f"it has {len(doc['entries'])} entries")
    entries: list[TOCEntry] = []
    # file, blob offset, file offset, size (0: the rest), digest
    spans: list[tuple[TOCEntry, int, int, int, str]] = []
    offsets: set[int] = {toc_offset}
    current: TOCEntry | None = None
    for item in doc["entries"]:
        if not isinstance(item, dict):
            raise _refuse("an entry that is no object")
        name, kind = _name(item.get("name")), item.get("type")
        if kind == "chunk":
            if current is None or current.name != name:
                raise _refuse(f"a chunk of {name[:80]!r} that follows another file")
            entry = current
        else:
            entry = _entry(item, name, kind)
            entries.append(entry)
            current = entry if kind == "reg" else None
        if kind == "chunk" or (kind == "reg" and entry.size):
            offset, digest = _whole(item, "offset", toc_offset), item.get("chunkDigest")
            if not _is_digest(digest):
                raise _refuse(f"a chunk of {name[:80]!r} without a sha256 digest")
            if item.get("innerOffset"):
                raise _refuse(
                    f"{name[:80]!r} shares a gzip member with other files (min-chunk-size)"
                )
            if offset >= toc_offset:
                raise _refuse(f"a chunk of {name[:80]!r} outside of the blob")
            if offset in offsets:
                raise _refuse(f"two chunks at offset {offset}")
            offsets.add(offset)
            spans.append(
                (
                    entry,
                    offset,
                    _whole(item, "chunkOffset", SIZE_LIMIT_BYTES),
                    _whole(item, "chunkSize", SIZE_LIMIT_BYTES),
                    digest,
                )
            )
    _place(spans, sorted(offsets))
    for entry in entries:
        chunks = entry.chunks
        if (
            entry.kind == "reg"
            and (chunks[0].size if len(chunks) == 1 else sum([c.size for c in chunks]))
            != entry.size
        ):
            raise _refuse(
                f"the chunks of {entry.name[:80]!r} do not make up its {entry.size} bytes"
            )
    landmark = next((e for e in entries if e.name == PREFETCH and e.chunks), None)
    return Toc(entries, toc_offset, landmark.chunks[0].start if landmark else 0)


def _entry(item: JsonObject, name: str, kind: object) -> TOCEntry:
    if not isinstance(kind, str) or kind not in _KINDS:
        raise _refuse(f"{name[:80]!r} is of the unknown type {str(kind)[:20]!r}")
    modtime = item.get("modtime") or ""
    if type(modtime) is not str:
        raise _refuse(f"the time of {name[:80]!r}")
    entry = TOCEntry(
        name,
        kind,
        mode=_whole(item, "mode", 2**32 - 1) & 0o7777,
        uid=_whole(item, "uid", OWNER_LIMIT),
        gid=_whole(item, "gid", OWNER_LIMIT),
        mtime_ns=_time_ns(modtime),
    )
    if kind == "reg":
        entry.size = _whole(item, "size", SIZE_LIMIT_BYTES)
    elif kind == "hardlink":
        entry.link = _name(item.get("linkName"))
    elif kind == "symlink":
        entry.link = item.get("linkName", "")
        if type(entry.link) is not str:
            raise _refuse(f"the link {name[:80]!r}")
    elif kind in ("char", "block"):
        entry.major = _whole(item, "devMajor", MAJOR_LIMIT)
        entry.minor = _whole(item, "devMinor", MINOR_LIMIT)
    if item.get("xattrs"):
        entry.xattrs = _xattrs(item["xattrs"], name)
    return entry


def _xattrs(doc: dict[str, str], name: str) -> dict[str, bytes]:
    try:
        xattrs = {k: base64.b64decode(v, validate=True) for k, v in doc.items()}
    except (AttributeError, ValueError, TypeError):
        raise _refuse(f"the extended attributes of {name[:80]!r}") from None
    if not storable_xattrs(xattrs):
        raise _refuse(f"the extended attributes of {name[:80]!r}")
    return xattrs


def _place(spans: list[tuple[TOCEntry, int, int, int, str]], edges: list[int]) -> None:
    """A member ends at the latest where the next one starts; the last chunk of a file holds the
    rest of it."""
    for entry, offset, file_offset, size, digest in spans:
        expected = entry.chunks[-1].file_offset + entry.chunks[-1].size if entry.chunks else 0
        size = size or entry.size - file_offset
        if file_offset != expected or size <= 0 or file_offset + size > entry.size:
            raise _refuse(f"the chunks of {entry.name[:80]!r} overlap or leave gaps")
        if size > CHUNK_LIMIT_BYTES:
            raise _refuse(f"a chunk of {size} bytes in {entry.name[:80]!r}")
        end = edges[bisect_right(edges, offset)]
        entry.chunks.append(Chunk(offset, end, file_offset, size, digest))

"""A member as eStargz writes it: its tar header, and its entry in the TOC.

    raw = header(member, member.size_bytes)      # ustar, PAX records in front of it where needed
    entry = toc_entry(member)                    # {"name": …, "type": "reg", …}

The same member gives the same bytes. Limit: none of its own. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import base64
from datetime import datetime, timedelta

from labkit.core.json_types import JsonObject
from labkit.image.changeset import KINDS
from labkit.image.tar_header import BLOCK, BLOCKDEV, CHAR, DIR, FILE, HARDLINK, SYMLINK, Member

_EPOCH = datetime(1970, 1, 1)


def header(member: Member, size_bytes: int) -> bytes:
    """ustar, with PAX records in front of it for what ustar cannot say. Deterministic."""
    pax: list[tuple[str, bytes]] = []
    name = member.name.encode("utf-8", "surrogateescape")
    link = member.link.encode("utf-8", "surrogateescape")
    if member.type == DIR and not name.endswith(b"/"):
        name += b"/"
    for key, raw in (("path", name), ("linkpath", link)):
        if len(raw) > 100 or not raw.isascii():
            pax.append((key, raw))
    seconds, nanos = divmod(member.mtime_ns, 10**9)
    numbers = {"uid": member.uid, "gid": member.gid, "size": size_bytes, "mtime": seconds}
    for key, digits in (("uid", 7), ("gid", 7), ("size", 11), ("mtime", 11)):
        if not 0 <= numbers[key] < 8**digits:
            pax.append((key, str(numbers[key]).encode()))
            numbers[key] = 0
    if nanos:
        pax = [record for record in pax if record[0] != "mtime"]
        pax.append(("mtime", _decimal_seconds(member.mtime_ns)))
    pax += [("SCHILY.xattr." + key, value) for key, value in sorted(member.xattrs.items())]
    extended = b""
    if pax:
        body = b"".join(_record(k, v) for k, v in pax)
        extended = (
            _block(b"PaxHeaders.0/" + name[:80].rstrip(b"/"), b"x", b"", 0o644, {"size": len(body)})
            + body
            + bytes(-len(body) % BLOCK)
        )
    return extended + _block(
        name[:100],
        member.type.encode(),
        link[:100],
        member.mode,
        numbers,
        member.major,
        member.minor,
    )


def _decimal_seconds(time_ns: int) -> bytes:
    whole, nanos = divmod(abs(time_ns), 10**9)
    return b"%s%d.%09d" % (b"-" if time_ns < 0 else b"", whole, nanos)


def _record(key: str, value: bytes) -> bytes:
    body = b" " + key.encode("utf-8", "surrogateescape") + b"=" + value + b"\n"
    size = len(body) + len(str(len(body)))
    size = len(body) + len(str(size))
    return str(size).encode() + body


def _block(
    name: bytes,
    kind: bytes,
    link: bytes,
    mode: int,
    numbers: dict[str, int],
    major: int = 0,
    minor: int = 0,
) -> bytes:
    raw = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % numbers.get("uid", 0),
            b"%07o\0" % numbers.get("gid", 0),
            b"%011o\0" % numbers.get("size", 0),
            b"%011o\0" % numbers.get("mtime", 0),
            b" " * 8,
            kind,
            link.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"%07o\0" % major,
            b"%07o\0" % minor,
            bytes(155),
        )
    ).ljust(BLOCK, b"\0")
    return raw[:148] + b"%06o\0 " % sum(raw) + raw[156:]


def toc_entry(member: Member) -> JsonObject:
    """The TOC's entry of a member, without its chunks. Zero values are left out, as the reference
    writer does."""
    entry: JsonObject = {
        "name": member.name + ("/" if member.type == DIR and not member.name.endswith("/") else ""),
        "type": KINDS[member.type],
    }
    if member.type == FILE and member.size_bytes:
        entry["size"] = member.size_bytes
    if member.mtime_ns:
        entry["modtime"] = _rfc3339(member.mtime_ns)
    if member.type in (SYMLINK, HARDLINK):
        entry["linkName"] = member.link
    entry["mode"] = member.mode
    for key, value in (("uid", member.uid), ("gid", member.gid)):
        if value:
            entry[key] = value
    if member.type in (CHAR, BLOCKDEV):
        entry |= {"devMajor": member.major, "devMinor": member.minor}
    if member.xattrs:
        entry["xattrs"] = {
            k: base64.b64encode(v).decode() for k, v in sorted(member.xattrs.items())
        }
    return entry | {"NumLink": 0}


def _rfc3339(time_ns: int) -> str:
    """With a fraction where there is one, as a tar of it has."""
    seconds, nanos = divmod(time_ns, 10**9)
    whole = _EPOCH + timedelta(seconds=seconds)
    fraction = f".{nanos:09d}".rstrip("0") if nanos else ""
    return f"{whole:%Y-%m-%dT%H:%M:%S}{fraction}Z"

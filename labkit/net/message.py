"""HTTP/1.1 messages as the lab needs them: heads, ranges, bodies. Shared by the server; every parser here is fed hostile input in tests.

    parse_range("bytes=0-99", size_bytes=1000) == [(0, 100)]       # half-open; None: send the whole thing

Limits: 64 KiB of head, 100 header lines. Source: RFC 9110, RFC 9112. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

HEAD_MAX = 64 << 10
LINES_MAX = 100
RANGES_MAX = 4096

REASONS = {200: "OK", 201: "Created", 202: "Accepted", 204: "No Content", 206: "Partial Content", 301: "Moved Permanently",
           304: "Not Modified", 307: "Temporary Redirect", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden",
           404: "Not Found", 405: "Method Not Allowed", 409: "Conflict", 411: "Length Required", 412: "Precondition Failed",
           413: "Content Too Large", 416: "Range Not Satisfiable", 429: "Too Many Requests", 500: "Internal Server Error",
           501: "Not Implemented", 503: "Service Unavailable"}

_TOKEN = re.compile(rb"^[!#$%&'*+\-.^_`|~0-9A-Za-z]+$")
_RANGE = re.compile(r"^(\d{0,18})-(\d{0,18})$")


class BadMessage(Exception):
    """What came over the wire is not HTTP as the lab accepts it. Carries the status to answer with."""

    def __init__(self, text: str, status: int = 400):
        super().__init__(text)
        self.status = status


class Unsatisfiable(Exception):
    """No byte of the asked range exists."""


@dataclass
class Head:
    """First line split in three, headers by lower-case name (repeated ones joined by a comma)."""

    first: tuple[str, str, str]
    headers: dict[str, str]


def parse_head(raw: bytes) -> Head:
    """`raw`: everything before the empty line. Raises BadMessage."""
    lines = raw.split(b"\r\n")
    if len(lines) > LINES_MAX:
        raise BadMessage("too many header lines")
    parts = lines[0].split(b" ", 2)
    if len(parts) != 3:
        if len(parts) == 2 and parts[0].startswith(b"HTTP/"):
            parts.append(b"")
        else:
            raise BadMessage("not a request or status line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(b":")
        if not colon or not _TOKEN.match(name):
            raise BadMessage("not a header line")
        key, text = name.decode("ascii").lower(), value.strip(b" \t").decode("latin-1")
        if key in headers:
            if key == "content-length" and headers[key] != text:
                raise BadMessage("two different content lengths")
            headers[key] = text if key == "content-length" else f"{headers[key]},{text}"
        else:
            headers[key] = text
    try:
        return Head((parts[0].decode("ascii"), parts[1].decode("ascii"), parts[2].decode("latin-1")), headers)
    except UnicodeDecodeError:
        raise BadMessage("the first line is not ASCII") from None


def content_length(headers: dict[str, str]) -> int | None:
    text = headers.get("content-length")
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise BadMessage("content-length is not a number")
    return int(text)


def parse_range(text: str | None, size_bytes: int) -> list[tuple[int, int]] | None:
    """Half-open ranges in the order asked, clipped to the size. None: no range, or not one of bytes: send everything.

    Raises Unsatisfiable when none of them holds a byte, as RFC 9110 section 14 wants."""
    if not text:
        return None
    unit, eq, rest = text.partition("=")
    if not eq or unit.strip().lower() != "bytes":
        return None
    wanted: list[tuple[int, int]] = []
    parts = rest.split(",")
    if len(parts) > RANGES_MAX:
        return None
    for part in parts:
        match = _RANGE.match(part.strip())
        if not match or not (match[1] or match[2]):
            return None
        if not match[1]:
            start, end = max(0, size_bytes - int(match[2])), size_bytes
        else:
            start = int(match[1])
            end = min(size_bytes, int(match[2]) + 1) if match[2] else size_bytes
            if match[2] and int(match[2]) < start:
                return None
        if start < end:
            wanted.append((start, end))
    if not wanted:
        raise Unsatisfiable(text)
    return wanted


@dataclass
class Request:
    """One request. `body` reads the decoded body; what the handler leaves unread the server drains or closes."""

    method: str
    target: str  # as sent, absolute form reduced to origin form
    path: str  # percent-decoded
    raw_path: str  # not decoded: what a signature was made over
    query: dict[str, str]
    raw_query: str
    headers: dict[str, str]
    body: Any = None
    peer: str = ""
    extra: dict[str, Any] = field(default_factory=dict)

    def header(self, name: str, default: str = "") -> str:
        return self.headers.get(name, default)


def parse_request(raw: bytes) -> Request:
    """Origin form (`/v2/…`) and absolute form (`http://host:port/v2/…`, sent by the AWS SDK for C++) alike. Raises BadMessage."""
    head = parse_head(raw)
    method, target, version = head.first
    if not version.startswith("HTTP/1."):
        raise BadMessage(f"version {version[:20]!r}", 400)
    if target.lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(target)
        except ValueError:
            raise BadMessage("a request target that is not a URL") from None
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    if not target.startswith("/"):
        raise BadMessage("a request target that is no path")
    raw_path, _, raw_query = target.partition("?")
    path = unquote(raw_path, errors="surrogateescape")
    if "\0" in path:
        raise BadMessage("NUL in a path")
    try:
        query = dict(parse_qsl(raw_query, keep_blank_values=True, errors="surrogateescape", max_num_fields=200))
    except ValueError:
        raise BadMessage("too many query fields") from None
    return Request(method.upper(), target, path, raw_path, query, raw_query, head.headers)


@dataclass
class FileSlice:
    """`size_bytes` of an open file from `offset`; the server closes it once sent."""

    fd: int
    offset: int
    size_bytes: int


@dataclass
class Response:
    """`parts` are bytes or FileSlices, sent in order. `size_bytes` is what Content-Length says (also for HEAD)."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: tuple[bytes | FileSlice, ...] = ()
    size_bytes: int | None = None

    @property
    def length(self) -> int:
        if self.size_bytes is not None:
            return self.size_bytes
        return sum(len(p) if isinstance(p, bytes) else p.size_bytes for p in self.parts)

    def files(self) -> Iterator[FileSlice]:
        return (p for p in self.parts if isinstance(p, FileSlice))


def text(status: int, body: str | bytes, content_type: str = "text/plain; charset=utf-8", **headers: str) -> Response:
    raw = body.encode() if isinstance(body, str) else body
    return Response(status, {"Content-Type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}}, (raw,))


def file_response(request: Request, fd: int, size_bytes: int, headers: dict[str, str]) -> Response:
    """GET or HEAD of an open file, whole, one range, or several as multipart/byteranges. Takes over `fd`."""
    import os

    headers = {"Accept-Ranges": "bytes", **headers}
    if request.method == "HEAD":
        os.close(fd)
        return Response(200, headers, (), size_bytes)
    try:
        ranges = parse_range(request.headers.get("range"), size_bytes)
    except Unsatisfiable:
        os.close(fd)
        return Response(416, {"Content-Range": f"bytes */{size_bytes}", "Content-Type": "text/plain"}, (b"range not satisfiable\n",))
    if ranges is None:
        return Response(200, headers, (FileSlice(fd, 0, size_bytes),))
    if len(ranges) == 1:
        start, end = ranges[0]
        return Response(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size_bytes}"}, (FileSlice(fd, start, end - start),))
    mark, parts = "labkit-byteranges-6f1d", []
    kind = headers.get("Content-Type", "application/octet-stream")
    for number, (start, end) in enumerate(ranges):
        lead = f"\r\n--{mark}\r\n" if number else f"--{mark}\r\n"
        parts.append(f"{lead}Content-Type: {kind}\r\nContent-Range: bytes {start}-{end - 1}/{size_bytes}\r\n\r\n".encode())
        parts.append(FileSlice(fd if number == 0 else os.dup(fd), start, end - start))
    parts.append(f"\r\n--{mark}--\r\n".encode())
    return Response(206, {**headers, "Content-Type": f"multipart/byteranges; boundary={mark}"}, tuple(parts))

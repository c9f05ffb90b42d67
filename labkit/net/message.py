"""Requests, answers and ranges as the lab needs them, on top of heads (`labkit.net.head`). Every
parser here is fed hostile input in tests.

    parse_range("bytes=0-99", size_bytes=1000) == [(0, 100)]       # half-open; None: send the whole
        thing

An answer never holds more bytes of a file than the file has, whatever the ranges. Source: RFC 9110,
RFC 9112. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from labkit.core.json_types import JsonObject
from labkit.net.head import BadMessage, is_token, keeps_alive, parse_head, write_fields

RANGES_MAX = 4096

REASONS = {
    200: "OK",
    201: "Created",
    202: "Accepted",
    204: "No Content",
    206: "Partial Content",
    301: "Moved Permanently",
    304: "Not Modified",
    307: "Temporary Redirect",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    409: "Conflict",
    411: "Length Required",
    412: "Precondition Failed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    416: "Range Not Satisfiable",
    429: "Too Many Requests",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    501: "Not Implemented",
    503: "Service Unavailable",
}

_RANGE = re.compile(r"([0-9]{0,18})-([0-9]{0,18})")
_TARGET = re.compile(r"[\x21-\x7e]+")
_ESCAPES = re.compile(r"(?:[^%]|%[0-9A-Fa-f]{2})*")
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]*)(?::[0-9]{1,5})?")


class Unsatisfiable(Exception):
    """No byte of the asked range exists."""


def parse_range(text: str | None, size_bytes: int) -> list[tuple[int, int]] | None:
    """Half-open ranges in the order asked, clipped to the size. None: no range, or not one of
    bytes: send everything.

    Raises Unsatisfiable when none of them holds a byte, as RFC 9110 section 14 wants."""
    if not text:
        return None
    unit, eq, rest = text.partition("=")
    if not eq or unit.lower() != "bytes":
        return None
    wanted: list[tuple[int, int]] = []
    parts = rest.split(",")
    if len(parts) > RANGES_MAX:
        return None
    for part in parts:
        match = _RANGE.fullmatch(part.strip(" \t"))
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
    if sum(end - start for start, end in wanted) > size_bytes:
        # overlapping ranges ask for the same bytes again and again: the whole is shorter
        return None
    return wanted


@dataclass
class Request:
    """One request. `body` reads the decoded body; what the handler leaves unread the server drains
    or closes."""

    method: str
    target: str  # as sent, absolute form reduced to origin form
    path: str  # percent-decoded
    raw_path: str  # not decoded: what a signature was made over
    query: dict[str, str]
    raw_query: str
    headers: dict[str, str]
    body: Any = None
    peer: str = ""
    extra: JsonObject = field(default_factory=dict)
    version: str = "HTTP/1.1"

    def header(self, name: str, default: str = "") -> str:
        return self.headers.get(name, default)

    @property
    def keeps_alive(self) -> bool:
        return keeps_alive(self.version, self.headers)


def parse_request(raw: bytes) -> Request:
    """Origin form (`/v2/…`) and absolute form (`http://host:port/v2/…`, sent by the AWS SDK for
    C++) alike. Raises BadMessage."""
    head = parse_head(raw)
    method, target, version = [*head.first.split(" "), "", ""][:3]
    if head.first.count(" ") != 2 or not is_token(method) or not _TARGET.fullmatch(target):
        raise BadMessage("not a request line")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadMessage(f"version {version[:20]!r} is not spoken here")
    host = head.headers.get("host")
    if (host is None and version == "HTTP/1.1") or not _HOST.fullmatch(host or ""):
        raise BadMessage("no Host, or one that names no host")
    if target.lower().startswith(("http://", "https://")):
        try:
            parts = urlsplit(target)
        except ValueError:
            raise BadMessage("a request target that is not a URL") from None
        target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    if not target.startswith("/"):
        raise BadMessage("a request target that is no path")
    if not _ESCAPES.fullmatch(target):
        raise BadMessage("a % that escapes nothing")
    raw_path, _, raw_query = target.partition("?")
    path = unquote(raw_path, errors="surrogateescape")
    if "\0" in path:
        raise BadMessage("NUL in a path")
    try:
        query = dict(
            parse_qsl(
                raw_query, keep_blank_values=True, errors="surrogateescape", max_num_fields=200
            )
        )
    except ValueError:
        raise BadMessage("too many query fields") from None
    return Request(method, target, path, raw_path, query, raw_query, head.headers, version=version)


@dataclass
class FileSlice:
    """`size_bytes` of an open file from `offset`; the server closes it once sent. Several of one
    answer may share a descriptor."""

    fd: int
    offset: int
    size_bytes: int


@dataclass
class Response:
    """`parts` are bytes or FileSlices, sent in order. `size_bytes` is what Content-Length says
    (also for HEAD).

    `stream`: instead of parts, bytes that are not there yet; sent as they come, chunked, and closed
    at the end or when the client goes."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    parts: tuple[bytes | FileSlice, ...] = ()
    size_bytes: int | None = None
    stream: Iterator[bytes] | None = None

    @property
    def length(self) -> int:
        if self.size_bytes is not None:
            return self.size_bytes
        return sum(len(p) if isinstance(p, bytes) else p.size_bytes for p in self.parts)

    def close(self) -> None:
        """Let go of what is left to send: descriptors, a stream. For answers that were sent, and
        for those that never will be."""
        for fd in {p.fd for p in self.parts if isinstance(p, FileSlice)}:
            os.close(fd)
        self.parts = ()
        if self.stream is not None:
            self.stream.close()  # type: ignore[attr-defined]


def text(
    status: int, body: str | bytes, content_type: str = "text/plain; charset=utf-8", **headers: str
) -> Response:
    raw = body.encode("utf-8", "replace") if isinstance(body, str) else body
    return Response(
        status,
        {"Content-Type": content_type, **{k.replace("_", "-"): v for k, v in headers.items()}},
        (raw,),
    )


def file_response(request: Request, fd: int, size_bytes: int, headers: dict[str, str]) -> Response:
    """GET or HEAD of an open file, whole, one range, or several as multipart/byteranges. Takes over
    `fd`."""
    headers = {"Accept-Ranges": "bytes", **headers}
    if request.method == "HEAD":
        os.close(fd)
        return Response(200, headers, (), size_bytes)
    try:
        ranges = parse_range(request.headers.get("range"), size_bytes)
    except Unsatisfiable:
        os.close(fd)
        return Response(
            416,
            {"Content-Range": f"bytes */{size_bytes}", "Content-Type": "text/plain"},
            (b"range not satisfiable\n",),
        )
    if ranges is None:
        return Response(200, headers, (FileSlice(fd, 0, size_bytes),))
    if len(ranges) == 1:
        start, end = ranges[0]
        return Response(
            206,
            {**headers, "Content-Range": f"bytes {start}-{end - 1}/{size_bytes}"},
            (FileSlice(fd, start, end - start),),
        )
    mark = "labkit-byteranges-6f1d"
    parts: list[bytes | FileSlice] = []
    kind = headers.get("Content-Type", "application/octet-stream")
    for number, (start, end) in enumerate(ranges):
        lead = f"\r\n--{mark}\r\n" if number else f"--{mark}\r\n"
        try:
            parts.append(
                lead.encode()
                + write_fields(
                    {"Content-Type": kind, "Content-Range": f"bytes {start}-{end - 1}/{size_bytes}"}
                )
            )
        except ValueError:
            os.close(fd)
            raise
        parts.append(FileSlice(fd, start, end - start))
    parts.append(f"\r\n--{mark}--\r\n".encode())
    return Response(
        206, {**headers, "Content-Type": f"multipart/byteranges; boundary={mark}"}, tuple(parts)
    )

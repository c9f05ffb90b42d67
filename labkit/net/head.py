"""Heads of HTTP/1.1 messages, read and written: the one place where a header line is made, and the
one where it is believed.

    head = parse_head(b"GET /v2/ HTTP/1.1\r\nHost: h")           # raises BadMessage
    write_head("HTTP/1.1 200 OK", {"Content-Type": "text/plain"})  # raises Unsendable: a value that
        would end its own line

Servers and clients alike send through `write_head`: object metadata, media types, names and digests
come from strangers, and a line break in one would be a header (or a whole answer) of theirs. What
is read is strict, since whatever two parties read differently is a way to smuggle: no bare CR or
LF, no folded lines, no space before a colon, numbers of ASCII digits only, one framing a message.
Limits: 64 KiB of head, 100 lines. Source: RFC 9110, RFC 9112. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.core.digits import decimal

HEAD_MAX = 64 << 10
LINES_MAX = 100

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_STATUS_LINE = re.compile(r"(HTTP/1\.[01]) ([1-9][0-9]{2})(?: ([\t\x20-\x7e\x80-\xff]*))?")


class BadMessage(Exception):
    """What came over the wire is not HTTP as the lab accepts it. Carries the status to answer
    with."""

    def __init__(self, text: str, status: int = 400):
        super().__init__(text)
        self.status = status


class Unsendable(ValueError):
    """A name, value or first line that no head may hold."""


@dataclass
class Head:
    """First line as it came, headers by lower-case name (repeated ones joined by a comma)."""

    first: str
    headers: dict[str, str]


def is_token(text: str) -> bool:
    """A method, a header's name."""
    return bool(_TOKEN.fullmatch(text))


def is_value(text: str) -> bool:
    """What may follow the colon: no control characters but the tab, nothing beyond latin-1."""
    return bool(_VALUE.fullmatch(text))


def parse_head(raw: bytes) -> Head:
    """`raw`: everything before the empty line. Raises BadMessage."""
    lines = raw.decode("latin-1").split("\r\n")
    if len(lines) > LINES_MAX:
        raise BadMessage("too many header lines", 431)
    if not is_value(lines[0]):
        raise BadMessage("control characters in the first line")
    headers: dict[str, str] = {}
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not is_token(name) or not is_value(value):
            raise BadMessage("not a header line")
        key, text = name.lower(), value.strip(" \t")
        if key in headers:
            if key == "content-length" and headers[key] != text:
                raise BadMessage("two different content lengths")
            headers[key] = text if key == "content-length" else f"{headers[key]},{text}"
        else:
            headers[key] = text
    return Head(lines[0], headers)


def parse_status(first: str) -> tuple[str, int]:
    """Version and status of an answer's first line. Raises BadMessage."""
    match = _STATUS_LINE.fullmatch(first)
    if not match:
        raise BadMessage("not an HTTP status line")
    return match[1], int(match[2])


def content_length(headers: Mapping[str, str]) -> int | None:
    """Raises BadMessage."""
    text = headers.get("content-length")
    if text is None:
        return None
    try:
        return decimal(text)
    except ValueError:
        raise BadMessage("content-length is not a number") from None


def tokens(text: str) -> set[str]:
    """A list of words like Connection's, in lower case."""
    return {t.strip(" \t").lower() for t in text.split(",")}


def keeps_alive(version: str, headers: Mapping[str, str]) -> bool:
    words = tokens(headers.get("connection", ""))
    return "close" not in words and (version == "HTTP/1.1" or "keep-alive" in words)


def framing(version: str, headers: Mapping[str, str]) -> tuple[int | None, bool]:
    """(Content-Length, chunked) of a request. Raises BadMessage for two framings, or one that is
    not spoken here."""
    coding = headers.get("transfer-encoding")
    if coding is None:
        return content_length(headers), False
    if "content-length" in headers or version != "HTTP/1.1":
        raise BadMessage("transfer-encoding beside a content-length, or in HTTP/1.0")
    if coding.lower() != "chunked":
        raise BadMessage(f"transfer-encoding {coding[:40]!r} is not spoken here", 501)
    return None, True


def write_fields(headers: Mapping[str, str]) -> bytes:
    """Header lines and the empty one. Raises Unsendable."""
    lines = []
    for name, value in headers.items():
        if not is_token(name) or not is_value(value):
            raise Unsendable(f"no header can be {name[:60]!r}: {value[:100]!r}")
        lines.append(f"{name}: {value}\r\n")
    return ("".join(lines) + "\r\n").encode("latin-1")


def write_head(first: str, headers: Mapping[str, str]) -> bytes:
    """A whole head. Raises Unsendable."""
    if not is_value(first):
        raise Unsendable(f"no first line can be {first[:100]!r}")
    return first.encode("latin-1") + b"\r\n" + write_fields(headers)


def http_date(text: str) -> float | None:
    """Unix seconds of an HTTP date; None for anything else."""
    from email.utils import parsedate_to_datetime

    try:
        return parsedate_to_datetime(text).timestamp()
    except (TypeError, ValueError, IndexError, OverflowError):
        return None

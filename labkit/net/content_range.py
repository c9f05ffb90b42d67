"""What an answer to a Range request brings, judged in one place.

    end = enclosed(url, answer, start, end)      # up to where the body goes; raises NoRanges

A server may ignore the range (200, everything), or send less of it than was asked: what is missing
is then asked for again. Another range than asked is a fault of the server or of a cache before it:
its bytes would land in the wrong place, and would do so again. Source: RFC 9110 §14.2 to §14.4,
§15.3.7. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re

from labkit.core.digits import decimal
from labkit.errors import TransferError
from labkit.net.http import Answer

_CONTENT_RANGE = re.compile(r"bytes +([0-9]+)-([0-9]+)/([0-9]+|\*)", re.IGNORECASE)


class NoRanges(TransferError):
    """The server sends everything whatever is asked: to be read in one stream, or not at all."""


class WrongRange(TransferError):
    """The server answers with another range than was asked for. Another attempt fares no better."""


def sent_range(answer: Answer) -> tuple[int, int, int | None] | None:
    """(start, end, size of the whole where it is known) of a 206; None where it names none."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", ""))
    if found is None:
        return None
    try:
        size_bytes = None if found[3] == "*" else decimal(found[3])
        return decimal(found[1]), decimal(found[2]) + 1, size_bytes
    except ValueError:
        return None


def enclosed(url: str, answer: Answer, start: int, end: int) -> int:
    """The byte before which the body of an answer to `bytes=start-(end-1)` ends: `end`, or less. A
    200 is taken where it is what was asked for. Raises NoRanges, WrongRange."""
    if answer.status == 200:
        if start == 0 and answer.size_bytes == end:
            return end
        raise NoRanges(
            f"GET {url}: the server ignores ranges",
            why="parts were asked for, the answer is the whole",
            fix="fetch it whole, or look at the server and at a cache or proxy before it",
        )
    sent = sent_range(answer)
    if sent is None or sent[0] != start or not start < sent[1] <= end:
        raise WrongRange(
            f"GET {url}: bytes {start}-{end - 1} were asked for, the answer holds"
            f" {answer.headers.get('content-range', 'no Content-Range')[:60]!r}",
            why="its bytes belong somewhere else; nothing of it was kept",
            fix="look at the server, and at a cache or proxy before it",
        )
    return sent[1]

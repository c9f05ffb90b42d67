"""Preconditions: of reads, of writes (the object must be absent, or still the one known), of a
copy's source, of deletions.

    readable(request, found) -> 0, 304 or 412
    writable(call)              # raises PreconditionFailed; NoSuchKey for If-Match where nothing is

A write is judged before its body is read, to spare the sending, and again under the store's lock
when it gets its name: of two that ask for `If-None-Match: *` one wins. Source: RFC 9110 section 13;
S3's API reference (conditional writes). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os

from labkit.net.head import http_date
from labkit.net.message import Request
from labkit.objects.call import Call
from labkit.objects.disk import Missing, Object
from labkit.objects.documents import S3Error, iso


def _etags(text: str) -> set[str]:
    return {tag.strip().removeprefix("W/").strip('"') for tag in text.split(",")}


def _since(text: str, otherwise: float) -> float:
    since = http_date(text) if text else None
    return otherwise if since is None else since


def _matches(text: str, found: Object) -> bool:
    return bool({"*", found.etag} & _etags(text))


def readable(request: Request, found: Object, prefix: str = "") -> int:
    """0, 304 or 412, in the order of RFC 9110 section 13. `prefix`: of the headers' names."""
    header, modified_s = request.header, int(found.modified_s)
    if match := header(f"{prefix}if-match"):
        if not _matches(match, found):
            return 412
    elif modified_s > _since(header(f"{prefix}if-unmodified-since"), float("inf")):
        return 412
    if none_match := header(f"{prefix}if-none-match"):
        if _matches(none_match, found):
            return 304
    elif modified_s <= _since(header(f"{prefix}if-modified-since"), float("-inf")):
        return 304
    return 0


def failed(name: str = "a precondition of the request") -> S3Error:
    return S3Error("PreconditionFailed", f"{name} does not hold")


def copyable(request: Request, found: Object) -> None:
    """Of the source of a copy. Raises S3Error."""
    if readable(request, found, "x-amz-copy-source-"):
        raise failed("a precondition of the copy's source")


def present(call: Call) -> Object | None:
    try:
        fd, found = call.disk.open(call.bucket, call.key)
    except Missing as error:
        if error.code == "NoSuchBucket":
            raise
        return None
    os.close(fd)
    return found


def writable(call: Call) -> None:
    """Raises S3Error, Missing."""
    match, none_match = call.header("if-match"), call.header("if-none-match")
    if not match and not none_match:
        return
    found = present(call)
    if match:
        if found is None:
            raise Missing("NoSuchKey", "If-Match, and there is no such object")
        if not _matches(match, found):
            raise failed("If-Match")
    if none_match and found is not None and _matches(none_match, found):
        raise failed("If-None-Match")


def deletable(found: Object | None, etag: str, modified: str, size: str) -> None:
    """An object that goes only if it is the one known; what is not there goes. Raises S3Error."""
    if found is None or not (etag or modified or size):
        return
    if etag and not _matches(etag, found):
        raise failed("If-Match")
    if size and size != str(found.size_bytes):
        raise failed("the size asked for")
    if modified:
        since = http_date(modified)
        if since != int(found.modified_s) and modified[:19] != iso(found.modified_s)[:19]:
            raise failed("the time asked for")

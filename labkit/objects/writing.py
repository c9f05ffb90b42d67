"""Writes of one object: put, copied, deleted.

A copy's bytes do not pass through Python (copy_file_range; a clone where the file system can), so
it keeps the checksums it has. Source: S3's API reference, PutObject, CopyObject, DeleteObject.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
from urllib.parse import unquote

from labkit.net.message import Response
from labkit.objects import conditions
from labkit.objects.call import Call
from labkit.objects.checksums import CHECKSUMS
from labkit.objects.documents import XMLNS, S3Error, document, iso
from labkit.objects.object_headers import kept, said, tags_of
from labkit.objects.upload import receipt, receive


def put(call: Call) -> Response:
    """Raises S3Error, UploadMismatch, Missing, Unstorable."""
    call.disk.path(call.bucket, call.key)
    if not {"content-length", "transfer-encoding"} & call.request.headers.keys():
        raise S3Error("MissingContentLength", "a body needs a Content-Length")
    conditions.writable(call)
    about = said(call.request)
    with call.disk.incoming() as target:
        received = receive(call.request, target, call.signed, _algorithm(call))
        stored = call.disk.keep(
            call.bucket,
            call.key,
            target,
            guard=lambda: conditions.writable(call),
            etag=received.md5,
            checksums=received.checksums,
            **about,
        )
    return receipt(stored.etag, received)


def _algorithm(call: Call) -> str:
    """The checksum that the client asks to be computed where it does not bring it."""
    name = call.header("x-amz-checksum-algorithm").lower()
    if name and name not in CHECKSUMS:
        raise S3Error("InvalidRequest", f"this store has no checksum {name[:40]!r}")
    return name


def source_of(call: Call) -> tuple[str, str]:
    """Bucket and key that `x-amz-copy-source` names. Raises S3Error."""
    source, _, version = call.header("x-amz-copy-source").partition("?")
    if version and version != "versionId=null":
        raise S3Error("NoSuchVersion", "this store keeps one version of an object: null")
    bucket, _, key = unquote(source, errors="surrogateescape").removeprefix("/").partition("/")
    if not bucket or not key:
        raise S3Error("InvalidArgument", "x-amz-copy-source is BUCKET/KEY")
    return bucket, key


def _directive(call: Call, name: str) -> bool:
    """Whether to REPLACE, rather than to COPY. Raises S3Error."""
    asked = call.header(name).upper() or "COPY"
    if asked not in ("COPY", "REPLACE"):
        raise S3Error("InvalidArgument", f"{name} is COPY or REPLACE")
    return asked == "REPLACE"


def copy(call: Call) -> Response:
    """Raises S3Error, Missing, Unstorable."""
    source = source_of(call)
    replaces, retags = (
        _directive(call, "x-amz-metadata-directive"),
        _directive(call, "x-amz-tagging-directive"),
    )
    if source == (call.bucket, call.key) and not replaces and not retags:
        raise S3Error("InvalidRequest", "a copy onto itself that changes nothing")
    fd, found = call.disk.open(*source)
    os.close(fd)
    conditions.copyable(call.request, found)
    conditions.writable(call)
    about = said(call.request) if replaces else kept(found)
    about["tags"] = tags_of(call.header("x-amz-tagging")) if retags else found.tags
    with call.disk.incoming() as target:
        call.disk.join([call.disk.path(*source)], target)
        stored = call.disk.keep(
            call.bucket,
            call.key,
            target,
            guard=lambda: conditions.writable(call),
            etag=found.etag,
            checksums=found.checksums,
            checksum_type=found.checksum_type,
            **about,
        )
    return document(
        f"<CopyObjectResult {XMLNS}><ETag>&quot;{stored.etag}&quot;</ETag>"
        f"<LastModified>{iso(stored.modified_s)}</LastModified></CopyObjectResult>"
    )


def delete(call: Call) -> Response:
    """What is not there is gone. Raises S3Error, Missing."""
    call.disk.path(call.bucket, call.key)
    asked = tuple(
        call.header(name)
        for name in ("if-match", "x-amz-if-match-last-modified-time", "x-amz-if-match-size")
    )
    if any(asked):
        conditions.deletable(conditions.present(call), *asked)
    call.disk.remove(call.bucket, call.key)
    return Response(204)

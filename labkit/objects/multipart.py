"""Uploads in parts: start, bring or copy the parts in any order, list them, and join them under one
name.

A part may be a range of an object that is there already (S3's UploadPartCopy): Docker's registry
moves every layer above 32 MB to its final name that way. Parts are joined by `copy_file_range`, so
their bytes do not pass through Python again. Limits, S3's own: 10 000 parts, 5 MiB each but the
last. Source: S3's API reference. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

from labkit.core.json_types import JsonObject
from labkit.net.message import Request, Response
from labkit.objects import sigv4
from labkit.objects.disk import Disk
from labkit.objects.documents import (
    XML_MAX,
    XMLNS,
    S3Error,
    document,
    escaped,
    iso,
    local,
    number,
    parse,
)
from labkit.objects.upload import receipt, receive

PART_MIN = 5 << 20
_COPY_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")


def answer(
    disk: Disk,
    request: Request,
    bucket: str,
    key: str,
    about: JsonObject,
    signed: sigv4.Signed | None,
) -> Response:
    """Everything that S3 asks with `?uploads` or `?uploadId`. `about`: content type and metadata of
    the object. Raises S3Error, Missing."""
    method, query = request.method, request.query
    if method == "POST" and "uploads" in query:
        upload = disk.upload_start(bucket, key, about)
        return document(
            "<InitiateMultipartUploadResult"
            f" {XMLNS}><Bucket>{bucket}</Bucket><Key>{escaped(key)}</Key>"
            f"<UploadId>{upload}</UploadId></InitiateMultipartUploadResult>"
        )
    folder = disk.upload(bucket, key, query.get("uploadId", ""))
    if method == "PUT":
        return _part(disk, request, folder, signed)
    if method == "GET":
        rows = "".join(
            f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{m}&quot;</ETag>"
            f"<Size>{p.stat().st_size}</Size></Part>"
            for n, m, p in disk.parts(folder)
        )
        return document(
            "<ListPartsResult"
            f" {XMLNS}><Bucket>{bucket}</Bucket><Key>{escaped(key)}</Key>"
            f"<IsTruncated>false</IsTruncated>{rows}</ListPartsResult>"
        )
    if method == "DELETE":
        shutil.rmtree(folder, ignore_errors=True)
        return Response(204)
    if method != "POST":
        raise S3Error("MethodNotAllowed", f"{method} on an upload means nothing")
    return _complete(disk, request, folder, bucket, key)


def copy_source(request: Request) -> tuple[str, str]:
    """Bucket and key that `x-amz-copy-source` names."""

    source = unquote(
        request.header("x-amz-copy-source").partition("?")[0], errors="surrogateescape"
    ).removeprefix("/")
    bucket, _, key = source.partition("/")
    return bucket, key


def _part(disk: Disk, request: Request, folder: Path, signed: sigv4.Signed | None) -> Response:
    at = number(request.query.get("partNumber", ""), "partNumber")
    if not 1 <= at <= 10_000:
        raise S3Error("InvalidArgument", "part numbers go from 1 to 10000")
    with disk.incoming() as target:
        if "x-amz-copy-source" in request.headers:
            md5 = _copied(disk, request, target)
            disk.part_keep(folder, at, target, md5)
            copied_s = (folder / f"part-{at:05d}-{md5}").stat().st_mtime
            return document(
                "<CopyPartResult"
                f" {XMLNS}><LastModified>{iso(copied_s)}</LastModified>"
                f"<ETag>&quot;{md5}&quot;</ETag></CopyPartResult>"
            )
        received = receive(request, target, signed)
        disk.part_keep(folder, at, target, received.md5)
    return receipt(received.md5, received)


def _copied(disk: Disk, request: Request, target: Path) -> str:
    """A range of another object into `target`; its MD5. Raises S3Error for a range that the object
    does not have."""
    fd, found = disk.open(*copy_source(request))
    try:
        start, end = 0, found.size_bytes
        if wanted := request.header("x-amz-copy-source-range"):
            match = _COPY_RANGE.fullmatch(wanted)
            if not match or not int(match[1]) <= int(match[2]) < found.size_bytes:
                raise S3Error("InvalidArgument", f"the object has no range {wanted[:60]!r}")
            start, end = int(match[1]), int(match[2]) + 1
        md5 = hashlib.md5(usedforsecurity=False)
        with open(target, "wb") as out:
            while start < end:
                block = os.pread(fd, min(1 << 20, end - start), start)
                if not block:
                    raise S3Error(
                        "InvalidArgument", "the object became shorter while it was copied"
                    )
                out.write(block)
                md5.update(block)
                start += len(block)
    finally:
        os.close(fd)
    return md5.hexdigest()


def _complete(disk: Disk, request: Request, folder: Path, bucket: str, key: str) -> Response:
    have = {n: (m, p) for n, m, p in disk.parts(folder)}
    wanted = []
    for one in parse(request.body.read(XML_MAX), "CompleteMultipartUpload"):
        fields = {local(c): (c.text or "").strip() for c in one}
        wanted.append(
            (number(fields.get("PartNumber", ""), "PartNumber"), fields.get("ETag", "").strip('"'))
        )
    if not wanted or [n for n, _ in wanted] != sorted({n for n, _ in wanted}):
        raise S3Error(
            "InvalidPartOrder" if wanted else "MalformedXML",
            "parts must be listed once each, in ascending order",
        )
    for at, (part, etag) in enumerate(wanted):
        if part not in have or have[part][0] != etag:
            raise S3Error("InvalidPart", f"part {part} was not uploaded, or with other bytes")
        if at < len(wanted) - 1 and have[part][1].stat().st_size < PART_MIN:
            raise S3Error("EntityTooSmall", f"part {part} is below 5 MiB and not the last")
    about = json.loads((folder / "about.json").read_text())
    with disk.incoming() as target:
        disk.join([have[n][1] for n, _ in wanted], target)
        digest = hashlib.md5(
            b"".join(bytes.fromhex(e) for _, e in wanted), usedforsecurity=False
        ).hexdigest()
        joined = disk.keep(
            bucket,
            key,
            target,
            etag=f"{digest}-{len(wanted)}",
            content_type=about.get("content_type", ""),
            metadata=about.get("metadata"),
        )
    shutil.rmtree(folder, ignore_errors=True)
    return document(
        "<CompleteMultipartUploadResult"
        f" {XMLNS}><Location>/{bucket}/{escaped(key)}</Location><Bucket>{bucket}</Bucket>"
        f"<Key>{escaped(key)}</Key><ETag>&quot;{joined.etag}&quot;</ETag></CompleteMultipartUploadResult>"
    )

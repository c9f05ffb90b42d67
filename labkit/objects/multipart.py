"""Uploads in parts: start, bring or copy the parts in any order, list them, and join them under one
name.

A part may be a range of an object that is there already (S3's UploadPartCopy): Docker's registry
moves every layer above 32 MB to its final name that way. Parts are joined by `copy_file_range`, so
their bytes do not pass through Python again. To complete twice is answered as the first time, since
a client whose first answer was lost asks again. Limits, S3's own: 10 000 parts, 5 MiB each but the
last. Source: S3's API reference. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.net.message import Response
from labkit.objects import conditions, uploads
from labkit.objects.call import Call
from labkit.objects.checksums import CHECKSUMS, FULL_OBJECT, text, type_of, whole
from labkit.objects.disk import Missing
from labkit.objects.documents import (
    XML_MAX,
    XMLNS,
    S3Error,
    document,
    escaped,
    fields,
    iso,
    local,
    number,
    parse,
)
from labkit.objects.object_headers import said
from labkit.objects.reading import checksum_elements
from labkit.objects.upload import PREFIX, claimed_checksums, receipt, receive
from labkit.objects.uploads import Part, Upload
from labkit.objects.writing import source_of

PART_MIN, PARTS_MAX = 5 << 20, 10_000
_COPY_RANGE = re.compile(r"bytes=([0-9]{1,15})-([0-9]{1,15})")


def create(call: Call) -> Response:
    """Raises S3Error, Missing."""
    about, headers = said(call.request), {}
    if name := call.header("x-amz-checksum-algorithm").lower():
        try:
            if name not in CHECKSUMS:
                raise ValueError(f"this store has no checksum {name[:40]!r}")
            about |= {
                "checksum_name": name,
                "checksum_type": type_of(name, call.header("x-amz-checksum-type")),
            }
        except ValueError as error:
            raise S3Error("InvalidRequest", str(error)) from None
        headers = {f"{PREFIX}algorithm": name.upper(), f"{PREFIX}type": about["checksum_type"]}
    upload_id = uploads.start(call.disk, call.bucket, call.key, about)
    answer = document(
        f"<InitiateMultipartUploadResult {XMLNS}><Bucket>{call.bucket}</Bucket>"
        f"<Key>{escaped(call.key)}</Key><UploadId>{upload_id}</UploadId>"
        "</InitiateMultipartUploadResult>"
    )
    answer.headers |= headers
    return answer


def upload_of(call: Call) -> Upload:
    return uploads.find(call.disk, call.bucket, call.key, call.query["uploadId"])


def _number(call: Call) -> int:
    at = number(call.query.get("partNumber", ""), "partNumber")
    if not 1 <= at <= PARTS_MAX:
        raise S3Error("InvalidArgument", f"part numbers go from 1 to {PARTS_MAX}")
    return at


def put_part(call: Call) -> Response:
    """Raises S3Error, UploadMismatch, Missing."""
    upload, at = upload_of(call), _number(call)
    with call.disk.incoming() as target:
        received = receive(call.request, target, call.signed, upload.about.get("checksum_name", ""))
        uploads.keep_part(call.disk, upload, at, target, received.md5, received.checksums)
    return receipt(received.md5, received)


def copy_part(call: Call) -> Response:
    """Raises S3Error, Missing."""
    upload, at = upload_of(call), _number(call)
    with call.disk.incoming() as target:
        md5, checksums = _copied(call, target, upload.about.get("checksum_name", ""))
        copied_s = target.stat().st_mtime
        uploads.keep_part(call.disk, upload, at, target, md5, checksums)
    return document(
        f"<CopyPartResult {XMLNS}><LastModified>{iso(copied_s)}</LastModified>"
        f"<ETag>&quot;{md5}&quot;</ETag>{checksum_elements(checksums)}</CopyPartResult>"
    )


def _copied(call: Call, target: Path, algorithm: str) -> tuple[str, dict[str, str]]:
    """A range of another object into `target`; its MD5 and checksum. Raises S3Error for a range
    that the object does not have."""
    fd, found = call.disk.open(*source_of(call))
    try:
        conditions.copyable(call.request, found)
        start, end = 0, found.size_bytes
        if wanted := call.header("x-amz-copy-source-range"):
            match = _COPY_RANGE.fullmatch(wanted)
            if not match or not int(match[1]) <= int(match[2]) < found.size_bytes:
                raise S3Error("InvalidArgument", f"the object has no range {wanted[:60]!r}")
            start, end = int(match[1]), int(match[2]) + 1
        md5 = hashlib.md5(usedforsecurity=False)
        check = CHECKSUMS[algorithm]() if algorithm else None
        with open(target, "wb") as out:
            while start < end:
                block = os.pread(fd, min(1 << 20, end - start), start)
                if not block:
                    raise S3Error(
                        "InvalidArgument", "the object became shorter while it was copied"
                    )
                out.write(block)
                md5.update(block)
                if check:
                    check.update(block)
                start += len(block)
    finally:
        os.close(fd)
    return md5.hexdigest(), {algorithm: text(check.digest())} if check else {}


def abort(call: Call) -> Response:
    shutil.rmtree(upload_of(call).folder, ignore_errors=True)
    return Response(204)


@dataclass(frozen=True)
class Wanted:
    """A part as CompleteMultipartUpload lists it."""

    number: int
    etag: str
    checksums: dict[str, str]


def _wanted(call: Call) -> list[Wanted]:
    listed = []
    for one in parse(call.request.body.read(XML_MAX), "CompleteMultipartUpload"):
        said_of = {name: value.strip() for name, value in fields(one).items()}
        if local(one) != "Part" or "ETag" not in said_of:
            raise S3Error("MalformedXML", "a part has a PartNumber and an ETag")
        listed.append(
            Wanted(
                number(said_of.get("PartNumber", ""), "PartNumber"),
                said_of["ETag"].strip('"'),
                {
                    name.removeprefix("Checksum").lower(): value
                    for name, value in said_of.items()
                    if name.startswith("Checksum")
                },
            )
        )
    numbers = [part.number for part in listed]
    if not numbers or numbers != sorted(set(numbers)):
        raise S3Error(
            "InvalidPartOrder" if numbers else "MalformedXML",
            "parts must be listed once each, in ascending order",
        )
    return listed


def _etag(wanted: list[Wanted]) -> str:
    try:
        digests = b"".join(bytes.fromhex(part.etag) for part in wanted)
    except ValueError:
        raise S3Error("InvalidPart", "an ETag that no part of this store has") from None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(wanted)}"


def _result(call: Call, etag: str, checksums: dict[str, str], kind: str) -> Response:
    host = call.header("host")
    return document(
        f"<CompleteMultipartUploadResult {XMLNS}>"
        f"<Location>http://{escaped(host)}/{call.bucket}/{escaped(call.key)}</Location>"
        f"<Bucket>{call.bucket}</Bucket><Key>{escaped(call.key)}</Key>"
        f"<ETag>&quot;{etag}&quot;</ETag>{checksum_elements(checksums)}"
        + (f"<ChecksumType>{kind}</ChecksumType>" if checksums else "")
        + "</CompleteMultipartUploadResult>"
    )


def complete(call: Call) -> Response:
    """Raises S3Error, UploadMismatch, Missing."""
    wanted = _wanted(call)
    try:
        upload = upload_of(call)
    except Missing:
        found = conditions.present(call)
        before = call.disk.joined(found) if found else {}
        if (
            found is None
            or found.etag != _etag(wanted)
            or before.get("upload_id") != call.query["uploadId"]
        ):
            raise
        return _result(call, found.etag, found.checksums, found.checksum_type)
    conditions.writable(call)
    parts = _chosen(upload, wanted)
    checksums, kind = _checksums(call, upload, parts)
    about = {k: v for k, v in upload.about.items() if not k.startswith("checksum_")}
    with call.disk.incoming() as target:
        try:
            call.disk.join([part.path for part in parts], target)
        except FileNotFoundError:
            raise Missing("NoSuchUpload", "completed or aborted by another request") from None
        stored = call.disk.keep(
            call.bucket,
            call.key,
            target,
            guard=lambda: conditions.writable(call),
            joined={"upload_id": upload.upload_id, "parts": [_noted(part) for part in parts]},
            etag=_etag(wanted),
            checksums=checksums,
            checksum_type=kind,
            **about,
        )
    shutil.rmtree(upload.folder, ignore_errors=True)
    return _result(call, stored.etag, checksums, kind)


def _noted(part: Part) -> JsonObject:
    return {
        "number": part.number,
        "size_bytes": part.size_bytes,
        "checksums": part.checksums,
    }


def _chosen(upload: Upload, wanted: list[Wanted]) -> list[Part]:
    have = {part.number: part for part in uploads.parts(upload)}
    chosen = []
    for one in wanted:
        part = have.get(one.number)
        if part is None or part.md5 != one.etag:
            raise S3Error("InvalidPart", f"part {one.number} was not uploaded, or with other bytes")
        for name, value in one.checksums.items():
            if part.checksums.get(name) != value:
                raise S3Error("InvalidPart", f"part {one.number} has another checksum {name}")
        chosen.append(part)
    for part in chosen[:-1]:
        if part.size_bytes < PART_MIN:
            raise S3Error("EntityTooSmall", f"part {part.number} is below 5 MiB and not the last")
    return chosen


def _checksums(call: Call, upload: Upload, parts: list[Part]) -> tuple[dict[str, str], str]:
    """The object's, from its parts'; compared with what the request says of it."""
    name = upload.about.get("checksum_name", "")
    kind = upload.about.get("checksum_type", FULL_OBJECT)
    found = {}
    if name:
        of_parts = [(part.checksums[name], part.size_bytes) for part in parts]
        found = {name: whole(name, of_parts, kind)}
    for claimed, value in claimed_checksums(call.request.headers).items():
        if claimed in found and found[claimed] != value:
            raise S3Error("BadDigest", f"checksum {claimed} does not match the object")
    size = call.header("x-amz-mp-object-size")
    if size and size != str(sum(part.size_bytes for part in parts)):
        raise S3Error("InvalidRequest", "x-amz-mp-object-size is not the size of these parts")
    return found, kind

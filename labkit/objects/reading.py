"""Reads of one object: its bytes, its headers, one of its parts, its attributes.

Ranges go out by sendfile; the part of an object is a range of it. Of several ranges S3 sends none,
but the whole object. Source: S3's API reference, GetObject, HeadObject, GetObjectAttributes.
Lesson: notebooks/02_image_pull, notebooks/05_streaming."""

from __future__ import annotations

import os
from itertools import accumulate

from labkit.core.json_types import JsonObject
from labkit.net.message import (
    FileSlice,
    Request,
    Response,
    Unsatisfiable,
    file_response,
    parse_range,
)
from labkit.objects import conditions
from labkit.objects.call import Call
from labkit.objects.disk import Disk, Object
from labkit.objects.documents import XMLNS, S3Error, document, number
from labkit.objects.object_headers import answered

ATTRIBUTES = ("ETag", "Checksum", "ObjectParts", "StorageClass", "ObjectSize")


def get(call: Call) -> Response:
    """GET and HEAD. Raises S3Error, Missing."""
    request = call.request
    fd, found = call.disk.open(call.bucket, call.key)
    try:
        headers = answered(found, request)
        verdict = conditions.readable(request, found)
        if verdict == 412:
            raise conditions.failed()
        if "partNumber" in request.query and not verdict:
            return _part(call.disk, request, fd, found, headers)
    except S3Error:
        os.close(fd)
        raise
    if found.checksums and (verdict or "range" in request.headers):
        # a checksum is of the whole object: clients compare it with what they got
        headers = {k: v for k, v in headers.items() if not k.startswith("x-amz-checksum-")}
    if verdict == 304:
        os.close(fd)
        return Response(304, headers)
    if (condition := request.header("if-range")) and condition.strip('"') != found.etag:
        request.headers.pop("range", None)
    return ranged(request, fd, found.size_bytes, headers)


def ranged(request: Request, fd: int, size_bytes: int, headers: dict[str, str]) -> Response:
    """The object or one range of it; takes over `fd`. Raises S3Error for a range that is not
    there."""
    asked = request.headers.get("range")
    if asked is not None and "," in asked:
        del request.headers["range"]
    elif asked is not None and request.method == "HEAD":
        return _head_of_range(fd, asked, size_bytes, headers)
    response = file_response(request, fd, size_bytes, headers)
    if response.status == 416:
        raise _no_such_range(asked or "", size_bytes)
    return response


def _head_of_range(fd: int, asked: str, size_bytes: int, headers: dict[str, str]) -> Response:
    os.close(fd)
    try:
        ranges = parse_range(asked, size_bytes)
    except Unsatisfiable:
        raise _no_such_range(asked, size_bytes) from None
    headers = {"Accept-Ranges": "bytes", **headers}
    if ranges is None:
        return Response(200, headers, (), size_bytes)
    ((start, end),) = ranges
    headers["Content-Range"] = f"bytes {start}-{end - 1}/{size_bytes}"
    return Response(206, headers, (), end - start)


def _no_such_range(asked: str, size_bytes: int) -> S3Error:
    return S3Error(
        "InvalidRange",
        f"the object has {size_bytes} bytes, and none of {asked[:60]!r}",
        headers={"Content-Range": f"bytes */{size_bytes}"},
    )


def _part(
    disk: Disk, request: Request, fd: int, found: Object, headers: dict[str, str]
) -> Response:
    """Takes over `fd`, unless it raises: S3Error."""
    asked = number(request.query["partNumber"], "partNumber")
    if "range" in request.headers:
        raise S3Error("InvalidRequest", "a range of a part cannot be asked for")
    parts = disk.joined(found).get("parts") or [{"number": 1, "size_bytes": found.size_bytes}]
    ends = list(accumulate(part["size_bytes"] for part in parts))
    at = next((n for n, part in enumerate(parts) if part["number"] == asked), None)
    if at is None:
        raise S3Error("InvalidPartNumber", f"the object has no part {asked}")
    start, end = ends[at] - parts[at]["size_bytes"], ends[at]
    checksums = parts[at].get("checksums", {})
    headers = {
        "Accept-Ranges": "bytes",
        **headers,
        **{
            name: checksums[name.removeprefix("x-amz-checksum-")]
            for name in headers
            if name.removeprefix("x-amz-checksum-") in checksums
        },
    }
    if found.etag.endswith(f"-{len(parts)}"):
        headers["x-amz-mp-parts-count"] = str(len(parts))
    if end > start:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{found.size_bytes}"
    if request.method == "HEAD":
        os.close(fd)
        return Response(206, headers, (), end - start)
    return Response(206, headers, (FileSlice(fd, start, end - start),))


def attributes(call: Call) -> Response:
    """Raises S3Error, Missing."""
    asked = {name.strip() for name in call.header("x-amz-object-attributes").split(",")} - {""}
    if not asked or not asked <= set(ATTRIBUTES):
        raise S3Error("InvalidArgument", f"x-amz-object-attributes: of {', '.join(ATTRIBUTES)}")
    fd, found = call.disk.open(call.bucket, call.key)
    os.close(fd)
    if conditions.readable(call.request, found):
        raise conditions.failed()
    of = {
        "ETag": f"<ETag>{found.etag}</ETag>",
        "Checksum": _checksums(found),
        "ObjectParts": _object_parts(call, found),
        "StorageClass": "<StorageClass>STANDARD</StorageClass>",
        "ObjectSize": f"<ObjectSize>{found.size_bytes}</ObjectSize>",
    }
    rows = "".join(of[name] for name in ATTRIBUTES if name in asked)
    answer = document(f"<GetObjectAttributesResponse {XMLNS}>{rows}</GetObjectAttributesResponse>")
    answer.headers["Last-Modified"] = answered(found, call.request)["Last-Modified"]
    return answer


def checksum_elements(checksums: dict[str, str]) -> str:
    return "".join(
        f"<Checksum{name.upper()}>{value}</Checksum{name.upper()}>"
        for name, value in checksums.items()
    )


def _checksums(found: Object) -> str:
    if not found.checksums:
        return ""
    return (
        f"<Checksum>{checksum_elements(found.checksums)}"
        f"<ChecksumType>{found.checksum_type}</ChecksumType></Checksum>"
    )


def _object_parts(call: Call, found: Object) -> str:
    parts: list[JsonObject] = call.disk.joined(found).get("parts", [])
    if not parts:
        return ""
    most = min(1000, number(call.header("x-amz-max-parts") or "1000", "x-amz-max-parts"))
    after = number(call.header("x-amz-part-number-marker") or "0", "x-amz-part-number-marker")
    left = [part for part in parts if part["number"] > after]
    shown = left[:most]
    rows = "".join(
        f"<Part><PartNumber>{part['number']}</PartNumber><Size>{part['size_bytes']}</Size>"
        f"{checksum_elements(part['checksums'])}</Part>"
        for part in shown
    )
    last = shown[-1]["number"] if shown else after
    return (
        f"<ObjectParts><PartsCount>{len(parts)}</PartsCount>"
        f"<PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{last}</NextPartNumberMarker><MaxParts>{most}</MaxParts>"
        f"<IsTruncated>{'true' if len(left) > len(shown) else 'false'}</IsTruncated>{rows}"
        "</ObjectParts>"
    )

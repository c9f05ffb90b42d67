"""Buckets as S3's clients see them: made, removed, listed in pages, emptied.

    buckets.answer(disk, request, "lab")         # GET /lab?list-type=2&prefix=models/

A page holds at most 1000 names, S3's own limit; where it ends is in the token. Source: S3's API
reference. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re

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


def all_buckets(disk: Disk, request: Request) -> Response:
    """The list of buckets. Raises S3Error."""
    if request.method not in ("GET", "HEAD"):
        raise S3Error("MethodNotAllowed", "only a list of buckets is here")
    rows = "".join(
        f"<Bucket><Name>{n}</Name><CreationDate>{iso(t)}</CreationDate></Bucket>"
        for n, t in disk.buckets()
    )
    return document(
        "<ListAllMyBucketsResult"
        f" {XMLNS}><Owner><ID>lab</ID></Owner><Buckets>{rows}</Buckets>"
        "</ListAllMyBucketsResult>"
    )


def answer(disk: Disk, request: Request, bucket: str) -> Response:
    """Everything that S3 asks of a bucket. Raises S3Error, Missing."""
    query = request.query
    if request.method == "PUT":
        request.body.read(XML_MAX)
        if not disk.make_bucket(bucket):
            raise S3Error("BucketAlreadyOwnedByYou", f"{bucket} is there already")
        return Response(200, {"Location": f"/{bucket}"})
    disk.bucket(bucket)
    if request.method == "HEAD":
        return Response(200, {"x-amz-bucket-region": "us-east-1"})
    if request.method == "DELETE":
        if not disk.remove_bucket(bucket):
            raise S3Error("BucketNotEmpty", f"{bucket} still holds objects")
        return Response(204)
    if request.method == "POST" and "delete" in query:
        return _delete_many(disk, request, bucket)
    if request.method != "GET":
        raise S3Error("MethodNotAllowed", f"{request.method} on a bucket means nothing here")
    if "location" in query:
        return document(f"<LocationConstraint {XMLNS}></LocationConstraint>")
    if "versioning" in query:
        return document(f"<VersioningConfiguration {XMLNS}/>")
    if "uploads" in query:
        rows = "".join(
            f"<Upload><Key>{escaped(k)}</Key><UploadId>{u}</UploadId></Upload>"
            for k, u in disk.uploads_of(bucket)
        )
        return document(
            "<ListMultipartUploadsResult"
            f" {XMLNS}><Bucket>{bucket}</Bucket><IsTruncated>false</IsTruncated>{rows}"
            "</ListMultipartUploadsResult>"
        )
    return _list(disk, request, bucket)


def _list(disk: Disk, request: Request, bucket: str) -> Response:
    query, second = request.query, request.query.get("list-type") == "2"
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    limit = min(1000, number(query.get("max-keys", "1000"), "max-keys"))
    token = query.get("continuation-token", "")
    if token and not re.fullmatch(r"(?:[0-9a-f]{2})+", token):
        raise S3Error("InvalidArgument", "the continuation token is not one of ours")
    after = (
        bytes.fromhex(token).decode("utf-8", "surrogateescape")
        if token
        else query.get("start-after" if second else "marker", "")
    )
    objects, folders, more = (
        disk.listing(bucket, prefix, delimiter, after, limit) if limit else ([], [], "")
    )
    url = query.get("encoding-type") == "url"

    def show(name: str) -> str:
        return sigv4.encode(name, "/") if url else escaped(name)

    rows = "".join(
        f"<Contents><Key>{show(o.key)}</Key><LastModified>{iso(o.modified_s)}</LastModified>"
        f"<ETag>&quot;{o.etag}&quot;</ETag>"
        f"<Size>{o.size_bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>"
        for o in objects
    )
    rows += "".join(f"<CommonPrefixes><Prefix>{show(f)}</Prefix></CommonPrefixes>" for f in folders)
    head = (
        f"<Name>{bucket}</Name><Prefix>{show(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys>"
        f"<IsTruncated>{'true' if more else 'false'}</IsTruncated>"
    )
    if delimiter:
        head += f"<Delimiter>{show(delimiter)}</Delimiter>"
    if url:
        head += "<EncodingType>url</EncodingType>"
    if second:
        head += f"<KeyCount>{len(objects) + len(folders)}</KeyCount>"
        head += f"<ContinuationToken>{token}</ContinuationToken>" if token else ""
        if more:
            after_it = more.encode("utf-8", "surrogateescape").hex()
            head += f"<NextContinuationToken>{after_it}</NextContinuationToken>"
    else:
        head += f"<Marker>{show(after)}</Marker>" + (
            f"<NextMarker>{show(more)}</NextMarker>" if more else ""
        )
    return document(f"<ListBucketResult {XMLNS}>{head}{rows}</ListBucketResult>")


def _delete_many(disk: Disk, request: Request, bucket: str) -> Response:
    rows = []
    for one in parse(request.body.read(XML_MAX), "Delete").iter():
        if local(one) == "Object":
            key = next((c.text or "" for c in one if local(c) == "Key"), "")
            disk.remove(bucket, key)
            rows.append(f"<Deleted><Key>{escaped(key)}</Key></Deleted>")
    return document(f"<DeleteResult {XMLNS}>{''.join(rows)}</DeleteResult>")

"""The operations this store has: which request is which, and what each may be asked.

    find(request, "lab", "key") -> Operation           # raises S3Error for what is not in the table

A request is known by its method, by what it is about (the service, a bucket, an object), by the
query key that names a sub-resource (`?acl`), and by a copy's header. Every other query key must be
one that the operation knows: a store that passes over `?versionId` deletes another thing than was
asked. Source: S3's API reference. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from labkit.net.message import Request, Response
from labkit.objects import (
    acl,
    buckets,
    listing,
    multipart,
    reading,
    tagging,
    upload_listings,
    writing,
)
from labkit.objects.call import Call
from labkit.objects.documents import OWNER_ID, S3Error
from labkit.objects.object_headers import OVERRIDES

SERVICE, BUCKET, OBJECT = "the service", "a bucket", "an object"
COPY_SOURCE = "x-amz-copy-source"


@dataclass(frozen=True)
class Operation:
    """`name`: S3's. `selector`: the query key that names the sub-resource; `known`: the others it
    takes. `copies`: whether `x-amz-copy-source` is what makes it this one."""

    name: str
    method: str
    about: str
    handler: Callable[[Call], Response]
    selector: str = ""
    known: frozenset[str] = field(default_factory=frozenset)
    copies: bool = False


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _row(
    name: str,
    method: str,
    about: str,
    handler: Callable[[Call], Response],
    selector: str = "",
    known: str = "",
    copies: bool = False,
) -> Operation:
    return Operation(name, method, about, handler, selector, _words(known), copies)


_LIST = "prefix delimiter max-keys encoding-type"
_READ = " ".join(("versionId", "partNumber", *OVERRIDES))
TABLE = (
    _row(
        "ListBuckets",
        "GET",
        SERVICE,
        buckets.all_buckets,
        known="prefix max-buckets continuation-token bucket-region",
    ),
    _row("CreateBucket", "PUT", BUCKET, buckets.create),
    _row("HeadBucket", "HEAD", BUCKET, buckets.head),
    _row("DeleteBucket", "DELETE", BUCKET, buckets.delete),
    _row("DeleteObjects", "POST", BUCKET, buckets.delete_many, "delete"),
    _row("ListObjects", "GET", BUCKET, listing.first, known=f"{_LIST} marker"),
    _row(
        "ListObjectsV2",
        "GET",
        BUCKET,
        listing.second,
        "list-type",
        f"{_LIST} continuation-token start-after fetch-owner",
    ),
    _row(
        "ListObjectVersions",
        "GET",
        BUCKET,
        listing.versions,
        "versions",
        f"{_LIST} key-marker version-id-marker",
    ),
    _row(
        "ListMultipartUploads",
        "GET",
        BUCKET,
        upload_listings.list_uploads,
        "uploads",
        "prefix delimiter encoding-type key-marker upload-id-marker max-uploads",
    ),
    _row("GetBucketAcl", "GET", BUCKET, acl.get, "acl"),
    _row("PutBucketAcl", "PUT", BUCKET, acl.put, "acl"),
    *(
        _row("GetBucketConfiguration", "GET", BUCKET, buckets.configuration, selector)
        for selector in (*buckets.NONE_SET, *buckets.AS_MADE)
    ),
    _row("GetObject", "GET", OBJECT, reading.get, known=_READ),
    _row("HeadObject", "HEAD", OBJECT, reading.get, known=_READ),
    _row("GetObjectAttributes", "GET", OBJECT, reading.attributes, "attributes", known="versionId"),
    _row("PutObject", "PUT", OBJECT, writing.put),
    _row("CopyObject", "PUT", OBJECT, writing.copy, copies=True),
    _row("DeleteObject", "DELETE", OBJECT, writing.delete, known="versionId"),
    _row("GetObjectAcl", "GET", OBJECT, acl.get, "acl", "versionId"),
    _row("PutObjectAcl", "PUT", OBJECT, acl.put, "acl", "versionId"),
    _row("GetObjectTagging", "GET", OBJECT, tagging.get, "tagging", "versionId"),
    _row("PutObjectTagging", "PUT", OBJECT, tagging.put, "tagging", "versionId"),
    _row("DeleteObjectTagging", "DELETE", OBJECT, tagging.remove, "tagging", "versionId"),
    _row("CreateMultipartUpload", "POST", OBJECT, multipart.create, "uploads"),
    _row("UploadPart", "PUT", OBJECT, multipart.put_part, "uploadId", "partNumber"),
    _row(
        "UploadPartCopy", "PUT", OBJECT, multipart.copy_part, "uploadId", "partNumber", copies=True
    ),
    _row(
        "ListParts",
        "GET",
        OBJECT,
        upload_listings.list_parts,
        "uploadId",
        "max-parts part-number-marker encoding-type",
    ),
    _row("CompleteMultipartUpload", "POST", OBJECT, multipart.complete, "uploadId"),
    _row("AbortMultipartUpload", "DELETE", OBJECT, multipart.abort, "uploadId"),
)
_FOUND = {(op.method, op.about, op.selector, op.copies): op for op in TABLE}
#: Sub-resources of S3, of Cloud Storage's and Ceph's S3, that no operation of this store is about.
NOT_HERE = _words(
    "abac analytics append cors encryption intelligent-tiering inventory legal-hold lifecycle"
    " metadataConfiguration metadataTable metrics object-lock position renameObject replication"
    " restore retention select select-type session torrent versionId website"
)
SELECTORS = frozenset(op.selector for op in TABLE if op.selector)
#: What carries a signature, or names the call for a log: no operation's own.
SIGNING = _words(
    "X-Amz-Algorithm X-Amz-Credential X-Amz-Date X-Amz-Expires X-Amz-SignedHeaders X-Amz-Signature"
    " X-Amz-Security-Token X-Amz-Content-Sha256 X-Amz-User-Agent AWSAccessKeyId Signature Expires"
    " x-id"
)
_NONE: frozenset[str] = frozenset()

#: Headers of writes that ask for what this store does not do, with the values that it does.
LIMITED = {
    "x-amz-acl": acl.SAME,
    "x-amz-storage-class": ("STANDARD",),
    "x-amz-bucket-object-lock-enabled": ("false",),
    "x-amz-object-ownership": ("BucketOwnerEnforced",),
    "x-amz-website-redirect-location": (),
    "x-amz-write-offset-bytes": (),
    "x-amz-mfa": (),
}
#: The same for all headers that begin so.
LIMITED_PREFIXES = (
    "x-amz-grant-",
    "x-amz-object-lock-",
    "x-amz-server-side-encryption",
    "x-amz-copy-source-server-side-encryption",
    "x-goog-if-",
)


def find(request: Request, bucket: str, key: str) -> Operation:
    """Raises S3Error."""
    about = OBJECT if key else BUCKET if bucket else SERVICE
    asked = _query(request) if request.query else _NONE
    named = asked & SELECTORS if asked else _NONE
    if len(named) > 1:
        raise S3Error("InvalidRequest", f"two sub-resources: {', '.join(sorted(named))}")
    selector = next(iter(named), "")
    copies = request.method == "PUT" and COPY_SOURCE in request.headers
    method = "GET" if request.method == "HEAD" and about is SERVICE else request.method
    operation = _FOUND.get((method, about, selector, copies))
    if operation is None:
        raise _unknown(method, about, selector or min(asked & NOT_HERE, default=""))
    if asked:
        _judge(operation, asked, request)
    if method in ("PUT", "POST", "DELETE"):
        _judge_headers(request)
    owner = request.headers.get("x-amz-expected-bucket-owner")
    if owner is not None and owner != OWNER_ID:
        raise S3Error("AccessDenied", "the bucket is not of the owner expected")
    return operation


def _query(request: Request) -> frozenset[str]:
    """The query's keys without those of a signature. Headers that a presigned URL carries in its
    query become headers."""
    asked = request.query.keys() - SIGNING
    for key in [key for key in asked if key.lower().startswith("x-amz-")]:
        asked.discard(key)
        request.headers.setdefault(key.lower(), request.query[key])
    return frozenset(asked)


def _unknown(method: str, about: str, selector: str) -> S3Error:
    if selector:
        return S3Error("NotImplemented", f"this store has no {method} ?{selector} of {about}")
    return S3Error("MethodNotAllowed", f"{method} on {about} means nothing here")


def _judge(operation: Operation, asked: frozenset[str], request: Request) -> None:
    for key in sorted(asked - operation.known - {operation.selector}):
        if key in NOT_HERE or key in SELECTORS:
            raise S3Error("NotImplemented", f"this store has no ?{key[:60]} of {operation.about}")
        raise S3Error("InvalidArgument", f"{operation.name} knows no query key {key[:60]!r}")
    if request.query.get("versionId", "null") != "null":
        raise S3Error("NoSuchVersion", "this store keeps one version of an object: null")


def _judge_headers(request: Request) -> None:
    for name, value in request.headers.items():
        if name in LIMITED:
            if value in LIMITED[name]:
                continue
        elif not name.startswith(LIMITED_PREFIXES):
            continue
        raise S3Error("NotImplemented", f"this store has no {name}: {value[:60]}")

"""The objects of a bucket, in pages: S3's first and second list, and the list of versions.

    listing.second(call)                     # GET /lab?list-type=2&prefix=models/

A page holds at most 1000 names, S3's own limit; where it ends is in the token. Every object has one
version, null. Source: S3's API reference, ListObjects, ListObjectsV2, ListObjectVersions. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from labkit.net.message import Response
from labkit.objects.call import Call
from labkit.objects.disk import Object
from labkit.objects.documents import OWNER, XMLNS, S3Error, document, iso, namer, number

PAGE_MAX = 1000
_OWNER = f"<Owner>{OWNER}</Owner>"


@dataclass(frozen=True)
class Page:
    """What every listing says: names that come after a name, folded at the delimiter."""

    objects: list[Object]
    folders: list[str]
    following: str  # name to go on after; empty: that was all
    head: str
    show: Callable[[str], str]

    @property
    def common_prefixes(self) -> str:
        return "".join(
            f"<CommonPrefixes><Prefix>{self.show(f)}</Prefix></CommonPrefixes>"
            for f in self.folders
        )


def _page(call: Call, after: str) -> Page:
    query, show = call.query, namer(call.request)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(PAGE_MAX, number(query.get("max-keys") or str(PAGE_MAX), "max-keys"))
    call.disk.bucket(call.bucket)
    objects, folders, following = (
        call.disk.listing(call.bucket, prefix, delimiter, after, most) if most else ([], [], "")
    )
    head = (
        f"<Name>{call.bucket}</Name><Prefix>{show(prefix)}</Prefix><MaxKeys>{most}</MaxKeys>"
        f"<IsTruncated>{'true' if following else 'false'}</IsTruncated>"
    )
    if delimiter:
        head += f"<Delimiter>{show(delimiter)}</Delimiter>"
    if query.get("encoding-type"):
        head += "<EncodingType>url</EncodingType>"
    return Page(objects, folders, following, head, show)


def _fields(found: Object, page: Page) -> str:
    checksums = "".join(
        f"<ChecksumAlgorithm>{name.upper()}</ChecksumAlgorithm>"
        f"<ChecksumType>{found.checksum_type}</ChecksumType>"
        for name in found.checksums
    )
    return (
        f"<Key>{page.show(found.key)}</Key><LastModified>{iso(found.modified_s)}</LastModified>"
        f"<ETag>&quot;{found.etag}&quot;</ETag>{checksums}"
        f"<Size>{found.size_bytes}</Size><StorageClass>STANDARD</StorageClass>"
    )


def _contents(page: Page, owner: str) -> str:
    return "".join(f"<Contents>{_fields(o, page)}{owner}</Contents>" for o in page.objects)


def first(call: Call) -> Response:
    """Raises S3Error, Missing."""
    marker = call.query.get("marker", "")
    page = _page(call, marker)
    head = f"{page.head}<Marker>{page.show(marker)}</Marker>"
    if page.following:
        head += f"<NextMarker>{page.show(page.following)}</NextMarker>"
    return document(
        f"<ListBucketResult {XMLNS}>{head}{_contents(page, _OWNER)}{page.common_prefixes}"
        "</ListBucketResult>"
    )


def second(call: Call) -> Response:
    """Raises S3Error, Missing."""
    if call.query["list-type"] != "2":
        raise S3Error("InvalidArgument", "list-type is 2, or left out")
    token, start = call.query.get("continuation-token"), call.query.get("start-after", "")
    if token and not re.fullmatch(r"(?:[0-9a-f]{2})+", token):
        raise S3Error("InvalidArgument", "the continuation token is not one of ours")
    page = _page(call, bytes.fromhex(token).decode("utf-8", "surrogateescape") if token else start)
    head = f"{page.head}<KeyCount>{len(page.objects) + len(page.folders)}</KeyCount>"
    if token is not None:
        head += f"<ContinuationToken>{token}</ContinuationToken>"
    if start:
        head += f"<StartAfter>{page.show(start)}</StartAfter>"
    if page.following:
        following = page.following.encode("utf-8", "surrogateescape").hex()
        head += f"<NextContinuationToken>{following}</NextContinuationToken>"
    owner = _OWNER if call.query.get("fetch-owner", "").lower() == "true" else ""
    return document(
        f"<ListBucketResult {XMLNS}>{head}{_contents(page, owner)}{page.common_prefixes}"
        "</ListBucketResult>"
    )


def versions(call: Call) -> Response:
    """Raises S3Error, Missing."""
    marker = call.query.get("key-marker", "")
    page = _page(call, marker)
    head = f"{page.head}<KeyMarker>{page.show(marker)}</KeyMarker><VersionIdMarker/>"
    if page.following:
        head += (
            f"<NextKeyMarker>{page.show(page.following)}</NextKeyMarker>"
            "<NextVersionIdMarker>null</NextVersionIdMarker>"
        )
    rows = "".join(
        f"<Version>{_fields(o, page)}<VersionId>null</VersionId><IsLatest>true</IsLatest>{_OWNER}"
        "</Version>"
        for o in page.objects
    )
    return document(
        f"<ListVersionsResult {XMLNS}>{head}{rows}{page.common_prefixes}</ListVersionsResult>"
    )

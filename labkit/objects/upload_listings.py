"""What is on its way: the uploads of a bucket, the parts of an upload, in pages.

A page holds at most 1000, S3's own limit. Source: S3's API reference, ListMultipartUploads,
ListParts. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from labkit.net.message import Response
from labkit.objects import uploads
from labkit.objects.call import Call
from labkit.objects.documents import OWNER, XMLNS, document, escaped, iso, namer, number
from labkit.objects.multipart import upload_of
from labkit.objects.reading import checksum_elements
from labkit.objects.uploads import Upload

PAGE_MAX = 1000
_ROLES = f"<Initiator>{OWNER}</Initiator><Owner>{OWNER}</Owner>"


def list_parts(call: Call) -> Response:
    """Raises S3Error, Missing."""
    upload = upload_of(call)
    most = min(PAGE_MAX, number(call.query.get("max-parts", "1000"), "max-parts"))
    after = number(call.query.get("part-number-marker") or "0", "part-number-marker")
    left = [part for part in uploads.parts(upload) if part.number > after]
    shown = left[:most]
    rows = "".join(
        f"<Part><PartNumber>{part.number}</PartNumber>"
        f"<LastModified>{iso(part.modified_s)}</LastModified><ETag>&quot;{part.md5}&quot;</ETag>"
        f"<Size>{part.size_bytes}</Size>{checksum_elements(part.checksums)}</Part>"
        for part in shown
    )
    algorithm = upload.about.get("checksum_name", "").upper()
    kind = upload.about.get("checksum_type", "")
    return document(
        f"<ListPartsResult {XMLNS}><Bucket>{call.bucket}</Bucket>"
        f"<Key>{namer(call.request)(call.key)}</Key><UploadId>{upload.upload_id}</UploadId>{_ROLES}"
        f"<StorageClass>STANDARD</StorageClass><PartNumberMarker>{after}</PartNumberMarker>"
        f"<NextPartNumberMarker>{shown[-1].number if shown else after}</NextPartNumberMarker>"
        f"<MaxParts>{most}</MaxParts>"
        f"<IsTruncated>{'true' if len(left) > len(shown) else 'false'}</IsTruncated>"
        + (f"<ChecksumAlgorithm>{algorithm}</ChecksumAlgorithm>" if algorithm else "")
        + (f"<ChecksumType>{kind}</ChecksumType>" if kind else "")
        + f"{rows}</ListPartsResult>"
    )


def list_uploads(call: Call) -> Response:
    """Raises S3Error, Missing."""
    query, name = call.query, namer(call.request)
    call.disk.bucket(call.bucket)
    prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
    most = min(PAGE_MAX, number(query.get("max-uploads", "1000"), "max-uploads"))
    after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
    shown: list[Upload] = []
    folders: list[str] = []
    truncated = False
    for upload in uploads.of_bucket(call.disk, call.bucket):
        at = upload.key.find(delimiter, len(prefix)) if delimiter else -1
        folder = upload.key[: at + len(delimiter)] if at >= 0 else ""
        if (
            not upload.key.startswith(prefix)
            or upload.key.encode("utf-8", "surrogateescape")
            < after[0].encode("utf-8", "surrogateescape")
            or (upload.key == after[0] and upload.upload_id <= (after[1] or "g"))
            or (folder and (folder in folders or folder == after[0]))
        ):
            continue
        if len(shown) + len(folders) >= most:
            truncated = most > 0
            break
        if folder:
            folders.append(folder)
        else:
            shown.append(upload)
    rows = "".join(
        f"<Upload><Key>{name(u.key)}</Key><UploadId>{u.upload_id}</UploadId>{_ROLES}"
        f"<StorageClass>STANDARD</StorageClass><Initiated>{iso(u.started_s)}</Initiated></Upload>"
        for u in shown
    ) + "".join(f"<CommonPrefixes><Prefix>{name(f)}</Prefix></CommonPrefixes>" for f in folders)
    following = ""
    if truncated:
        last = max([u.key for u in shown[-1:]] + folders[-1:])
        following = f"<NextKeyMarker>{name(last)}</NextKeyMarker>"
        if shown and last == shown[-1].key:
            following += f"<NextUploadIdMarker>{shown[-1].upload_id}</NextUploadIdMarker>"
    return document(
        f"<ListMultipartUploadsResult {XMLNS}><Bucket>{call.bucket}</Bucket>"
        f"<KeyMarker>{name(after[0])}</KeyMarker>"
        f"<UploadIdMarker>{escaped(after[1])}</UploadIdMarker>{following}"
        f"<Prefix>{name(prefix)}</Prefix><MaxUploads>{most}</MaxUploads>"
        f"<IsTruncated>{'true' if truncated else 'false'}</IsTruncated>{rows}"
        "</ListMultipartUploadsResult>"
    )

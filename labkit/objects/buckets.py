"""Buckets as S3's clients see them: made, removed, described, emptied. Their listings are in
`labkit.objects.listing`.

What a bucket can have elsewhere and none has here is answered as S3 answers where none was set.
Source: S3's API reference. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from labkit.net.message import Response
from labkit.objects import conditions
from labkit.objects.call import Call
from labkit.objects.disk import Missing, Unstorable
from labkit.objects.documents import (
    OWNER,
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

DELETES_MAX = 1000
#: Error of a bucket without it, as in S3.
NONE_SET = {
    "cors": "NoSuchCORSConfiguration",
    "encryption": "ServerSideEncryptionConfigurationNotFoundError",
    "lifecycle": "NoSuchLifecycleConfiguration",
    "object-lock": "ObjectLockConfigurationNotFoundError",
    "policy": "NoSuchBucketPolicy",
    "policyStatus": "NoSuchBucketPolicy",
    "publicAccessBlock": "NoSuchPublicAccessBlockConfiguration",
    "replication": "ReplicationConfigurationNotFoundError",
    "tagging": "NoSuchTagSet",
    "website": "NoSuchWebsiteConfiguration",
}
#: Document of a bucket as it is made.
AS_MADE = {
    "accelerate": f"<AccelerateConfiguration {XMLNS}/>",
    "location": f"<LocationConstraint {XMLNS}></LocationConstraint>",
    "logging": f"<BucketLoggingStatus {XMLNS}/>",
    "notification": f"<NotificationConfiguration {XMLNS}/>",
    "ownershipControls": (
        f"<OwnershipControls {XMLNS}><Rule><ObjectOwnership>BucketOwnerEnforced</ObjectOwnership>"
        "</Rule></OwnershipControls>"
    ),
    "requestPayment": (
        f"<RequestPaymentConfiguration {XMLNS}><Payer>BucketOwner</Payer>"
        "</RequestPaymentConfiguration>"
    ),
    "versioning": f"<VersioningConfiguration {XMLNS}/>",
}


def all_buckets(call: Call) -> Response:
    """The list of buckets, in pages if asked for. Raises S3Error."""
    query = call.query
    prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
    most = number(query.get("max-buckets", "10000"), "max-buckets")
    found = [(n, t) for n, t in call.disk.buckets() if n.startswith(prefix) and n > after]
    rows = "".join(
        f"<Bucket><Name>{n}</Name><CreationDate>{iso(t)}</CreationDate></Bucket>"
        for n, t in found[:most]
    )
    more = (
        f"<ContinuationToken>{found[most - 1][0]}</ContinuationToken>"
        if 0 < most < len(found)
        else ""
    )
    return document(
        f"<ListAllMyBucketsResult {XMLNS}><Owner>{OWNER}</Owner><Buckets>{rows}</Buckets>{more}"
        "</ListAllMyBucketsResult>"
    )


def create(call: Call) -> Response:
    """Raises S3Error, Unstorable."""
    raw = call.request.body.read(XML_MAX)
    if raw:
        parse(raw, "CreateBucketConfiguration")
    call.disk.make_bucket(call.bucket)  # there already, and the owner's: fine, as in us-east-1
    return Response(200, {"Location": f"/{call.bucket}"})


def head(call: Call) -> Response:
    call.disk.bucket(call.bucket)
    return Response(200, {"x-amz-bucket-region": "us-east-1"})


def delete(call: Call) -> Response:
    """Raises S3Error, Missing."""
    if not call.disk.remove_bucket(call.bucket):
        raise S3Error("BucketNotEmpty", f"{call.bucket} still holds objects")
    return Response(204)


def configuration(call: Call) -> Response:
    """Of a bucket that has none. Raises S3Error, Missing."""
    call.disk.bucket(call.bucket)
    for name, code in NONE_SET.items():
        if name in call.query:
            raise S3Error(code, f"{call.bucket} has no {name}", 404)
    return document(next(doc for name, doc in AS_MADE.items() if name in call.query))


def delete_many(call: Call) -> Response:
    """What is not there is gone, what cannot go is named. Raises S3Error, Missing."""
    call.disk.bucket(call.bucket)
    wanted = parse(call.request.body.read(XML_MAX), "Delete")
    quiet = fields(wanted).get("Quiet", "").strip().lower() == "true"
    entries = [fields(one) for one in wanted if local(one) == "Object"]
    if not 1 <= len(entries) <= DELETES_MAX:
        raise S3Error("MalformedXML", f"one request deletes 1 to {DELETES_MAX} objects")
    rows = []
    for entry in entries:
        key, version = entry.get("Key", ""), entry.get("VersionId", "")
        shown = f"<Key>{escaped(key)}</Key>"
        if version:
            shown += f"<VersionId>{escaped(version)}</VersionId>"
        try:
            _delete_one(Call(call.disk, call.request, call.bucket, key), entry)
            if not quiet:
                rows.append(f"<Deleted>{shown}</Deleted>")
        except (S3Error, Missing, Unstorable) as error:
            rows.append(
                f"<Error>{shown}<Code>{error.code}</Code>"
                f"<Message>{escaped(str(error))}</Message></Error>"
            )
    return document(f"<DeleteResult {XMLNS}>{''.join(rows)}</DeleteResult>")


def _delete_one(call: Call, entry: dict[str, str]) -> None:
    if entry.get("VersionId", "null") not in ("null", ""):
        raise S3Error("NoSuchVersion", "this store keeps one version of an object: null")
    call.disk.path(call.bucket, call.key)
    asked = tuple(entry.get(name, "").strip() for name in ("ETag", "LastModifiedTime", "Size"))
    if any(asked):
        conditions.deletable(conditions.present(call), *asked)
    call.disk.remove(call.bucket, call.key)

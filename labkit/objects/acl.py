"""Who may: one owner, who may everything. The document of it, and no other.

Source: S3's API reference, GetObjectAcl, PutObjectAcl. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os

from labkit.net.message import Response
from labkit.objects.call import Call
from labkit.objects.documents import (
    OWNER,
    OWNER_ID,
    XML_MAX,
    XMLNS,
    S3Error,
    document,
    local,
    parse,
)

#: Canned lists that come to the same where one owner has all.
SAME = ("private", "bucket-owner-full-control", "bucket-owner-read")
_XSI = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance" xsi:type="CanonicalUser"'


def _check_there(call: Call) -> None:
    call.disk.bucket(call.bucket)
    if call.key:
        os.close(call.disk.open(call.bucket, call.key)[0])


def get(call: Call) -> Response:
    _check_there(call)
    return document(
        f"<AccessControlPolicy {XMLNS}><Owner>{OWNER}</Owner><AccessControlList><Grant>"
        f"<Grantee {_XSI}>{OWNER}</Grantee><Permission>FULL_CONTROL</Permission></Grant>"
        "</AccessControlList></AccessControlPolicy>"
    )


def put(call: Call) -> Response:
    """What says what is so already is taken. Raises S3Error for the rest."""
    _check_there(call)
    raw = call.request.body.read(XML_MAX)
    if not raw and call.header("x-amz-acl"):
        return Response(200)  # `operations.refuse` has judged it
    granted = {
        (local(child), (child.text or "").strip())
        for grant in parse(raw, "AccessControlPolicy").iter()
        if local(grant) in ("Grant", "Grantee")
        for child in grant
        if local(child) in ("ID", "URI", "EmailAddress", "Permission")
    }
    if granted != {("ID", OWNER_ID), ("Permission", "FULL_CONTROL")}:
        raise S3Error("NotImplemented", "here the owner may everything, and there is no other list")
    return Response(200)

"""AWS Signature Version 2, checked only: what botocore still presigns with unless told otherwise,
and s3fs with it.

    check(request, keys={"labkit": "labkit-not-a-secret"})     # raises Denied; None: not signed so

It covers the method, the path, the sub-resources, `x-amz-` headers, the type, the MD5 and the date,
by HMAC-SHA1; a header's date may be 15 minutes off, a URL says when it ends. Source: AWS, "Signing
and authenticating REST requests" (version 2). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

from labkit.core.digits import decimal
from labkit.net.head import http_date
from labkit.net.message import Request
from labkit.objects.sigv4 import SKEW_S, Denied, Signed, as_sent

#: Query keys that a signature covers.
SIGNED_KEYS = frozenset(
    {
        "acl",
        "cors",
        "delete",
        "lifecycle",
        "location",
        "logging",
        "notification",
        "partNumber",
        "policy",
        "requestPayment",
        "response-cache-control",
        "response-content-disposition",
        "response-content-encoding",
        "response-content-language",
        "response-content-type",
        "response-expires",
        "restore",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versionId",
        "versioning",
        "versions",
        "website",
    }
)


def text_to_sign(request: Request, date: str) -> str:
    """A bucket's own path is signed with a slash at its end, sent or not."""
    header = request.header
    amz = "".join(
        f"{name}:{as_sent(request.headers[name])}\n"
        for name in sorted(request.headers)
        if name.startswith("x-amz-")
    )
    covered = "&".join(
        f"{key}={value}" if value else key
        for key, value in sorted(request.query.items())
        if key in SIGNED_KEYS
    )
    bucket = request.raw_path.count("/") == 1 and request.raw_path != "/"
    resource = request.raw_path + ("/" if bucket else "") + (f"?{covered}" if covered else "")
    return (
        f"{request.method}\n{header('content-md5')}\n{header('content-type')}\n{date}\n"
        f"{amz}{resource}"
    )


def check(request: Request, keys: Mapping[str, str], now_s: float | None = None) -> Signed | None:
    """Raises Denied with S3's own error codes."""
    query, given = request.query, request.header("authorization")
    now_s = time.time() if now_s is None else now_s
    if given.startswith("AWS "):
        access, _, signature = given.removeprefix("AWS ").partition(":")
        date = "" if "x-amz-date" in request.headers else request.header("date")
        signed_s = http_date(request.header("x-amz-date") or date)
        if signed_s is None or signed_s < 0:
            raise Denied("AccessDenied", "a signed request needs a date")
        if abs(now_s - signed_s) > SKEW_S:
            raise Denied("RequestTimeTooSkewed", f"signed {now_s - signed_s:.0f} s ago")
    elif not given and "AWSAccessKeyId" in query and "Signature" in query:
        access, signature, date = (
            query["AWSAccessKeyId"],
            query["Signature"],
            query.get("Expires", ""),
        )
        try:
            if decimal(date) < now_s:
                raise Denied("AccessDenied", "the request has expired")
        except ValueError:
            raise Denied("AccessDenied", "Expires is not a number of seconds") from None
    else:
        return None
    if access not in keys:
        raise Denied("InvalidAccessKeyId", f"no access key {access[:60]!r} here")
    text = text_to_sign(request, date).encode("utf-8", "surrogateescape")
    wanted = base64.b64encode(hmac.new(keys[access].encode(), text, hashlib.sha1).digest())
    if not hmac.compare_digest(wanted, signature.encode("utf-8", "surrogateescape")):
        raise Denied(
            "SignatureDoesNotMatch",
            "the signature does not match: wrong secret key, or the request was changed on the way",
        )
    return Signed(access, "", "", "", b"")

"""AWS Signature Version 4: made by the lab's client, checked by its store.

    headers = sign("GET", "http://127.0.0.1:9000/lab/key", {}, Keys("labkit",
        "labkit-not-a-secret"), region="us-east-1")
    check(request, keys={"labkit": "labkit-not-a-secret"})        # raises Denied; None when the
        request is not signed

A signature covers the method, the path, the query, chosen headers and the body's digest. The store
accepts any region, as the SDKs take theirs from wherever they find one. Source: AWS, "Signature
Version 4 signing process" for S3 (paths are encoded once). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from labkit.core.digits import decimal
from labkit.net.head import http_date
from labkit.net.message import Request
from labkit.net.place import split

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY = hashlib.sha256(b"").hexdigest()
SKEW_S = 15 * 60
EXPIRES_MOST_S = 7 * 86400
_STAMP = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Denied(Exception):
    def __init__(self, code: str, message: str, status: int = 403):
        super().__init__(message)
        self.code, self.status = code, status


@dataclass(frozen=True)
class Keys:
    access: str
    secret: str
    token: str = ""


@dataclass(frozen=True)
class Signed:
    """What a verified signature leaves behind: the seed for the signatures of an aws-chunked
    body."""

    access: str
    signature: str
    scope: str
    stamp: str
    key: bytes


def _hmac(key: bytes, text: str) -> bytes:
    return hmac.new(key, text.encode("utf-8", "surrogateescape"), hashlib.sha256).digest()


def signing_key(secret: str, day: str, region: str, service: str = "s3") -> bytes:
    return _hmac(
        _hmac(_hmac(_hmac(b"AWS4" + secret.encode(), day), region), service), "aws4_request"
    )


def encode(text: str, safe: str = "") -> str:
    return quote(text, safe=safe + "-_.~", errors="surrogateescape")


def canonical_query(raw_query: str, leave_out: str = "") -> str:
    pairs = parse_qsl(raw_query, keep_blank_values=True, errors="surrogateescape")
    return "&".join(
        f"{k}={v}" for k, v in sorted((encode(k), encode(v)) for k, v in pairs if k != leave_out)
    )


def canonical_request(
    method: str,
    raw_path: str,
    query: str,
    headers: Mapping[str, str],
    names: list[str],
    payload: str,
) -> str:
    path = encode(unquote(raw_path, errors="surrogateescape"), "/") or "/"
    lines = "".join(f"{n}:{' '.join(headers.get(n, '').split())}\n" for n in names)
    return f"{method}\n{path}\n{query}\n{lines}\n{';'.join(names)}\n{payload}"


def as_sent(value: str) -> str:
    """A header read as latin-1: clients sign the text whose UTF-8 they sent."""
    return value if value.isascii() else value.encode("latin-1").decode("utf-8", "surrogateescape")


def text_to_sign(stamp: str, scope: str, canonical: str) -> str:
    digest = hashlib.sha256(canonical.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{ALGORITHM}\n{stamp}\n{scope}\n{digest}"


def sign(
    method: str,
    url: str,
    headers: Mapping[str, str],
    keys: Keys,
    *,
    region: str = "us-east-1",
    payload: str = UNSIGNED,
    now: datetime.datetime | None = None,
) -> dict[str, str]:
    """The given headers plus those that make the request a signed one, Host among them: what is
    sent is what was signed. `payload`: hex SHA-256 of the body, or UNSIGNED."""
    parts, (place, _) = urlsplit(url), split(url)
    stamp = (now or datetime.datetime.now(datetime.timezone.utc)).strftime("%Y%m%dT%H%M%SZ")
    signed = {
        **headers,
        "Host": place.netloc,
        "x-amz-date": stamp,
        "x-amz-content-sha256": payload,
    }
    if keys.token:
        signed["x-amz-security-token"] = keys.token
    lower = {k.lower(): v for k, v in signed.items()}
    # Not signed: what a proxy may change on the way.
    names = sorted(
        n
        for n in lower
        if n.startswith("x-amz-") or n in ("host", "range", "content-type", "content-md5")
    )
    scope = f"{stamp[:8]}/{region}/s3/aws4_request"
    canonical = canonical_request(
        method, parts.path or "/", canonical_query(parts.query), lower, names, payload
    )
    signature = hmac.new(
        signing_key(keys.secret, stamp[:8], region),
        text_to_sign(stamp, scope, canonical).encode(),
        hashlib.sha256,
    ).hexdigest()
    signed["Authorization"] = (
        f"{ALGORITHM} Credential={keys.access}/{scope}, SignedHeaders={';'.join(names)},"
        f" Signature={signature}"
    )
    return signed


def _stamp(date: str) -> str:
    """Of a Date header, which may stand for x-amz-date; "" for none that can be read."""
    at_s = http_date(date)
    if at_s is None:
        return ""
    return datetime.datetime.fromtimestamp(at_s, datetime.timezone.utc).strftime("%Y%m%dT%H%M%SZ")


def check(
    request: Request, keys: Mapping[str, str], now: datetime.datetime | None = None
) -> Signed | None:
    """Verify header or presigned-URL signature. None: not signed at all. Raises Denied with S3's
    own error codes."""
    given, query = request.header("authorization"), request.query
    if given:
        kind, _, rest = given.partition(" ")
        if kind != ALGORITHM:
            raise Denied(
                "InvalidRequest", f"authorization by {kind[:40]!r} is not spoken here", 400
            )
        fields = dict(part.strip().partition("=")[::2] for part in rest.split(","))
        credential, names, signature = (
            fields.get("Credential", ""),
            fields.get("SignedHeaders", ""),
            fields.get("Signature", ""),
        )
        stamp, payload = (
            request.header("x-amz-date") or _stamp(request.header("date")),
            request.header("x-amz-content-sha256", UNSIGNED),
        )
        leave_out, valid_s = "", SKEW_S
    elif "X-Amz-Signature" in query:
        if query.get("X-Amz-Algorithm") != ALGORITHM:
            raise Denied("AuthorizationQueryParametersError", "unknown X-Amz-Algorithm", 400)
        credential, names, signature = (
            query.get("X-Amz-Credential", ""),
            query.get("X-Amz-SignedHeaders", ""),
            query["X-Amz-Signature"],
        )
        stamp, payload, leave_out = (
            query.get("X-Amz-Date", ""),
            query.get("X-Amz-Content-Sha256", UNSIGNED),
            "X-Amz-Signature",
        )
        try:
            valid_s = (
                decimal(query["X-Amz-Expires"], EXPIRES_MOST_S)
                if "X-Amz-Expires" in query
                else SKEW_S
            )
        except ValueError:
            raise Denied(
                "AuthorizationQueryParametersError",
                "X-Amz-Expires is not a number of seconds up to a week",
                400,
            ) from None
    else:
        return None
    access, *scope_parts = credential.rsplit("/", 4)
    if len(scope_parts) != 4 or not names or not signature:
        raise Denied(
            "AuthorizationHeaderMalformed",
            "the credential is not ACCESS/DAY/REGION/s3/aws4_request",
            400,
        )
    day, region, service, end = scope_parts
    if access not in keys:
        raise Denied("InvalidAccessKeyId", f"no access key {access[:60]!r} here")
    try:
        if not _STAMP.fullmatch(stamp):
            raise ValueError
        signed_at = datetime.datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(
            tzinfo=datetime.timezone.utc
        )
    except ValueError:
        raise Denied("AccessDenied", "a signed request needs x-amz-date") from None
    age_s = ((now or datetime.datetime.now(datetime.timezone.utc)) - signed_at).total_seconds()
    if not -SKEW_S <= age_s <= valid_s:
        raise Denied(
            "AccessDenied" if leave_out else "RequestTimeTooSkewed", f"signed {age_s:.0f} s ago"
        )
    listed = names.split(";")
    if "host" not in listed or day != stamp[:8] or end != "aws4_request":
        raise Denied(
            "AuthorizationHeaderMalformed",
            "host is not signed, or the scope is of another day",
            400,
        )
    scope, key = "/".join(scope_parts), signing_key(keys[access], day, region, service)
    canonical = canonical_request(
        request.method,
        request.raw_path,
        canonical_query(request.raw_query, leave_out),
        {n: as_sent(request.headers.get(n, "")) for n in listed},
        listed,
        payload,
    )
    wanted = hmac.new(
        key,
        text_to_sign(stamp, scope, canonical).encode("utf-8", "surrogateescape"),
        hashlib.sha256,
    ).hexdigest()
    if not hmac.compare_digest(wanted.encode(), signature.encode("utf-8", "surrogateescape")):
        raise Denied(
            "SignatureDoesNotMatch",
            "the signature does not match: wrong secret key, or the request was changed on the way",
        )
    return Signed(access, signature, scope, stamp, key)


def chunk_signature(before: str, signed: Signed, data_digest: str) -> str:
    """Signature of one chunk of STREAMING-AWS4-HMAC-SHA256-PAYLOAD, chained to the one before."""
    return hmac.new(
        signed.key,
        f"{ALGORITHM}-PAYLOAD\n{signed.stamp}\n{signed.scope}\n{before}\n{EMPTY}\n{data_digest}".encode(),
        hashlib.sha256,
    ).hexdigest()

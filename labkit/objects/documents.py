"""S3's documents: XML from clients, read with care; XML and errors for them.

    document(f"<LocationConstraint {XMLNS}/>")
    raise S3Error("NoSuchUpload", "no such upload")        # answered with its status and an <Error>

A document is at most 2 MiB, as in S3, and never has a document type. Source: S3's API reference.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import datetime
import re
import uuid
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping
from xml.sax.saxutils import escape

from labkit.core.digits import decimal
from labkit.net.message import Request, Response, text
from labkit.objects import sigv4

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
XML_MAX = 2 << 20
#: Statuses other than 400.
STATUS = {
    "AccessDenied": 403,
    "BucketNotEmpty": 409,
    "InvalidPartNumber": 416,
    "InvalidRange": 416,
    "MethodNotAllowed": 405,
    "MissingContentLength": 411,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchTagSet": 404,
    "NoSuchUpload": 404,
    "NoSuchVersion": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
    "SignatureDoesNotMatch": 403,
}
#: The one owner of everything here.
OWNER_ID, OWNER_NAME = "lab", "lab"
OWNER = f"<ID>{OWNER_ID}</ID><DisplayName>{OWNER_NAME}</DisplayName>"


class S3Error(Exception):
    """Of the code and the message that the client gets."""

    def __init__(
        self, code: str, message: str, status: int = 0, headers: Mapping[str, str] | None = None
    ):
        super().__init__(message)
        self.code, self.status, self.headers = code, status, headers or {}


def number(value: str, name: str) -> int:
    try:
        return decimal(value, 10**9 - 1)
    except ValueError:
        raise S3Error("InvalidArgument", f"{name} is not a number") from None


def parse(raw: bytes, root: str) -> ElementTree.Element:
    """Documents of clients: no DOCTYPE (entities are how XML bombs are made). Raises S3Error."""
    if b"<!DOCTYPE" in raw.upper() or b"<!ENTITY" in raw.upper():
        raise S3Error("MalformedXML", "a document type is not accepted")
    try:
        parsed = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        raise S3Error("MalformedXML", "not well-formed XML") from None
    if local(parsed) != root:
        raise S3Error("MalformedXML", f"not a {root} document")
    return parsed


def local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def fields(element: ElementTree.Element) -> dict[str, str]:
    """The text of its children, by name."""
    return {local(child): child.text or "" for child in element}


def escaped(name: str) -> str:
    # XML 1.0 cannot say control characters at all; clients that hold such keys ask for
    # encoding-type=url.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "\ufffd", escape(name))


def namer(request: Request) -> Callable[[str], str]:
    """How a listing writes names: as `encoding-type` asks for. Raises S3Error."""
    asked = request.query.get("encoding-type", "")
    if asked not in ("", "url"):
        raise S3Error("InvalidArgument", "encoding-type is url, or left out")
    return (lambda name: sigv4.encode(name, "/")) if asked else escaped


def iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )


def document(body: str, status: int = 200) -> Response:
    return text(status, '<?xml version="1.0" encoding="UTF-8"?>\n' + body, "application/xml")


def error_document(error: Exception, code: str, request: Request, status: int = 0) -> Response:
    """`status`: the code's own by default."""
    request_id = uuid.uuid4().hex[:16].upper()
    answer = document(
        f"<Error><Code>{code}</Code><Message>{escaped(str(error))}</Message>"
        f"<Resource>{escaped(request.path)}</Resource><RequestId>{request_id}</RequestId></Error>",
        status or getattr(error, "status", 0) or STATUS.get(code, 400),
    )
    answer.headers |= {"x-amz-request-id": request_id, **getattr(error, "headers", {})}
    return answer

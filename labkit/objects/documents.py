"""S3's documents: errors and lists as its clients expect them, and what clients send, read as
hostile input.

    text = document(f"<Name>{escaped(name)}</Name>")         # a Response with the XML head
    parsed = parse(request.body.read(XML_MAX), "Delete")     # raises S3Error: not well-formed, a
        DOCTYPE, another root

Limit: XML_MAX bytes a document. Source: S3's API reference. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import datetime
import re
import xml.etree.ElementTree as ElementTree
from xml.sax.saxutils import escape

from labkit.core.digits import decimal
from labkit.net.message import Request, Response, text

XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
XML_MAX = 2 << 20
STATUS = {
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "AccessDenied": 403,
    "BucketNotEmpty": 409,
    "BucketAlreadyOwnedByYou": 409,
    "PreconditionFailed": 412,
    "NotImplemented": 501,
    "MethodNotAllowed": 405,
    "SignatureDoesNotMatch": 403,
    "EntityTooLarge": 413,
}


class S3Error(Exception):
    """Of the code and the message that the client gets."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


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


def escaped(name: str) -> str:
    # XML 1.0 cannot say control characters at all; clients that hold such keys ask for
    # encoding-type=url.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "\ufffd", escape(name))


def iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime(
        "%Y-%m-%dT%H:%M:%S.000Z"
    )


def document(body: str, status: int = 200) -> Response:
    return text(status, '<?xml version="1.0" encoding="UTF-8"?>\n' + body, "application/xml")


def error_document(code: str, message: str, request: Request, status: int = 0) -> Response:
    """`status`: the code's own by default."""
    return document(
        f"<Error><Code>{code}</Code><Message>{escaped(message)}</Message>"
        f"<Resource>{escaped(request.path)}</Resource></Error>",
        status or STATUS.get(code, 400),
    )

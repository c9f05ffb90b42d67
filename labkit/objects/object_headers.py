"""What a client says about an object beside its bytes, and what is answered with them.

    about = said(request)                       # of a PUT, a copy with REPLACE, an upload's start
    answered(found, query) -> headers           # `response-content-type=…` goes before what is kept

Content-Encoding's `aws-chunked` frames the request and is no property of the object. Source: S3's
API reference, PutObject, GetObject. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from email.utils import formatdate
from urllib.parse import parse_qsl

from labkit.core.json_types import JsonObject
from labkit.net.message import Request
from labkit.objects.disk import Object
from labkit.objects.documents import S3Error

KEPT = (
    "Cache-Control",
    "Content-Disposition",
    "Content-Encoding",
    "Content-Language",
    "Expires",
)
OVERRIDES = {f"response-{name.lower()}": name for name in ("Content-Type", *KEPT)}
META = "x-amz-meta-"
META_MAX = 2048
TAGS_MAX, TAG_KEY_MAX, TAG_VALUE_MAX = 10, 128, 256


def said(request: Request) -> JsonObject:
    """Content type, headers, metadata and tags, as `Disk.keep` takes them. Raises S3Error."""
    headers = {name: value for name in KEPT if (value := request.header(name.lower()))}
    if coding := headers.pop("Content-Encoding", ""):
        own = [c for c in coding.split(",") if c.strip().lower() != "aws-chunked"]
        if own:
            headers["Content-Encoding"] = ",".join(own).strip()
    metadata = {
        name.removeprefix(META): value
        for name, value in request.headers.items()
        if name.startswith(META)
    }
    if sum(len(name) + len(value) for name, value in metadata.items()) > META_MAX:
        raise S3Error("MetadataTooLarge", f"metadata of an object has at most {META_MAX} bytes")
    return {
        "content_type": request.header("content-type"),
        "headers": headers,
        "metadata": metadata,
        "tags": tags_of(request.header("x-amz-tagging")),
    }


def kept(found: Object) -> JsonObject:
    """The same of an object that is there: what a copy takes over."""
    return {
        "content_type": found.content_type,
        "headers": found.headers,
        "metadata": found.metadata,
        "tags": found.tags,
    }


def tags_of(text: str) -> dict[str, str]:
    """`x-amz-tagging: a=b&c=d`. Raises S3Error."""
    return judged_tags(parse_qsl(text, keep_blank_values=True))


def judged_tags(pairs: list[tuple[str, str]]) -> dict[str, str]:
    """Raises S3Error for more or longer ones than S3 takes."""
    tags = dict(pairs)
    if len(pairs) > TAGS_MAX:
        raise S3Error("InvalidTag", f"an object has at most {TAGS_MAX} tags")
    if len(tags) < len(pairs):
        raise S3Error("InvalidTag", "a tag is given twice")
    for name, value in pairs:
        if not 1 <= len(name) <= TAG_KEY_MAX or len(value) > TAG_VALUE_MAX:
            raise S3Error("InvalidTag", "a tag's key has 1 to 128 characters, its value up to 256")
    return tags


def answered(found: Object, request: Request) -> dict[str, str]:
    """Headers of an answer about the object."""
    headers = {
        "Content-Type": found.content_type,
        "ETag": f'"{found.etag}"',
        "Last-Modified": formatdate(found.modified_s, usegmt=True),
        **found.headers,
        **{f"{META}{name}": value for name, value in found.metadata.items()},
    }
    if found.tags:
        headers["x-amz-tagging-count"] = str(len(found.tags))
    if found.checksums and request.header("x-amz-checksum-mode").upper() == "ENABLED":
        headers |= {f"x-amz-checksum-{name}": value for name, value in found.checksums.items()}
        headers["x-amz-checksum-type"] = found.checksum_type
    for key in OVERRIDES.keys() & request.query.keys():
        headers[OVERRIDES[key]] = request.query[key]
    return headers

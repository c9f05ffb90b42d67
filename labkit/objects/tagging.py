"""Tags of objects: kept, answered, replaced, removed.

Source: S3's API reference, PutObjectTagging. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os

from labkit.net.message import Response
from labkit.objects.call import Call
from labkit.objects.documents import (
    XML_MAX,
    XMLNS,
    S3Error,
    document,
    escaped,
    fields,
    local,
    parse,
)
from labkit.objects.object_headers import judged_tags


def get(call: Call) -> Response:
    fd, found = call.disk.open(call.bucket, call.key)
    os.close(fd)
    rows = "".join(
        f"<Tag><Key>{escaped(name)}</Key><Value>{escaped(value)}</Value></Tag>"
        for name, value in sorted(found.tags.items())
    )
    return document(f"<Tagging {XMLNS}><TagSet>{rows}</TagSet></Tagging>")


def put(call: Call) -> Response:
    """Raises S3Error."""
    pairs = []
    for one in parse(call.request.body.read(XML_MAX), "Tagging").iter():
        if local(one) == "Tag":
            tag = fields(one)
            if tag.keys() != {"Key", "Value"}:
                raise S3Error("MalformedXML", "a tag has a Key and a Value")
            pairs.append((tag["Key"], tag["Value"]))
    call.disk.tag(call.bucket, call.key, judged_tags(pairs))
    return Response(200)


def remove(call: Call) -> Response:
    call.disk.tag(call.bucket, call.key, {})
    return Response(204)

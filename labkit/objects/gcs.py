"""Google Cloud Storage's read paths over the same files: JSON list, metadata and media; the XML
path is S3's own GET.

Enough for `gs://` in runai-model-streamer and google-cloud-storage through an emulator endpoint;
reads only, unsigned. Source: Cloud Storage JSON API v1, Objects: get, list. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import datetime
import json
import os
import re
from urllib.parse import quote

from labkit.core.digits import decimal
from labkit.net.message import Request, Response, file_response, text
from labkit.objects.disk import Disk, Missing, Object, Unstorable

_ROUTE = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?")


def speaks(request: Request) -> bool:
    return request.path.startswith(("/storage/v1/", "/download/storage/v1/"))


def answer(disk: Disk, request: Request) -> Response:
    from urllib.parse import unquote

    if request.method not in ("GET", "HEAD"):
        return _error(501, "this store speaks GCS for reading only")
    if request.path in ("/storage/v1/b", "/storage/v1/b/"):
        return _json(
            {"kind": "storage#buckets", "items": [_bucket(name) for name, _ in disk.buckets()]}
        )
    # The object name is one percent-encoded path segment: match before decoding.
    match = _ROUTE.fullmatch(request.raw_path)
    if not match:
        return _error(404, "no such resource")
    bucket, key = (
        unquote(match[1]),
        (unquote(match[2], errors="surrogateescape") if match[2] else None),
    )
    try:
        if key is None and not request.raw_path.rstrip("/").endswith("/o"):
            disk.bucket(bucket)
            return _json(_bucket(bucket))
        if key is None:
            return _list(disk, request, bucket)
        fd, found = disk.open(bucket, key)
        if request.query.get("alt") == "media" or request.path.startswith("/download/"):
            return file_response(
                request,
                fd,
                found.size_bytes,
                {
                    "Content-Type": found.content_type,
                    "ETag": f'"{found.etag}"',
                    "x-goog-generation": _generation(found),
                    "x-goog-metageneration": "1",
                    "x-goog-stored-content-length": str(found.size_bytes),
                    "x-goog-stored-content-encoding": "identity",
                },
            )
        os.close(fd)
        return _json(_resource(found))
    except Missing as error:
        return _error(404, str(error))
    except Unstorable as error:
        return _error(400, str(error))


def _list(disk: Disk, request: Request, bucket: str) -> Response:
    query = request.query
    try:
        limit = decimal(query["maxResults"]) if query.get("maxResults") else 1000
    except ValueError:
        return _error(400, "maxResults is not a number")
    token = query.get("pageToken", "")
    after = (
        bytes.fromhex(token).decode("utf-8", "surrogateescape")
        if re.fullmatch(r"(?:[0-9a-f]{2})+", token)
        else ""
    )
    objects, folders, more = disk.listing(
        bucket, query.get("prefix", ""), query.get("delimiter", ""), after, max(1, min(limit, 1000))
    )
    doc: dict = {"kind": "storage#objects", "items": [_resource(o) for o in objects]}
    if folders:
        doc["prefixes"] = folders
    if more:
        doc["nextPageToken"] = more.encode("utf-8", "surrogateescape").hex()
    return _json(doc)


def _generation(found: Object) -> str:
    return str(max(1, int(found.modified_s * 1e6)))


def _bucket(name: str) -> dict:
    return {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "location": "US",
        "storageClass": "STANDARD",
        "metageneration": "1",
        "projectNumber": "1",
        "timeCreated": "2020-01-01T00:00:00.000Z",
        "updated": "2020-01-01T00:00:00.000Z",
    }


def _resource(found: Object) -> dict:
    stamp = (
        datetime.datetime.fromtimestamp(found.modified_s, datetime.timezone.utc).strftime(
            "%Y-%m-%dT%H:%M:%S.%f"
        )[:-3]
        + "Z"
    )
    path = f"/storage/v1/b/{found.bucket}/o/{quote(found.key, safe='', errors='surrogateescape')}"
    return {
        "kind": "storage#object",
        "id": f"{found.bucket}/{found.key}/{_generation(found)}",
        "name": found.key,
        "bucket": found.bucket,
        "selfLink": path,
        "mediaLink": f"/download{path}?alt=media",
        "generation": _generation(found),
        "metageneration": "1",
        "contentType": found.content_type,
        "storageClass": "STANDARD",
        "size": str(found.size_bytes),
        "etag": found.etag,
        "timeCreated": stamp,
        "updated": stamp,
    }


def _json(doc: dict, status: int = 200) -> Response:
    return text(status, json.dumps(doc), "application/json; charset=UTF-8")


def _error(status: int, message: str) -> Response:
    return _json(
        {
            "error": {
                "code": status,
                "message": message,
                "errors": [
                    {"message": message, "reason": "notFound" if status == 404 else "invalid"}
                ],
            }
        },
        status,
    )

"""Google Cloud Storage's read paths over the same files: JSON list, metadata and media; the XML
path is S3's own GET.

Enough for `gs://` in runai-model-streamer, gcsfs and google-cloud-storage through an emulator
endpoint; reads only, unsigned. What would be read otherwise (a precondition, another generation, a
part of the names) is done or refused, as in `labkit.objects.operations`. Source: Cloud Storage JSON
API v1, Objects: get, list. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import base64
import datetime
import json
import os
import re
from collections.abc import Callable
from urllib.parse import quote, unquote

from labkit.core.digits import decimal
from labkit.core.json_types import JsonObject
from labkit.net.message import Request, Response, file_response, text
from labkit.objects.disk import Disk, Missing, Object, Unstorable
from labkit.objects.object_headers import KEPT, answered

PAGE_MAX = 1000
_ROUTE = re.compile(r"/(?:download/)?storage/v1/b/([^/]+)(?:/o(?:/(.+))?)?")
_PATHS = (
    "/storage/v1/",
    "/download/storage/v1/",
    "/upload/storage/v1/",
    "/resumable/upload/storage/",
)
#: Parameters of every method: how the answer is written, and who pays.
_COMMON = frozenset(
    {"alt", "fields", "key", "prettyPrint", "projection", "quotaUser", "userIp", "userProject"}
)
_IF_METAGENERATION = frozenset({"ifMetagenerationMatch", "ifMetagenerationNotMatch"})
_KNOWN = {
    "buckets": frozenset({"project", "prefix", "maxResults", "pageToken"}),
    "bucket": _IF_METAGENERATION,
    "objects": frozenset(
        {"delimiter", "endOffset", "matchGlob", "maxResults", "pageToken", "prefix", "startOffset"}
    ),
    "object": _IF_METAGENERATION | {"generation", "ifGenerationMatch", "ifGenerationNotMatch"},
}
#: Every bucket and object of this store has the first.
METAGENERATION = 1


class GCSError(Exception):
    """Of the status and the message that the client gets."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


def speaks(request: Request) -> bool:
    return request.path.startswith(_PATHS) or (
        request.path == "/batch/storage/v1" and request.method == "POST"
    )


def answer(disk: Disk, request: Request, open_reads: bool = True) -> Response:
    try:
        return _answer(disk, request, open_reads)
    except GCSError as error:
        return _error(error.status, str(error))
    except Missing as error:
        return _error(404, str(error))
    except Unstorable as error:
        return _error(400, str(error))


def _answer(disk: Disk, request: Request, open_reads: bool) -> Response:
    if request.method not in ("GET", "HEAD"):
        raise GCSError(501, "this store speaks GCS for reading only: write with S3's API")
    if not open_reads:
        raise GCSError(401, "this bucket is private, and GCS's sign-in is not spoken here")
    if request.path in ("/storage/v1/b", "/storage/v1/b/"):
        _judge(request, "buckets")
        prefix = request.query.get("prefix", "")
        names = [name for name, _ in disk.buckets() if name.startswith(prefix)]
        return _json({"kind": "storage#buckets", "items": [_bucket(name) for name in names]})
    # The object name is one percent-encoded path segment: match before decoding.
    match = _ROUTE.fullmatch(request.raw_path)
    if not match:
        raise GCSError(404, "no such resource")
    bucket = unquote(match[1])
    if match[2] is None and not request.raw_path.rstrip("/").endswith("/o"):
        _judge(request, "bucket")
        disk.bucket(bucket)
        _check(request, "Metageneration", METAGENERATION)
        return _json(_bucket(bucket))
    if match[2] is None:
        _judge(request, "objects")
        return _list(disk, request, bucket)
    _judge(request, "object")
    return _object(disk, request, bucket, unquote(match[2], errors="surrogateescape"))


def _judge(request: Request, about: str) -> None:
    if not request.query:
        return
    if unknown := sorted(request.query.keys() - _COMMON - _KNOWN[about]):
        raise GCSError(501, f"this store has no parameter {unknown[0][:60]!r} of {about}")


def _number(request: Request, name: str) -> int | None:
    if name not in request.query:
        return None
    try:
        return decimal(request.query[name])
    except ValueError:
        raise GCSError(400, f"{name} is not a number") from None


def _check(request: Request, name: str, have: int) -> None:
    """Raises GCSError where the object is not in the state asked for."""
    wanted, unwanted = (_number(request, f"if{name}{end}") for end in ("Match", "NotMatch"))
    if wanted is not None and wanted != have:
        raise GCSError(412, f"the {name.lower()} is {have}, not {wanted}")
    if unwanted is not None and unwanted == have:
        raise GCSError(304, f"the {name.lower()} is {have}")


def _object(disk: Disk, request: Request, bucket: str, key: str) -> Response:
    fd, found = disk.open(bucket, key)
    try:
        generation = _number(request, "generation")
        if generation is not None and generation != _generation(found):
            raise GCSError(404, f"no generation {generation} of {key[:200]!r}")
        _check(request, "Generation", _generation(found))
        _check(request, "Metageneration", METAGENERATION)
    except GCSError:
        os.close(fd)
        raise
    if request.query.get("alt") == "media" or request.path.startswith("/download/"):
        return file_response(request, fd, found.size_bytes, _media_headers(found, request))
    os.close(fd)
    return _json(_resource(found, request))


def _media_headers(found: Object, request: Request) -> dict[str, str]:
    headers = answered(found, request) | {
        "x-goog-generation": str(_generation(found)),
        "x-goog-metageneration": str(METAGENERATION),
        "x-goog-stored-content-length": str(found.size_bytes),
        "x-goog-stored-content-encoding": found.headers.get("Content-Encoding", "identity"),
    }
    if hashes := _hashes(found):
        headers["x-goog-hash"] = ",".join(f"{name}={value}" for name, value in hashes.items())
    return headers


def _hashes(found: Object) -> dict[str, str]:
    """Those that are known without reading the object."""
    hashes = {}
    if "crc32c" in found.checksums and found.checksum_type == "FULL_OBJECT":
        hashes["crc32c"] = found.checksums["crc32c"]
    if re.fullmatch("[0-9a-f]{32}", found.etag):
        hashes["md5"] = base64.b64encode(bytes.fromhex(found.etag)).decode()
    return hashes


def _list(disk: Disk, request: Request, bucket: str) -> Response:
    query = request.query
    most = _number(request, "maxResults") or PAGE_MAX
    token = query.get("pageToken", "")
    if token and not re.fullmatch(r"(?:[0-9a-f]{2})+", token):
        raise GCSError(400, "the page token is not one of ours")
    objects, folders, more = disk.listing(
        bucket,
        query.get("prefix", ""),
        query.get("delimiter", ""),
        bytes.fromhex(token).decode("utf-8", "surrogateescape"),
        min(most, PAGE_MAX),
        _wanted(query),
    )
    doc: JsonObject = {
        "kind": "storage#objects",
        "items": [_resource(found, request) for found in objects],
    }
    if folders:
        doc["prefixes"] = folders
    if more:
        doc["nextPageToken"] = more.encode("utf-8", "surrogateescape").hex()
    return _json(doc)


def _wanted(query: dict[str, str]) -> Callable[[str], bool] | None:
    """Which names a listing is of, beside the prefix; None: all."""
    start, end = (
        query.get(name, "").encode("utf-8", "surrogateescape")
        for name in ("startOffset", "endOffset")
    )
    glob = re.compile(glob_regex(query["matchGlob"])) if query.get("matchGlob") else None
    if not (start or end or glob):
        return None

    def wanted(key: str) -> bool:
        raw = key.encode("utf-8", "surrogateescape")
        return (
            raw >= start and (not end or raw < end) and (glob is None or bool(glob.fullmatch(key)))
        )

    return wanted


_GLOB = re.compile(r"\*\*/|\*\*|\*|\?|\[[!^]?[^]]+\]|\{[^{}]*\}|(?s:.)")
_AS_REGEX = {"**/": "(?s:.*/)?", "**": "(?s:.*)", "*": "[^/]*", "?": "[^/]"}


def glob_regex(glob: str) -> str:
    """`a/*.bin`, `**/x`, `[ab]?`, `{a,b}`, as Cloud Storage reads them."""
    regex = ""
    for found in _GLOB.finditer(glob):
        one = found[0]
        if one in _AS_REGEX:
            regex += _AS_REGEX[one]
        elif len(one) > 1 and one[0] == "[":
            inside = one[1:-1].lstrip("!^")
            safe = re.sub(r"([\\\[\]^&~|])", r"\\\1", inside)
            regex += f"[{'^' if one[1] in '!^' else ''}{safe}]"
        elif len(one) > 1:
            regex += f"(?:{'|'.join(glob_regex(part) for part in one[1:-1].split(','))})"
        else:
            regex += re.escape(one)
    return regex


def _generation(found: Object) -> int:
    return max(1, int(found.modified_s * 1e6))


def _bucket(name: str) -> JsonObject:
    return {
        "kind": "storage#bucket",
        "id": name,
        "name": name,
        "location": "US",
        "storageClass": "STANDARD",
        "metageneration": str(METAGENERATION),
        "projectNumber": "1",
        "timeCreated": "2020-01-01T00:00:00.000Z",
        "updated": "2020-01-01T00:00:00.000Z",
    }


def _resource(found: Object, request: Request) -> JsonObject:
    stamp = (
        datetime.datetime.fromtimestamp(found.modified_s, datetime.timezone.utc).strftime(
            "%Y-%m-%dT%H:%M:%S.%f"
        )[:-3]
        + "Z"
    )
    host, generation = f"http://{request.header('host')}", str(_generation(found))
    path = f"/storage/v1/b/{found.bucket}/o/{quote(found.key, safe='', errors='surrogateescape')}"
    hashes = _hashes(found)
    doc: JsonObject = {
        "kind": "storage#object",
        "id": f"{found.bucket}/{found.key}/{generation}",
        "name": found.key,
        "bucket": found.bucket,
        "selfLink": f"{host}{path}",
        "mediaLink": f"{host}/download{path}?generation={generation}&alt=media",
        "generation": generation,
        "metageneration": str(METAGENERATION),
        "contentType": found.content_type,
        "storageClass": "STANDARD",
        "size": str(found.size_bytes),
        "etag": found.etag,
        "timeCreated": stamp,
        "updated": stamp,
        **{
            name[0].lower() + name[1:].replace("-", ""): found.headers[name]
            for name in KEPT
            if name in found.headers and name != "Expires"
        },
    }
    if "crc32c" in hashes:
        doc["crc32c"] = hashes["crc32c"]
    if "md5" in hashes:
        doc["md5Hash"] = hashes["md5"]
    if found.metadata:
        doc["metadata"] = found.metadata
    return doc


def _json(doc: JsonObject, status: int = 200) -> Response:
    return text(status, json.dumps(doc), "application/json; charset=UTF-8")


_REASONS = {401: "required", 404: "notFound", 412: "conditionNotMet", 501: "notImplemented"}


def _error(status: int, message: str) -> Response:
    if status == 304:
        return Response(304)
    reason = _REASONS.get(status, "invalid")
    return _json(
        {
            "error": {
                "code": status,
                "message": message,
                "errors": [{"message": message, "reason": reason}],
            }
        },
        status,
    )

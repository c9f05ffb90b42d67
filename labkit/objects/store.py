"""The embedded object store: S3's everyday API, path-style, over plain files, on an emulated link.

Physical limit: what `labkit.net.server` sends; ranges of one object go out by sendfile, whatever the number of
connections. Reads may be unsigned; a signature that is there is checked; writes want one.

    labkit store serve --root DIR --link 1gbit-bucket
    AWS_ENDPOINT_URL=http://127.0.0.1:PORT AWS_ACCESS_KEY_ID=labkit AWS_SECRET_ACCESS_KEY=labkit-not-a-secret  …any S3 client…

Reference for its behaviour: moto and S3's API reference (the tests ask boto3). It is ours because nothing packaged is
fast enough: moto re-reads the object for every range (0.03 GB/s). Lesson: notebooks/02_image_pull, notebooks/05_streaming.
"""

from __future__ import annotations

import datetime
import os
import re
import xml.etree.ElementTree as ElementTree
from email.utils import formatdate, parsedate_to_datetime
from pathlib import Path
from urllib.parse import unquote
from xml.sax.saxutils import escape

from labkit.net.message import BadMessage, Request, Response, file_response, text
from labkit.objects import gcs, sigv4
from labkit.objects.disk import Disk, Missing, Object, Unstorable
from labkit.objects.upload import Wrong, receive

#: The embedded store's only keys: for loopback, not a secret.
KEYS = {"labkit": "labkit-not-a-secret"}
XMLNS = 'xmlns="http://s3.amazonaws.com/doc/2006-03-01/"'
PART_MIN = 5 << 20
XML_MAX = 2 << 20
STATUS = {"NoSuchBucket": 404, "NoSuchKey": 404, "NoSuchUpload": 404, "AccessDenied": 403, "BucketNotEmpty": 409, "BucketAlreadyOwnedByYou": 409,
          "PreconditionFailed": 412, "NotImplemented": 501, "MethodNotAllowed": 405, "SignatureDoesNotMatch": 403, "EntityTooLarge": 413}
#: Sub-resources of S3 that this store does not have, and what SDKs then fall back on.
NOT_HERE = {"acl", "cors", "encryption", "lifecycle", "logging", "notification", "object-lock", "ownershipControls", "policy", "replication",
            "tagging", "torrent", "versions", "website", "attributes", "legal-hold", "retention", "select", "restore"}


class S3Error(Exception):
    def __init__(self, code: str, message: str, status: int = 0):
        super().__init__(message)
        self.code, self.status = code, status or STATUS.get(code, 400)


def environment(url: str, keys: dict[str, str] = KEYS) -> dict[str, str]:
    """What an SDK needs in its environment to find this store (AWS's, obstore's, runai-model-streamer's; GCS's too)."""
    access, secret = next(iter(keys.items()))
    return {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": access, "AWS_SECRET_ACCESS_KEY": secret, "AWS_REGION": "us-east-1",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", "AWS_ALLOW_HTTP": "true",
            "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0", "CLOUD_STORAGE_EMULATOR_ENDPOINT": url, "STORAGE_EMULATOR_HOST": url,
            "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true"}


class Store:
    """The application: `Server(Store(root), link=…)`. `open_writes`: unsigned writes are accepted too."""

    def __init__(self, root: str | os.PathLike[str], *, buckets: tuple[str, ...] = ("lab",), keys: dict[str, str] | None = None,
                 open_writes: bool = False):
        self.disk, self.keys, self.open_writes = Disk(root), KEYS if keys is None else keys, open_writes
        for bucket in buckets:
            self.disk.make_bucket(bucket)

    def __call__(self, request: Request) -> Response:
        try:
            if gcs.speaks(request):
                return gcs.answer(self.disk, request)
            return self._answer(request)
        except sigv4.Denied as error:
            return _error(error.code, str(error), error.status, request)
        except (S3Error, Wrong, Missing, Unstorable) as error:
            code = getattr(error, "code", getattr(error, "what", "InvalidArgument"))
            return _error(code, str(error), getattr(error, "status", 0) or STATUS.get(code, 400), request)

    def _answer(self, request: Request) -> Response:
        signed = sigv4.check(request, self.keys)
        if signed is None and not self.open_writes and request.method not in ("GET", "HEAD"):
            raise S3Error("AccessDenied", "an unsigned request may only read here")
        bucket, _, key = request.path[1:].partition("/")
        unknown = NOT_HERE & request.query.keys()
        if unknown:
            if "acl" not in unknown or request.method == "PUT":
                raise S3Error("NotImplemented", f"this store has no {', '.join(sorted(unknown))}")
        if not bucket:
            return self._buckets(request)
        return self._object(request, bucket, key, signed) if key else self._bucket(request, bucket)

    # -- buckets -------------------------------------------------------------------------------------------------

    def _buckets(self, request: Request) -> Response:
        if request.method not in ("GET", "HEAD"):
            raise S3Error("MethodNotAllowed", "only a list of buckets is here")
        rows = "".join(f"<Bucket><Name>{n}</Name><CreationDate>{_iso(t)}</CreationDate></Bucket>" for n, t in self.disk.buckets())
        return _xml(f"<ListAllMyBucketsResult {XMLNS}><Owner><ID>lab</ID></Owner><Buckets>{rows}</Buckets></ListAllMyBucketsResult>")

    def _bucket(self, request: Request, bucket: str) -> Response:
        query = request.query
        if request.method == "PUT":
            request.body.read(XML_MAX)
            if not self.disk.make_bucket(bucket):
                raise S3Error("BucketAlreadyOwnedByYou", f"{bucket} is there already")
            return Response(200, {"Location": f"/{bucket}"})
        self.disk.bucket(bucket)
        if request.method == "HEAD":
            return Response(200, {"x-amz-bucket-region": "us-east-1"})
        if request.method == "DELETE":
            if not self.disk.remove_bucket(bucket):
                raise S3Error("BucketNotEmpty", f"{bucket} still holds objects")
            return Response(204)
        if request.method == "POST" and "delete" in query:
            return self._delete_many(request, bucket)
        if request.method != "GET":
            raise S3Error("MethodNotAllowed", f"{request.method} on a bucket means nothing here")
        if "location" in query:
            return _xml(f"<LocationConstraint {XMLNS}></LocationConstraint>")
        if "versioning" in query:
            return _xml(f"<VersioningConfiguration {XMLNS}/>")
        if "uploads" in query:
            rows = "".join(f"<Upload><Key>{_escape(k)}</Key><UploadId>{u}</UploadId></Upload>" for k, u in self.disk.uploads_of(bucket))
            return _xml(f"<ListMultipartUploadsResult {XMLNS}><Bucket>{bucket}</Bucket><IsTruncated>false</IsTruncated>{rows}</ListMultipartUploadsResult>")
        return self._list(request, bucket)

    def _list(self, request: Request, bucket: str) -> Response:
        query, second = request.query, request.query.get("list-type") == "2"
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter", "")
        limit = min(1000, _number(query.get("max-keys", "1000"), "max-keys"))
        token = query.get("continuation-token", "")
        if token and not re.fullmatch(r"(?:[0-9a-f]{2})+", token):
            raise S3Error("InvalidArgument", "the continuation token is not one of ours")
        after = bytes.fromhex(token).decode("utf-8", "surrogateescape") if token else query.get("start-after" if second else "marker", "")
        objects, folders, more = self.disk.listing(bucket, prefix, delimiter, after, limit) if limit else ([], [], "")
        url = query.get("encoding-type") == "url"

        def show(name: str) -> str:
            return sigv4.encode(name, "/") if url else _escape(name)

        rows = "".join(f"<Contents><Key>{show(o.key)}</Key><LastModified>{_iso(o.modified_s)}</LastModified><ETag>&quot;{o.etag}&quot;</ETag>"
                       f"<Size>{o.size_bytes}</Size><StorageClass>STANDARD</StorageClass></Contents>" for o in objects)
        rows += "".join(f"<CommonPrefixes><Prefix>{show(f)}</Prefix></CommonPrefixes>" for f in folders)
        head = f"<Name>{bucket}</Name><Prefix>{show(prefix)}</Prefix><MaxKeys>{limit}</MaxKeys><IsTruncated>{'true' if more else 'false'}</IsTruncated>"
        if delimiter:
            head += f"<Delimiter>{show(delimiter)}</Delimiter>"
        if url:
            head += "<EncodingType>url</EncodingType>"
        if second:
            head += f"<KeyCount>{len(objects) + len(folders)}</KeyCount>"
            head += f"<ContinuationToken>{token}</ContinuationToken>" if token else ""
            head += f"<NextContinuationToken>{more.encode('utf-8', 'surrogateescape').hex()}</NextContinuationToken>" if more else ""
        else:
            head += f"<Marker>{show(after)}</Marker>" + (f"<NextMarker>{show(more)}</NextMarker>" if more else "")
        return _xml(f"<ListBucketResult {XMLNS}>{head}{rows}</ListBucketResult>")

    def _delete_many(self, request: Request, bucket: str) -> Response:
        gone = []
        for one in _parse_xml(request.body.read(XML_MAX), "Delete").iter():
            if _local(one) == "Object":
                key = next((c.text or "" for c in one if _local(c) == "Key"), "")
                self.disk.remove(bucket, key)
                gone.append(f"<Deleted><Key>{_escape(key)}</Key></Deleted>")
        return _xml(f"<DeleteResult {XMLNS}>{''.join(gone)}</DeleteResult>")

    # -- objects -------------------------------------------------------------------------------------------------

    def _object(self, request: Request, bucket: str, key: str, signed: sigv4.Signed | None) -> Response:
        method, query = request.method, request.query
        if "uploadId" in query or "uploads" in query:
            return self._multipart(request, bucket, key, signed)
        if method in ("GET", "HEAD"):
            return self._get(request, bucket, key)
        if method == "PUT":
            if "x-amz-copy-source" in request.headers:
                return self._copy(request, bucket, key)
            return self._put(request, bucket, key, signed)
        if method == "DELETE":
            self.disk.remove(bucket, key)
            return Response(204)
        raise S3Error("MethodNotAllowed", f"{method} on an object means nothing here")

    def _get(self, request: Request, bucket: str, key: str) -> Response:
        fd, found = self.disk.open(bucket, key)
        headers = {"Content-Type": found.content_type, "ETag": f'"{found.etag}"', "Last-Modified": formatdate(found.modified_s, usegmt=True),
                   **{f"x-amz-meta-{k}": v for k, v in found.metadata.items()}}
        verdict = _precondition(request, found)
        if verdict:
            os.close(fd)
            if verdict == 304:
                return Response(304, headers)
            raise S3Error("PreconditionFailed", "a precondition of the request does not hold")
        if request.header("if-range") and request.header("if-range").strip('"') != found.etag:
            request.headers.pop("range", None)
        return file_response(request, fd, found.size_bytes, headers)

    def _put(self, request: Request, bucket: str, key: str, signed: sigv4.Signed | None) -> Response:
        self.disk.path(bucket, key)
        self._may_write(request, bucket, key)
        target = self.disk.incoming()
        try:
            arrived = receive(request, target, signed)
            made = self.disk.keep(bucket, key, target, etag=arrived.md5, checksums=arrived.checksums, **_about(request))
        finally:
            target.unlink(missing_ok=True)
        return Response(200, {"ETag": f'"{made.etag}"', **{f"x-amz-checksum-{k}": v for k, v in arrived.checksums.items()}})

    def _may_write(self, request: Request, bucket: str, key: str) -> None:
        if request.header("if-none-match") == "*" or request.header("if-match"):
            try:
                fd, found = self.disk.open(bucket, key)
            except Missing:
                if request.header("if-match"):
                    raise
                return
            os.close(fd)
            if not request.header("if-match") or request.header("if-match").strip('"') != found.etag:
                raise S3Error("PreconditionFailed", "the object is there already, or is another one")

    def _copy(self, request: Request, bucket: str, key: str) -> Response:
        source = unquote(request.header("x-amz-copy-source").partition("?")[0], errors="surrogateescape").removeprefix("/")
        from_bucket, _, from_key = source.partition("/")
        fd, found = self.disk.open(from_bucket, from_key)
        os.close(fd)
        target = self.disk.incoming()
        try:
            self.disk.join([self.disk.path(from_bucket, from_key)], target)
            about = _about(request) if request.header("x-amz-metadata-directive").upper() == "REPLACE" else {
                "content_type": found.content_type, "metadata": found.metadata}
            made = self.disk.keep(bucket, key, target, etag=found.etag, **about)
        finally:
            target.unlink(missing_ok=True)
        return _xml(f'<CopyObjectResult {XMLNS}><ETag>&quot;{made.etag}&quot;</ETag><LastModified>{_iso(made.modified_s)}</LastModified></CopyObjectResult>')

    def _multipart(self, request: Request, bucket: str, key: str, signed: sigv4.Signed | None) -> Response:
        import hashlib

        method, query = request.method, request.query
        if method == "POST" and "uploads" in query:
            upload = self.disk.upload_start(bucket, key, _about(request))
            return _xml(f"<InitiateMultipartUploadResult {XMLNS}><Bucket>{bucket}</Bucket><Key>{_escape(key)}</Key><UploadId>{upload}</UploadId>"
                        "</InitiateMultipartUploadResult>")
        folder = self.disk.upload(bucket, key, query.get("uploadId", ""))
        if method == "PUT":
            number = _number(query.get("partNumber", ""), "partNumber")
            if not 1 <= number <= 10_000:
                raise S3Error("InvalidArgument", "part numbers go from 1 to 10000")
            if "x-amz-copy-source" in request.headers:
                raise S3Error("NotImplemented", "this store does not copy parts")
            target = self.disk.incoming()
            try:
                arrived = receive(request, target, signed)
                self.disk.part_keep(folder, number, target, arrived.md5)
            finally:
                target.unlink(missing_ok=True)
            return Response(200, {"ETag": f'"{arrived.md5}"', **{f"x-amz-checksum-{k}": v for k, v in arrived.checksums.items()}})
        if method == "GET":
            rows = "".join(f"<Part><PartNumber>{n}</PartNumber><ETag>&quot;{m}&quot;</ETag><Size>{p.stat().st_size}</Size></Part>"
                           for n, m, p in self.disk.parts(folder))
            return _xml(f"<ListPartsResult {XMLNS}><Bucket>{bucket}</Bucket><Key>{_escape(key)}</Key><IsTruncated>false</IsTruncated>{rows}</ListPartsResult>")
        if method == "DELETE":
            _remove(folder)
            return Response(204)
        if method != "POST":
            raise S3Error("MethodNotAllowed", f"{method} on an upload means nothing")
        have = {n: (m, p) for n, m, p in self.disk.parts(folder)}
        wanted = []
        for one in _parse_xml(request.body.read(XML_MAX), "CompleteMultipartUpload"):
            fields = {_local(c): (c.text or "").strip() for c in one}
            wanted.append((_number(fields.get("PartNumber", ""), "PartNumber"), fields.get("ETag", "").strip('"')))
        if not wanted or [n for n, _ in wanted] != sorted({n for n, _ in wanted}):
            raise S3Error("InvalidPartOrder" if wanted else "MalformedXML", "parts must be listed once each, in ascending order")
        for at, (number, etag) in enumerate(wanted):
            if number not in have or have[number][0] != etag:
                raise S3Error("InvalidPart", f"part {number} was not uploaded, or with other bytes")
            if at < len(wanted) - 1 and have[number][1].stat().st_size < PART_MIN:
                raise S3Error("EntityTooSmall", f"part {number} is below 5 MiB and not the last")
        import json

        about = json.loads((folder / "about.json").read_text())
        target = self.disk.incoming()
        try:
            self.disk.join([have[n][1] for n, _ in wanted], target)
            joined = hashlib.md5(b"".join(bytes.fromhex(e) for _, e in wanted), usedforsecurity=False).hexdigest()
            made = self.disk.keep(bucket, key, target, etag=f"{joined}-{len(wanted)}", content_type=about.get("content_type", ""),
                                  metadata=about.get("metadata"))
        finally:
            target.unlink(missing_ok=True)
        _remove(folder)
        return _xml(f"<CompleteMultipartUploadResult {XMLNS}><Location>/{bucket}/{_escape(key)}</Location><Bucket>{bucket}</Bucket><Key>{_escape(key)}</Key>"
                    f"<ETag>&quot;{made.etag}&quot;</ETag></CompleteMultipartUploadResult>")


def _about(request: Request) -> dict:
    return {"content_type": request.header("content-type"),
            "metadata": {k.removeprefix("x-amz-meta-"): v for k, v in request.headers.items() if k.startswith("x-amz-meta-")}}


def _precondition(request: Request, found: Object) -> int:
    """0, 304 or 412, in the order of RFC 9110 section 13."""
    def listed(name: str) -> list[str]:
        return [t.strip().removeprefix("W/").strip('"') for t in request.header(name).split(",")]

    def when(name: str) -> float | None:
        try:
            return parsedate_to_datetime(request.header(name)).timestamp()
        except (TypeError, ValueError):
            return None

    if request.header("if-match"):
        if not {"*", found.etag} & set(listed("if-match")):
            return 412
    elif (since := when("if-unmodified-since")) is not None and int(found.modified_s) > since:
        return 412
    if request.header("if-none-match"):
        if {"*", found.etag} & set(listed("if-none-match")):
            return 304
    elif (since := when("if-modified-since")) is not None and int(found.modified_s) <= since:
        return 304
    return 0


def _remove(folder: Path) -> None:
    import shutil

    shutil.rmtree(folder, ignore_errors=True)


def _number(value: str, name: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise S3Error("InvalidArgument", f"{name} is not a number")
    return int(value)


def _parse_xml(raw: bytes, root: str) -> ElementTree.Element:
    """Documents of clients: no DOCTYPE (entities are how XML bombs are made). Raises S3Error."""
    if b"<!DOCTYPE" in raw.upper() or b"<!ENTITY" in raw.upper():
        raise S3Error("MalformedXML", "a document type is not accepted")
    try:
        parsed = ElementTree.fromstring(raw)
    except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
        raise S3Error("MalformedXML", "not well-formed XML") from None
    if _local(parsed) != root:
        raise S3Error("MalformedXML", f"not a {root} document")
    return parsed


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _escape(name: str) -> str:
    # XML 1.0 cannot say control characters at all; clients that hold such keys ask for encoding-type=url.
    return re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]", "\ufffd", escape(name))


def _iso(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _xml(body: str, status: int = 200) -> Response:
    return text(status, '<?xml version="1.0" encoding="UTF-8"?>\n' + body, "application/xml")


def _error(code: str, message: str, status: int, request: Request) -> Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{_escape(message)}</Message><Resource>{_escape(request.path)}</Resource></Error>", status)


__all__ = ["KEYS", "BadMessage", "S3Error", "Store", "environment"]

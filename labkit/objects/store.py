"""The embedded object store: S3's everyday API, path-style, over plain files, on an emulated link.

Physical limit: what `labkit.net.server` sends; ranges of one object go out by sendfile, whatever
the number of connections. Reads may be unsigned; a signature that is there is checked; writes want
one.

    labkit store serve --root DIR --link 1gbit-bucket
    AWS_ENDPOINT_URL=http://127.0.0.1:PORT AWS_ACCESS_KEY_ID=labkit
        AWS_SECRET_ACCESS_KEY=labkit-not-a-secret  …any S3 client…

Reference for its behaviour: moto and S3's API reference (the tests ask boto3). It is ours because
nothing packaged is fast enough: moto re-reads the object for every range (0.03 GB/s). Lesson:
notebooks/02_image_pull, notebooks/05_streaming."""

from __future__ import annotations

import os
from email.utils import formatdate

from labkit.net.head import http_date
from labkit.net.message import Request, Response, file_response
from labkit.objects import buckets, gcs, multipart, sigv4
from labkit.objects.access import BUCKET
from labkit.objects.disk import Disk, Missing, Object, Unstorable
from labkit.objects.documents import XMLNS, S3Error, document, error_document, iso
from labkit.objects.upload import UploadMismatch, receipt, receive

#: The embedded store's only keys: for loopback, not a secret.
KEYS = {"labkit": "labkit-not-a-secret"}
#: Sub-resources of S3 that this store does not have, and what SDKs then fall back on.
NOT_HERE = {
    "acl",
    "cors",
    "encryption",
    "lifecycle",
    "logging",
    "notification",
    "object-lock",
    "ownershipControls",
    "policy",
    "replication",
    "tagging",
    "torrent",
    "versions",
    "website",
    "attributes",
    "legal-hold",
    "retention",
    "select",
    "restore",
}


def environment(url: str, keys: dict[str, str] = KEYS) -> dict[str, str]:
    """What an SDK needs in its environment to find this store (AWS's, obstore's,
    runai-model-streamer's; GCS's too)."""
    access, secret = next(iter(keys.items()))
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": access,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ALLOW_HTTP": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
        "CLOUD_STORAGE_EMULATOR_ENDPOINT": url,
        "STORAGE_EMULATOR_HOST": url,
        "RUNAI_STREAMER_GCS_USE_ANONYMOUS_CREDENTIALS": "true",
    }


class Store:
    """The application: `Server(Store(root), link=…)`. `open_writes`: unsigned writes are accepted
    too; `open_reads`: unsigned reads (a private bucket has neither)."""

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        buckets: tuple[str, ...] = (BUCKET,),
        keys: dict[str, str] | None = None,
        open_writes: bool = False,
        open_reads: bool = True,
    ):
        self.disk, self.keys, self.open_writes, self.open_reads = (
            Disk(root),
            KEYS if keys is None else keys,
            open_writes,
            open_reads,
        )
        for bucket in buckets:
            self.disk.make_bucket(bucket)

    def __call__(self, request: Request) -> Response:
        try:
            if gcs.speaks(request):
                return gcs.answer(self.disk, request)
            return self._answer(request)
        except sigv4.Denied as error:
            return error_document(error.code, str(error), request, error.status)
        except (S3Error, UploadMismatch, Missing, Unstorable) as error:
            return error_document(error.code, str(error), request)

    def _answer(self, request: Request) -> Response:
        signed = sigv4.check(request, self.keys)
        if signed is None and not (
            self.open_reads if request.method in ("GET", "HEAD") else self.open_writes
        ):
            raise S3Error(
                "AccessDenied",
                (
                    "an unsigned request may only read here"
                    if self.open_reads
                    else "this bucket is private"
                ),
            )
        bucket, _, key = request.path[1:].partition("/")
        unknown = NOT_HERE & request.query.keys()
        if unknown and ("acl" not in unknown or request.method == "PUT"):
            raise S3Error("NotImplemented", f"this store has no {', '.join(sorted(unknown))}")
        if not bucket:
            return buckets.all_buckets(self.disk, request)
        if not key:
            return buckets.answer(self.disk, request, bucket)
        return self._object(request, bucket, key, signed)

    def _object(
        self, request: Request, bucket: str, key: str, signed: sigv4.Signed | None
    ) -> Response:
        method, query = request.method, request.query
        if "uploadId" in query or "uploads" in query:
            return multipart.answer(self.disk, request, bucket, key, _about(request), signed)
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
        headers = {
            "Content-Type": found.content_type,
            "ETag": f'"{found.etag}"',
            "Last-Modified": formatdate(found.modified_s, usegmt=True),
            **{f"x-amz-meta-{k}": v for k, v in found.metadata.items()},
        }
        verdict = _precondition(request, found)
        if verdict:
            os.close(fd)
            if verdict == 304:
                return Response(304, headers)
            raise S3Error("PreconditionFailed", "a precondition of the request does not hold")
        if request.header("if-range") and request.header("if-range").strip('"') != found.etag:
            request.headers.pop("range", None)
        return file_response(request, fd, found.size_bytes, headers)

    def _put(
        self, request: Request, bucket: str, key: str, signed: sigv4.Signed | None
    ) -> Response:
        self.disk.path(bucket, key)
        self._may_write(request, bucket, key)
        with self.disk.incoming() as target:
            received = receive(request, target, signed)
            stored = self.disk.keep(
                bucket,
                key,
                target,
                etag=received.md5,
                checksums=received.checksums,
                **_about(request),
            )
        return receipt(stored.etag, received)

    def _may_write(self, request: Request, bucket: str, key: str) -> None:
        if request.header("if-none-match") == "*" or request.header("if-match"):
            try:
                fd, found = self.disk.open(bucket, key)
            except Missing:
                if request.header("if-match"):
                    raise
                return
            os.close(fd)
            if (
                not request.header("if-match")
                or request.header("if-match").strip('"') != found.etag
            ):
                raise S3Error(
                    "PreconditionFailed", "the object is there already, or is another one"
                )

    def _copy(self, request: Request, bucket: str, key: str) -> Response:
        from_bucket, from_key = multipart.copy_source(request)
        fd, found = self.disk.open(from_bucket, from_key)
        os.close(fd)
        with self.disk.incoming() as target:
            self.disk.join([self.disk.path(from_bucket, from_key)], target)
            about = (
                _about(request)
                if request.header("x-amz-metadata-directive").upper() == "REPLACE"
                else {"content_type": found.content_type, "metadata": found.metadata}
            )
            copy = self.disk.keep(bucket, key, target, etag=found.etag, **about)
        return document(
            "<CopyObjectResult"
            f" {XMLNS}><ETag>&quot;{copy.etag}&quot;</ETag>"
            f"<LastModified>{iso(copy.modified_s)}</LastModified></CopyObjectResult>"
        )


def _about(request: Request) -> dict:
    return {
        "content_type": request.header("content-type"),
        "metadata": {
            k.removeprefix("x-amz-meta-"): v
            for k, v in request.headers.items()
            if k.startswith("x-amz-meta-")
        },
    }


def _precondition(request: Request, found: Object) -> int:
    """0, 304 or 412, in the order of RFC 9110 section 13."""

    def listed(name: str) -> list[str]:
        return [t.strip().removeprefix("W/").strip('"') for t in request.header(name).split(",")]

    if request.header("if-match"):
        if not {"*", found.etag} & set(listed("if-match")):
            return 412
    elif (since := http_date(request.header("if-unmodified-since"))) is not None and int(
        found.modified_s
    ) > since:
        return 412
    if request.header("if-none-match"):
        if {"*", found.etag} & set(listed("if-none-match")):
            return 304
    elif (since := http_date(request.header("if-modified-since"))) is not None and int(
        found.modified_s
    ) <= since:
        return 304
    return 0

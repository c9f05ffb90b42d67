"""The embedded object store: S3's everyday API, path-style, over plain files, on an emulated link.
What it answers is the table in `labkit.objects.operations`; the rest is refused by name.

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

from labkit.net.message import Request, Response
from labkit.objects import gcs, operations, sigv2, sigv4
from labkit.objects.access import BUCKET
from labkit.objects.call import Call
from labkit.objects.disk import Disk, Missing, Unstorable
from labkit.objects.documents import S3Error, error_document
from labkit.objects.upload import UploadMismatch

#: The embedded store's only keys: for loopback, not a secret.
KEYS = {"labkit": "labkit-not-a-secret"}


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
                return gcs.answer(self.disk, request, self.open_reads)
            return self._answer(request)
        except (S3Error, UploadMismatch, Missing, Unstorable, sigv4.Denied) as error:
            return error_document(error, error.code, request)

    def _answer(self, request: Request) -> Response:
        signed = sigv2.check(request, self.keys) or sigv4.check(request, self.keys)
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
        operation = operations.find(request, bucket, key)
        return operation.handler(Call(self.disk, request, bucket, key, signed))

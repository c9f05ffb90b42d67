"""A bucket as the lab reads and writes it: the embedded store, S3, or Cloud Storage's S3-compatible
endpoint, by one code.

    with open_bucket("s3://lab/images", env) as bucket:             # endpoint and keys from the
        environment
        bucket.get("lab/subject/manifests/latest").body
        fetch_ranges(bucket.client, bucket.url("blobs/sha256/…"), size, into)      # signed per
            request

Requests are path-style. Without keys they are unsigned, which public buckets and the embedded
store's reads accept. `gs://` takes HMAC keys (GS_ACCESS_KEY_ID, GS_SECRET_ACCESS_KEY) or none.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import hashlib
import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from labkit.core.digits import decimal
from labkit.errors import TransferError
from labkit.net.client import Attempts, Client, HTTPStatusError, Retry
from labkit.net.http import Answer, ConnectionLost
from labkit.objects import sigv4
from labkit.objects.access import authorizer, endpoint_of, split_url

PART_BYTES = 16 << 20
BYTES = "application/octet-stream"


@dataclass(frozen=True)
class Listed:
    key: str
    size_bytes: int
    etag: str


class Bucket:
    """Keys are relative to the prefix."""

    def __init__(self, client: Client, endpoint: str, bucket: str, prefix: str = ""):
        self.client, self.endpoint, self.bucket, self.prefix = client, endpoint, bucket, prefix

    def key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def url(self, key: str) -> str:
        return f"{self.endpoint}/{self.bucket}/{sigv4.encode(self.key(key), '/')}"

    def get(self, key: str, limit_bytes: int = 64 << 20) -> Answer:
        """A small object, whole. Raises TransferError."""
        return self.client.ask("GET", self.url(key), limit_bytes=limit_bytes)

    def head(self, key: str) -> Answer | None:
        """Size (`size_bytes`) and headers; None when it is not there."""
        answer = self.client.ask("HEAD", self.url(key), ok=(200, 404))
        return answer if answer.status == 200 else None

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """All objects below a key prefix, in the order of their keys."""
        token = ""
        while True:
            query = f"list-type=2&prefix={sigv4.encode(self.key(prefix))}" + (
                f"&continuation-token={sigv4.encode(token)}" if token else ""
            )
            raw = self.client.ask("GET", f"{self.endpoint}/{self.bucket}?{query}").body
            doc = self._document(raw, "a listing")
            space = doc.tag.partition("}")[0] + "}" if "}" in doc.tag else ""
            strip = len(self.prefix) + 1 if self.prefix else 0
            for one in doc.iter(f"{space}Contents"):
                try:
                    size_bytes = decimal((one.findtext(f"{space}Size") or "0").strip())
                except ValueError:
                    raise TransferError(
                        f"{self.endpoint} lists an object with a size that is no number"
                    ) from None
                yield Listed(
                    (one.findtext(f"{space}Key") or "")[strip:],
                    size_bytes,
                    (one.findtext(f"{space}ETag") or "").strip('"'),
                )
            before, token = token, doc.findtext(f"{space}NextContinuationToken") or ""
            if not token:
                return
            if token == before:
                raise TransferError(
                    f"{self.endpoint} answers a listing with the same page again and again"
                )

    def _document(self, raw: bytes, name: str) -> ElementTree.Element:
        """XML from the other side: without a document type, which is how XML bombs are made. Raises
        TransferError."""
        try:
            if b"<!DOCTYPE" in raw.upper():
                raise ValueError
            return ElementTree.fromstring(raw)
        except (ElementTree.ParseError, ValueError, LookupError, RecursionError):
            raise TransferError(
                f"{self.endpoint} answered {name} with something that is no XML"
            ) from None

    def put(self, key: str, data: bytes, content_type: str = BYTES) -> None:
        self._send("PUT", self.url(key), data, {"Content-Type": content_type})

    def put_file(self, key: str, path: str | os.PathLike[str]) -> None:
        """In parts when it is large; a failure aborts the upload, so that no parts stay behind and
        cost money."""
        size = Path(path).stat().st_size
        with open(path, "rb") as file:
            if size <= PART_BYTES:
                self.put(key, file.read())
                return
            url = self.url(key)
            raw = self._send("POST", f"{url}?uploads=", b"", {"Content-Type": BYTES}).body
            upload = sigv4.encode(
                next(
                    (
                        e.text or ""
                        for e in self._document(raw, "the start of an upload").iter()
                        if e.tag.endswith("UploadId")
                    ),
                    "",
                )
            )
            try:
                rows = []
                for number, _ in enumerate(range(0, size, PART_BYTES), 1):
                    answer = self._send(
                        "PUT", f"{url}?partNumber={number}&uploadId={upload}", file.read(PART_BYTES)
                    )
                    etag = escape(answer.headers.get("etag", ""))
                    rows.append(
                        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
                    )
                self._send(
                    "POST",
                    f"{url}?uploadId={upload}",
                    f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode(),
                )
            except BaseException:
                with contextlib.suppress(TransferError):
                    self._send("DELETE", f"{url}?uploadId={upload}", b"")
                raise

    def _send(
        self, method: str, url: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        attempts = Attempts(self.client, f"{method} {url}")
        wanted = {**(headers or {}), "x-amz-content-sha256": hashlib.sha256(data).hexdigest()}
        while True:
            try:
                with self.client.open(method, url, wanted, data, ok=(200, 204)) as (answer, wire):
                    return Answer(
                        answer.status, answer.headers, answer.size_bytes, wire.read(1 << 20)
                    )
            except (ConnectionLost, HTTPStatusError) as error:
                attempts.failed(error)


@contextmanager
def open_bucket(
    url: str,
    env: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 20.0,
    retry: Retry = Retry(),
) -> Iterator[Bucket]:
    env = os.environ if env is None else env
    scheme, bucket, prefix = split_url(url)
    with Client(
        timeout_s=timeout_s, retry=retry, authorize=authorizer(scheme, env) or unsigned
    ) as client:
        yield Bucket(client, endpoint_of(scheme, env), bucket, prefix)


def unsigned(method: str, target: str, headers: dict[str, str]) -> dict[str, str]:
    """A bucket without keys is no registry: there is nobody to log in to."""
    return {k: v for k, v in headers.items() if k != "x-amz-content-sha256"}

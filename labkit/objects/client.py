"""A bucket as the lab reads and writes it: the embedded store, S3, or Cloud Storage's S3-compatible
endpoint, by one code.

    with open_bucket("s3://lab/images", env) as bucket:             # endpoint and keys from the
        environment
        bucket.get("lab/subject/manifests/latest").body
        fetch_ranges(bucket.client, bucket.url("blobs/sha256/…"), size, into)      # signed per
            request

What is stored is believed only when the store says so in full: S3 begins some answers with 200
before it knows, and ends them with an <Error>. How a store is found and asked:
`labkit.objects.access`. Source: AWS, "CompleteMultipartUpload". Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus
from xml.sax.saxutils import escape

from labkit.core.digits import decimal
from labkit.errors import TransferError
from labkit.net.client import Attempts, Client, HTTPStatusError, Retry
from labkit.net.http import Answer, ConnectionLost
from labkit.objects import sigv4
from labkit.objects.access import Access, split_url

PART_BYTES = 16 << 20
PARTS_MAX = 10_000
BYTES = "application/octet-stream"
_ERROR = re.compile(rb"(?:<\?xml[^>]*>\s*)?<Error\b.*?<Code>([^<]*)</Code>", re.DOTALL)
_AGAIN = (b"InternalError", b"SlowDown", b"ServiceUnavailable", b"RequestTimeout")


@dataclass(frozen=True)
class Listed:
    key: str
    size_bytes: int
    etag: str


class Bucket:
    """Keys are relative to the prefix."""

    def __init__(self, client: Client, access: Access, bucket: str, prefix: str = ""):
        self.client, self.access, self.bucket, self.prefix = client, access, bucket, prefix

    @property
    def endpoint(self) -> str:
        return self.access.endpoint

    def key(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def url(self, key: str) -> str:
        return self.access.url(self.bucket, self.key(key))

    def get(self, key: str, limit_bytes: int = 64 << 20) -> Answer:
        """A small object, whole. Raises TransferError."""
        return self.client.ask("GET", self.url(key), limit_bytes=limit_bytes)

    def head(self, key: str) -> Answer | None:
        """Size (`size_bytes`) and headers; None when it is not there, or not to be known: to keys
        without s3:ListBucket, S3 answers 403 for what is missing."""
        answer = self.client.ask("HEAD", self.url(key), ok=(200, 403, 404))
        return answer if answer.status == 200 else None

    def list(self, prefix: str = "") -> Iterator[Listed]:
        """All objects below a key prefix, in the order of their keys."""
        token = ""
        while True:
            # encoded: XML has no way to write some characters that a key may have
            query = f"list-type=2&encoding-type=url&prefix={sigv4.encode(self.key(prefix))}" + (
                f"&continuation-token={sigv4.encode(token)}" if token else ""
            )
            raw = self.client.ask("GET", f"{self.access.url(self.bucket)}?{query}").body
            doc = self._document(raw, "a listing")
            space = doc.tag.partition("}")[0] + "}" if "}" in doc.tag else ""
            strip = len(self.prefix) + 1 if self.prefix else 0
            encoded = doc.findtext(f"{space}EncodingType") == "url"
            for one in doc.iter(f"{space}Contents"):
                try:
                    size_bytes = decimal((one.findtext(f"{space}Size") or "0").strip())
                except ValueError:
                    raise TransferError(
                        f"{self.endpoint} lists an object with a size that is no number"
                    ) from None
                name = one.findtext(f"{space}Key") or ""
                yield Listed(
                    (unquote_plus(name, errors="surrogateescape") if encoded else name)[strip:],
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
            # white space keeps a connection alive while S3 puts parts together
            return ElementTree.fromstring(raw.strip())
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
            part_bytes = max(PART_BYTES, -(-size // PARTS_MAX))
            url = self.url(key)
            upload = self._started(url)
            try:
                rows = []
                for number, _ in enumerate(range(0, size, part_bytes), 1):
                    answer = self._send(
                        "PUT", f"{url}?partNumber={number}&uploadId={upload}", file.read(part_bytes)
                    )
                    etag = escape(answer.headers.get("etag", ""))
                    rows.append(
                        f"<Part><PartNumber>{number}</PartNumber><ETag>{etag}</ETag></Part>"
                    )
                self._complete(f"{url}?uploadId={upload}", rows)
            except BaseException:
                with contextlib.suppress(TransferError):
                    self._send("DELETE", f"{url}?uploadId={upload}", b"")
                raise

    def _started(self, url: str) -> str:
        """The id of a new upload, as a query has it."""
        raw = self._send("POST", f"{url}?uploads=", b"", {"Content-Type": BYTES}).body
        doc = self._document(raw, "the start of an upload")
        found = next((e.text for e in doc.iter() if _name(e) == "UploadId"), None)
        if not found:
            raise TransferError(
                f"{self.endpoint} starts an upload and gives it no id",
                why="nothing was uploaded",
                fix="check that the endpoint is an S3's",
            )
        return sigv4.encode(found)

    def _complete(self, url: str, rows: Sequence[str]) -> None:
        raw = self._send(
            "POST",
            url,
            f"<CompleteMultipartUpload>{''.join(rows)}</CompleteMultipartUpload>".encode(),
        ).body
        if _name(self._document(raw, "the end of an upload")) != "CompleteMultipartUploadResult":
            raise TransferError(
                f"{self.endpoint} does not say that it has put the upload together",
                why="the object may not be there",
                fix="push it again",
            )

    def _send(
        self, method: str, url: str, data: bytes, headers: Mapping[str, str] | None = None
    ) -> Answer:
        attempts = Attempts(self.client, f"{method} {url.partition('?')[0]}")
        wanted = {**(headers or {}), "x-amz-content-sha256": hashlib.sha256(data).hexdigest()}
        while True:
            try:
                with self.client.open(method, url, wanted, data, ok=(200, 204)) as (answer, wire):
                    body = wire.read(1 << 20)
                _believe(answer, body)
                return Answer(answer.status, answer.headers, answer.size_bytes, body)
            except (ConnectionLost, HTTPStatusError) as error:
                attempts.failed(error)


def _name(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _believe(answer: Answer, body: bytes) -> None:
    """Raises HTTPStatusError for an error that came with a 200."""
    code = _ERROR.match(body.lstrip())
    if code is not None:
        raise HTTPStatusError(answer, body, again=code[1] in _AGAIN)


@contextmanager
def open_bucket(
    url: str,
    env: Mapping[str, str] | None = None,
    *,
    timeout_s: float = 20.0,
    retry: Retry = Retry(),
) -> Iterator[Bucket]:
    scheme, bucket, prefix = split_url(url)
    access = Access(scheme, os.environ if env is None else env)
    with access.client(timeout_s=timeout_s, retry=retry) as client:
        yield Bucket(client, access, bucket, prefix)

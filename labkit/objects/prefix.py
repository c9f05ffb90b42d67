"""A prefix of objects that is read: `s3://…` and `gs://…` as the environment says, or an HTTP
address as it stands.

    prefix = open_prefix("s3://lab/models/small", os.environ)
    prefix.read("config.json")                       # bytes, None where there is none
    with prefix.client() as client:
        fetch_parts(client, [RangePart(prefix.url("model.safetensors"), 0, 4096)], into)

S3 says 403 of a key that is not there to whoever may not list the bucket: 403 and 404 both mean
"none, or none for this reader". Limit: a round trip, and a connection of its own, for each small
file. Lesson: notebooks/05_streaming."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from labkit.errors import BadInput, TransferError
from labkit.net.client import Client, Retry
from labkit.net.content_range import sent_range
from labkit.net.http import BodyTooLarge
from labkit.objects.access import Access, access_of, split_url

#: A start that waits for a store that is down helps nobody.
RETRY = Retry(attempts=4)
TIMEOUT_S = 60.0
ABSENT = (403, 404)


@dataclass(frozen=True)
class Prefix:
    """`address`: as it was given, without a slash at its end. `access`: None for plain HTTP."""

    address: str
    access: Access | None = None
    bucket: str = ""
    key: str = ""

    def url(self, name: str) -> str:
        if self.access is None:
            return f"{self.address}/{quote(name)}"
        return self.access.url(self.bucket, f"{self.key}/{name}".lstrip("/"))

    def client(self, **options: Any) -> Client:
        return self.access.client(**options) if self.access else Client(**options)

    def _small_client(self) -> Client:
        return self.client(timeout_s=TIMEOUT_S, retry=RETRY)

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A small file, whole; None where there is none. Raises TransferError, BadInput above the
        limit."""
        try:
            with self._small_client() as client:
                answer = client.ask(
                    "GET", self.url(name), ok=(200, *ABSENT), limit_bytes=limit_bytes
                )
        except BodyTooLarge:
            raise BadInput(
                f"{name}: more than {limit_bytes} bytes",
                why="a file of this kind is small; this one is damaged or forged",
            ) from None
        return answer.body if answer.status == 200 else None

    def start(self, name: str, count: int) -> tuple[bytes, int] | None:
        """The first bytes of an object, and its size; None where there is none. Raises
        TransferError."""
        asked = {"Range": f"bytes=0-{count - 1}"}
        with self._small_client() as client:
            answer = client.ask(
                "GET",
                self.url(name),
                asked,
                ok=(200, 206, *ABSENT),
                limit_bytes=count,
                whole=False,
            )
        if answer.status in ABSENT:
            return None
        sent = sent_range(answer) if answer.status == 206 else (0, count, answer.size_bytes)
        if sent is None or sent[0] != 0 or sent[2] is None:
            raise TransferError(
                f"{self.url(name)}: the store does not say how large it is",
                why="its parts are planned from its size",
            )
        return answer.body, sent[2]

    def exists(self, name: str) -> bool:
        """Raises TransferError."""
        with self._small_client() as client:
            answer = client.ask("HEAD", self.url(name), ok=(200, *ABSENT))
        return answer.status == 200


def open_prefix(text: str, env: Mapping[str, str]) -> Prefix:
    """Raises BadInput."""
    address = text.rstrip("/")
    if address.startswith(("http://", "https://")):
        return Prefix(address)
    _, bucket, key = split_url(address)
    return Prefix(address, access_of(address, env), bucket, key)

"""Bodies on their way into the store: aws-chunked framing, digests, checksums, chunk signatures.

The SDKs frame an upload as `HEX;chunk-signature=…\\r\\n data \\r\\n … 0\\r\\n trailers`, so that
they can sign or checksum while streaming. Everything the client said about its bytes is checked
before they get a name. Source: AWS, "Signature calculations for the Authorization header:
transferring payload in multiple chunks". Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core.digits import hexadecimal
from labkit.net.head import is_token, is_value
from labkit.net.message import Request, Response
from labkit.objects import sigv4
from labkit.objects.checksums import CHECKSUMS, text

LINE_MAX = 16 << 10


class UploadMismatch(Exception):
    """What arrived is not what the client said it would send. `code`: S3's."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class AwsChunked:
    """Iterate the payload of an aws-chunked stream; `trailers` are there at the end. Raises
    UploadMismatch."""

    def __init__(self, blocks: Iterable[bytes], signed: sigv4.Signed | None = None):
        self._blocks, self._buffer = iter(blocks), bytearray()
        self._signed = signed
        self.trailers: dict[str, str] = {}

    def _fill(self) -> None:
        block = next(self._blocks, b"")
        if not block:
            raise UploadMismatch("IncompleteBody", "the aws-chunked body ended early")
        self._buffer += block

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > LINE_MAX:
                raise UploadMismatch("InvalidRequest", "no line of aws-chunked framing")
            self._fill()
        line = bytes(self._buffer[:at])
        del self._buffer[: at + 2]
        return line

    def __iter__(self) -> Iterator[bytes]:
        before = self._signed.signature if self._signed else ""
        while True:
            size_text, _, extension = self._line().partition(b";")
            try:
                size = hexadecimal(size_text)
            except ValueError:
                raise UploadMismatch("InvalidRequest", "not an aws-chunked size") from None
            left, digest = size, hashlib.sha256()
            while left:
                if not self._buffer:
                    self._fill()
                block = bytes(self._buffer[:left])
                del self._buffer[: len(block)]
                left -= len(block)
                if self._signed:
                    digest.update(block)
                yield block
            if self._signed:
                before = sigv4.chunk_signature(before, self._signed, digest.hexdigest())
                if not hmac.compare_digest(
                    extension.strip(), b"chunk-signature=" + before.encode()
                ):
                    raise UploadMismatch(
                        "SignatureDoesNotMatch", "the signature of a chunk does not match"
                    )
            if not size:
                break
            if self._line():
                raise UploadMismatch("InvalidRequest", "a chunk longer than it says")
        try:
            while line := self._line():
                name, _, value = line.decode("latin-1").partition(":")
                # checksums of trailers go back as headers
                if not is_token(name) or not is_value(value):
                    raise UploadMismatch("InvalidRequest", "not a trailer")
                self.trailers[name.lower()] = value.strip(" \t")
                if len(self.trailers) > 32:
                    raise UploadMismatch("InvalidRequest", "too many trailers")
        except UploadMismatch as error:  # some clients leave out the last empty line
            if error.code != "IncompleteBody" or self._buffer:
                raise


@dataclass(frozen=True)
class Received:
    """A body that was stored: MD5 in hex; those checksums in base64 that the client named, or that
    `also` asked for."""

    md5: str
    size_bytes: int = 0
    checksums: dict[str, str] = field(default_factory=dict)


PREFIX = "x-amz-checksum-"
#: Headers that are no checksum of the body.
_ABOUT = (f"{PREFIX}algorithm", f"{PREFIX}type", f"{PREFIX}mode")


def claimed_checksums(headers: Mapping[str, str]) -> dict[str, str]:
    """By algorithm. Raises UploadMismatch for one that this store cannot check."""
    found = {
        name.removeprefix(PREFIX): value
        for name, value in headers.items()
        if name.startswith(PREFIX) and name not in _ABOUT
    }
    _known(found)
    return found


def _known(names: Iterable[str]) -> None:
    if unknown := sorted(set(names) - CHECKSUMS.keys()):
        raise UploadMismatch(
            "InvalidRequest",
            f"this store checks {', '.join(CHECKSUMS)}, and has no {unknown[0][:40]!r}",
        )


def receive(
    request: Request, target: Path, signed: sigv4.Signed | None = None, also: str = ""
) -> Received:
    """Stream the body into `target`, checking MD5, SHA-256, checksums, length and chunk signatures.
    Raises UploadMismatch."""
    payload = request.header("x-amz-content-sha256")
    chunked = payload.startswith("STREAMING-") or (
        "aws-chunked" in request.header("content-encoding")
        and "x-amz-decoded-content-length" in request.headers
    )
    signed_chunks = (
        payload.startswith("STREAMING-AWS4-HMAC-SHA256-PAYLOAD") and "TRAILER" not in payload
    )
    framed = AwsChunked(request.body, signed if signed_chunks else None) if chunked else None
    claimed = claimed_checksums(request.headers)
    names = {*claimed, also} - {""}
    if trailer := request.header("x-amz-trailer").lower():
        names |= {t.strip().removeprefix(PREFIX) for t in trailer.split(",") if PREFIX in t}
    _known(names)
    checks = {name: CHECKSUMS[name]() for name in names}
    md5 = hashlib.md5(usedforsecurity=False)
    sha256 = hashlib.sha256() if len(payload) == 64 else None
    size = 0
    with open(target, "wb") as out:
        for block in framed or request.body:
            out.write(block)
            md5.update(block)
            size += len(block)
            if sha256:
                sha256.update(block)
            for check in checks.values():
                check.update(block)
    if framed:
        claimed |= claimed_checksums(framed.trailers)
    wanted = request.header("x-amz-decoded-content-length")
    if wanted and wanted != str(size):
        raise UploadMismatch(
            "IncompleteBody", f"{size} bytes arrived, {wanted[:20]} were announced"
        )
    if sha256 and sha256.hexdigest() != payload:
        raise UploadMismatch("XAmzContentSHA256Mismatch", "the body is not the one that was signed")
    if "content-md5" in request.headers:
        try:
            given = base64.b64decode(request.header("content-md5"), validate=True)
        except ValueError:
            given = b""
        if len(given) != 16:
            raise UploadMismatch("InvalidDigest", "Content-MD5 is not 16 bytes in base64")
        if given != md5.digest():
            raise UploadMismatch("BadDigest", "Content-MD5 does not match what arrived")
    found = {name: text(check.digest()) for name, check in checks.items()}
    for name, value in claimed.items():
        if found.get(name) != value:
            raise UploadMismatch("BadDigest", f"checksum {name} does not match what arrived")
    return Received(md5.hexdigest(), size, found)


def receipt(etag: str, received: Received, **more: str) -> Response:
    """The answer to a stored body."""
    checksums = {f"{PREFIX}{name}": value for name, value in received.checksums.items()}
    return Response(200, {"ETag": f'"{etag}"', **checksums, **more})

"""Every server of the lab, small and in this process, with requests it understands: for contracts
that all of them keep."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from labkit.image.registry import Registry
from labkit.net.server import HTTPServer
from labkit.objects.store import Store
from labkit.subject import http as subject_http
from labkit.subject.api import Piece
from labkit.subject.server import State

BLOB = b"forty-two bytes that stand for a layer ...."
DIGEST = "sha256:" + hashlib.sha256(BLOB).hexdigest()
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"digest": DIGEST, "size": len(BLOB)},
        "layers": [],
        "subject": {"digest": DIGEST},
    }
).encode()
NAMES = ("registry", "store", "store-gcs", "store-with-registry", "subject", "subject-loading")


def request(method: str, target: str, body: bytes = b"", **headers: str) -> bytes:
    """HTTP/1.1 as bytes; a header given as None is left out."""
    fields = {"Host": "127.0.0.1", **{k.replace("_", "-"): v for k, v in headers.items()}}
    if body and not {"Content-Length", "Transfer-Encoding"} & set(fields):
        fields["Content-Length"] = str(len(body))
    lines = "".join(f"{k}: {v}\r\n" for k, v in fields.items() if v is not None)
    return f"{method} {target} HTTP/1.1\r\n{lines}\r\n".encode("latin-1") + body


@dataclass
class Subject:
    """A running server, a request that must always be answered so, and what mutations start
    from."""

    name: str
    server: Any
    good: bytes
    status: int
    seeds: list[bytes] = field(default_factory=list)
    changes: str = ""  # a control request that changes something
    changed: Any = None  # -> a value that such a request changes

    def alive(self) -> bool:
        return self.ask(self.good)[0] == self.status

    def send(self, raw: bytes, *, half_close: bool = True) -> tuple[bytes, bool]:
        """(what came back until the end, whether the end was a reset)."""
        got, reset = b"", False
        with socket.create_connection(("127.0.0.1", self.server.port), timeout=60) as sock:
            try:
                sock.sendall(raw)
                if half_close:
                    sock.shutdown(socket.SHUT_WR)
            except OSError:
                reset = True  # what came before may still be read
            try:
                while block := sock.recv(65536):
                    got += block
            except OSError as error:
                if isinstance(error, TimeoutError):
                    raise
                return got, True
        return got, reset

    def ask(self, raw: bytes) -> tuple[int, dict[str, str], bytes]:
        return read_answer(self.send(raw)[0])


_LINE = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+: [\t\x20-\x7e\x80-\xff]*")


def read_answer(
    raw: bytes, bodiless: bool = False, whole: bool = True
) -> tuple[int, dict[str, str], bytes]:
    """The first final answer, strictly read; what is left must begin another one."""
    while True:
        head, end, rest = raw.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        assert end and re.fullmatch(rb"HTTP/1\.1 [1-5][0-9]{2} [ -~]*", first), raw[:300]
        assert all(_LINE.fullmatch(line) for line in lines), head
        status, headers = (
            int(first[9:12]),
            {
                n.decode().lower(): v.decode("latin-1")
                for n, _, v in (x.partition(b": ") for x in lines)
            },
        )
        assert len(headers) == len(lines), "a header twice"
        if status != 100:
            break
        raw = rest
    if bodiless or not whole or status in (204, 304):
        return status, headers, b""
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while True:
            size, _, rest = rest.partition(b"\r\n")
            assert re.fullmatch(rb"[0-9a-f]+", size), size
            block, rest = rest[: int(size, 16)], rest[int(size, 16) :]
            assert len(block) == int(size, 16) and rest.startswith(b"\r\n")
            body, rest = body + block, rest[2:]
            if not block:
                break
    else:
        length = int(headers["content-length"])
        body, rest = rest[:length], rest[length:]
        assert len(body) == length, raw[:300]
    assert rest[:9] in (b"HTTP/1.1 ", b""), rest[:100]
    return status, headers, body


class Engine:
    """Answers as the real one does, without a model."""

    name = "tiny"
    model = SimpleNamespace(config=SimpleNamespace(vocab_size=4096))

    def __init__(self) -> None:
        self.shrunk = self.reseeded = 0

    def ids_of(self, asked: Any) -> list[int]:
        return [1]

    def prompt_text(self, asked: Any, ids: list[int]) -> str:
        return str(asked.prompt)

    def answer(self, asked: Any, ids: list[int]) -> Iterator[Piece]:
        for number in range(min(asked.max_tokens, 3)):
            yield Piece(number, "é\r\n", -0.5, finish="length" if number == 2 else None)

    def call(self, what: Any) -> Any:
        return what()

    def shrink(self) -> dict[str, int]:
        self.shrunk += 1
        return {"kv_cache_bytes": 0}

    def reseed(self) -> dict[str, int]:
        self.reseeded += 1
        return {"reseeded": self.reseeded}


@contextmanager
def serving(name: str, root: Path, **options: Any) -> Iterator[Subject]:
    if name.startswith("subject"):
        state = State("tiny")
        engine = state.engine = None if name == "subject-loading" else Engine()
        with subject_http.ModelServer("127.0.0.1", 0, state) as server:
            body = json.dumps({"prompt": "x", "max_tokens": 3, "stream": True}).encode()
            yield Subject(
                name,
                server,
                request("GET", "/health"),
                503 if engine is None else 200,
                [
                    request("GET", "/v1/models"),
                    request("POST", "/v1/completions", body, Content_Type="application/json"),
                    request("POST", "/v1/completions", body.replace(b"true", b"false")),
                    request("GET", "/_labkit/identity"),
                    request("POST", "/_labkit/shrink", X_Labkit="1"),
                    request(
                        "POST",
                        "/v1/completions",
                        b"5\r\nhello\r\n0\r\n\r\n",
                        Transfer_Encoding="chunked",
                    ),
                ],
                "/_labkit/shrink",
                lambda: engine.shrunk if engine else 0,
            )
        return
    registry, store = Registry(root / "registry"), Store(root / "store", open_writes=True)
    hex_digest, stamp = DIGEST[7:], time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    registry.disk.blob(hex_digest).write_bytes(BLOB)
    registry.disk.note_blob("lab/x", hex_digest)
    images = [
        request("GET", "/v2/"),
        request("GET", "/v2/_catalog?n=1&last=a"),
        request("GET", f"/v2/lab/x/blobs/{DIGEST}", Range="bytes=0-3,5-9"),
        request(
            "PUT",
            "/v2/lab/x/manifests/latest",
            MANIFEST,
            Content_Type="application/vnd.oci.image.manifest.v1+json",
        ),
        request("GET", "/v2/lab/x/manifests/latest"),
        request("GET", "/v2/lab/x/tags/list?n=5"),
        request("POST", "/v2/lab/x/blobs/uploads/"),
        request("POST", f"/v2/lab/x/blobs/uploads/?digest={DIGEST}", BLOB),
        request("HEAD", f"/v2/lab/x/blobs/{DIGEST}"),
        request("GET", f"/v2/lab/x/referrers/{DIGEST}"),
        request("DELETE", "/v2/lab/x/manifests/nothing"),
    ]
    objects = [
        request(
            "PUT", "/lab/a/key", b"hello", x_amz_meta_made="by-test", Content_Type="text/plain"
        ),
        request("GET", "/lab/a/key", Range="bytes=1-2, 3-"),
        request("GET", "/lab?list-type=2&prefix=a%2F&delimiter=%2F&max-keys=10&encoding-type=url"),
        request("HEAD", "/lab/a/key"),
        request(
            "PUT",
            "/lab/chunked",
            b"5;chunk-signature=0\r\nhello\r\n0\r\nx-amz-checksum-crc32c:NhCmhg==\r\n\r\n",
            x_amz_content_sha256="STREAMING-UNSIGNED-PAYLOAD-TRAILER",
            x_amz_decoded_content_length="5",
            x_amz_trailer="x-amz-checksum-crc32c",
        ),
        request("POST", "/lab?delete", b"<Delete><Object><Key>a/none</Key></Object></Delete>"),
        request("POST", "/lab/parts?uploads"),
        request("PUT", "/lab/copy", x_amz_copy_source="/lab/a/key"),
        request("PUT", "/lab/b", b"5\r\nhello\r\n0\r\n\r\n", Transfer_Encoding="chunked"),
        request(
            "GET",
            "/lab/a/key",
            If_Modified_Since="Fri, 27 Nov 2026 14:00:00 GMT",
            If_None_Match='"x"',
        ),
        request(
            "GET",
            f"/lab/a/key?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=labkit%2F{stamp[:8]}%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Date={stamp}"
            "&X-Amz-Expires=600&X-Amz-SignedHeaders=host&X-Amz-Signature=00",
        ),
        request(
            "GET",
            "/lab/a/key",
            Authorization=(
                f"AWS4-HMAC-SHA256 Credential=labkit/{stamp[:8]}/us-east-1/s3/aws4_request,"
                " SignedHeaders=host, Signature=00"
            ),
            x_amz_date=stamp,
        ),
    ]
    cloud = [
        request("GET", "/storage/v1/b/lab/o?prefix=a&maxResults=5"),
        request("GET", "/storage/v1/b/lab/o/a%2Fkey?alt=media", Range="bytes=0-1"),
        request("GET", "/storage/v1/b/lab/o/a%2Fkey"),
        request("GET", "/download/storage/v1/b/lab/o/a%2Fkey?alt=media"),
    ]
    seeds = {
        "registry": images,
        "store": objects,
        "store-gcs": [*objects[:1], *cloud],
        "store-with-registry": images + objects + cloud,
    }[name]

    def both(asked: Any) -> Any:
        return (
            registry(asked)
            if asked.path.startswith("/v2/") or asked.path == "/v2"
            else store(asked)
        )

    app = {"registry": registry, "store-with-registry": both}.get(name, store)
    with HTTPServer(app, name=f"labkit-{name}", **options) as server:
        yield Subject(
            name,
            server,
            images[0] if name == "registry" else request("GET", "/lab?list-type=2"),
            200,
            [
                *seeds,
                request("GET", "/_labkit/stats"),
                request("POST", "/_labkit/faults", b"[]", Content_Type="application/json"),
            ],
            "/_labkit/link",
            lambda: server.link.spec,
        )

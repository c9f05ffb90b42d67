"""One request to an application, without a socket between."""

from __future__ import annotations

import io
import os
from collections.abc import Callable

from labkit.net.message import Request, Response, parse_request


def ask(
    app: Callable[[Request], Response],
    method: str,
    target: str,
    body: bytes = b"",
    headers: dict[str, str] | None = None,
) -> tuple[Response, bytes]:
    """The answer and its body, read to the end. Headers: lower case."""
    sent = {"host": "store:80", "content-length": str(len(body)), **(headers or {})}
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in sent.items())]
    request = parse_request("\r\n".join(lines).encode("latin-1"))
    request.body = Body(body)
    answer = app(request)
    return answer, content(answer)


class Body(io.BytesIO):
    def __iter__(self):
        return iter([self.read()])


def content(answer: Response) -> bytes:
    pieces = [
        part if isinstance(part, bytes) else os.pread(part.fd, part.size_bytes, part.offset)
        for part in answer.parts
    ]
    answer.close()
    return b"".join(pieces)

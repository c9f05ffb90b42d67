"""One HTTP/1.1 connection of a client, without copies: the body goes from the socket into the caller's buffer.

`http.client` parses heads with the e-mail package and reads bodies through two buffers; for thousands of ranges on two
cores that is the cost. Physical limit: one `recv` copies at memory speed, 2-4 GB/s here.

    with Connection("http://127.0.0.1:5000") as wire:
        answer = wire.request("GET", "/v2/", {})
        while n := wire.read_into(view): ...

One thread at a time, but `abort` may come from another. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from labkit.net.message import HEAD_MAX, BadMessage, content_length, parse_head

RECEIVE = 64 << 10
#: One recv waits for this much: fewer wake-ups than taking what is there, still fine progress.
STEP = 256 << 10


class Broken(Exception):
    """The connection ended, stalled or spoke nonsense. Another attempt may fare better."""


@dataclass(frozen=True)
class Answer:
    """Status and headers (lower-case names). `size_bytes`: of the body, None when only its end will tell."""

    status: int
    headers: dict[str, str]
    size_bytes: int | None
    body: bytes = b""


@dataclass(frozen=True)
class Place:
    """Where a connection goes."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        default = {"http": 80, "https": 443}[self.scheme]
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == default else f"{host}:{self.port}"


def split(url: str) -> tuple[Place, str]:
    """A URL to where and what. Raises ValueError for anything but http and https."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        from labkit.core import secrets  # only now: a server reads its weights through this module

        raise ValueError(f"not an http(s) URL: {secrets.mask(url)[:200]!r}")
    port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    return Place(parts.scheme, parts.hostname, port), (parts.path or "/") + ("?" + parts.query if parts.query else "")


class Connection:
    """Keep-alive as long as every body is read to its end; `reusable` says so."""

    def __init__(self, place: Place | str, *, timeout_s: float = 20.0):
        self.place = split(place)[0] if isinstance(place, str) else place
        self.timeout_s = timeout_s
        self.reusable = False
        self._buffer = b""
        self._left: int | None = 0
        self._chunked = False
        self._aborted = False
        try:
            sock = socket.create_connection((self.place.host, self.place.port), timeout=timeout_s)
        except OSError as error:
            raise Broken(f"cannot connect to {self.place.netloc}: {error}") from None
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._plain = self.place.scheme == "http"
        if self._plain:
            # A kernel time-out instead of Python's: one system call a read, not two.
            sock.settimeout(None)
            whole = int(timeout_s)
            span = struct.pack("ll", whole, int((timeout_s - whole) * 1e6))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)
        else:
            import ssl

            try:
                sock = ssl.create_default_context().wrap_socket(sock, server_hostname=self.place.host)
            except OSError as error:
                sock.close()
                raise Broken(f"TLS with {self.place.netloc}: {error}") from None
        self._sock = sock

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.reusable = False
        self._sock.close()

    def abort(self) -> None:
        """Make a read in another thread end at once."""
        self._aborted, self.reusable = True, False
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def request(self, method: str, target: str, headers: Mapping[str, str], body: bytes | memoryview = b"") -> Answer:
        """Send a request and read the head of its answer. Raises Broken."""
        lines = [f"{method} {target} HTTP/1.1", f"Host: {self.place.netloc}", *(f"{k}: {v}" for k, v in headers.items())]
        if body or method in ("PUT", "POST", "PATCH"):
            lines.append(f"Content-Length: {len(body)}")
        raw = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")
        self.reusable, self._left, self._chunked = False, None, False
        try:
            self._sock.sendall(raw)
            if body:
                self._sock.sendall(body)
            head = self._head()
            while head.first[1] == "100":
                head = self._head()
            size = content_length(head.headers)
            status = int(head.first[1])
        except (OSError, BadMessage, ValueError) as error:
            raise self._broken(error) from None
        if method == "HEAD" or status in (204, 304):
            self._left = 0
        elif head.headers.get("transfer-encoding", "").lower() == "chunked":
            self._chunked, self._left, size = True, 0, None
        else:
            self._left = size
        self._keep = head.headers.get("connection", "").lower() != "close" and head.first[0] == "HTTP/1.1"
        if self._left == 0 and not self._chunked:
            self.reusable = self._keep
        return Answer(status, head.headers, size)

    def _broken(self, error: Exception) -> Broken:
        if self._aborted:
            return Broken("aborted")
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return Broken(f"nothing came for {self.timeout_s:g} s")
        return Broken(str(error) or type(error).__name__)

    def _head(self):  # type: ignore[no-untyped-def]
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX:
                raise BadMessage("head too large")
            got = self._sock.recv(RECEIVE)
            if not got:
                raise Broken("the server closed the connection before it answered")
            self._buffer += got
        raw, self._buffer = self._buffer[:at], self._buffer[at + 4 :]
        head = parse_head(raw)
        if not head.first[0].startswith("HTTP/1.") or not head.first[1].isdigit():
            raise BadMessage("not an HTTP status line")
        return head

    def read_into(self, view: memoryview) -> int:
        """The next bytes of the body, at most `len(view)`; 0 at its end. Raises Broken when it ends early."""
        if self._chunked and not self._left:
            self._next_chunk()
        if self._left == 0:
            self.reusable = self._keep
            return 0
        wanted = len(view) if self._left is None else min(len(view), self._left)
        if not wanted:
            raise ValueError("an empty view")
        if self._buffer:
            got = min(wanted, len(self._buffer))
            view[:got] = self._buffer[:got]
            self._buffer = self._buffer[got:]
        else:
            try:
                if self._plain and self._left is not None:
                    got = self._sock.recv_into(view, min(wanted, STEP), socket.MSG_WAITALL)
                else:
                    got = self._sock.recv_into(view, wanted)
            except OSError as error:
                raise self._broken(error) from None
            if not got:
                if self._left is None:
                    self._left = 0
                    return 0
                raise Broken("aborted" if self._aborted else f"the connection ended {self._left} bytes early")
        if self._left is not None:
            self._left -= got
            if not self._left and not self._chunked:
                self.reusable = self._keep and not self._buffer
        return got

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX:
                raise Broken("no chunk size")
            try:
                got = self._sock.recv(RECEIVE)
            except OSError as error:
                raise self._broken(error) from None
            if not got:
                raise Broken("the connection ended within a chunked body")
            self._buffer += got
        line, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
        return line

    def _next_chunk(self) -> None:
        if self._chunk_open:
            self._line()
        try:
            self._left = int(self._line().split(b";")[0], 16)
        except ValueError:
            raise Broken("not a chunk size") from None
        self._chunk_open = bool(self._left)
        if not self._left:
            while self._line():
                pass
            self._chunked = False

    _chunk_open = False
    _keep = False

    def read(self, limit_bytes: int = 64 << 20) -> bytes:
        """The whole body, of small things. Raises Broken beyond the limit."""
        parts, size, view = [], 0, memoryview(bytearray(RECEIVE))
        while got := self.read_into(view):
            size += got
            if size > limit_bytes:
                raise Broken(f"a body above {limit_bytes} bytes")
            parts.append(bytes(view[:got]))
        return b"".join(parts)

    def skip(self, limit_bytes: int = 64 << 10) -> None:
        """Read a refused answer's body if it is small, so that the connection can be used again."""
        with contextlib.suppress(Broken):
            self.read(limit_bytes)

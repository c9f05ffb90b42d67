"""One HTTP/1.1 connection of a client, without copies: the body goes from the socket into the
caller's buffer.

`http.client` parses heads with the e-mail package and reads bodies through two buffers; for
thousands of ranges on two cores that is the cost. Physical limit: one `recv` copies at memory
speed, 2-4 GB/s here.

    with Connection("http://127.0.0.1:5000") as wire:
        answer = wire.request("GET", "/v2/", {})
        while n := wire.read_into(view): ...

One thread at a time, but `abort` may come from another. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import re
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from labkit.core.digits import hexadecimal
from labkit.net.head import (
    HEAD_MAX,
    LINES_MAX,
    BadMessage,
    Head,
    Unsendable,
    content_length,
    is_token,
    keeps_alive,
    parse_head,
    parse_status,
    write_head,
)

RECEIVE = 64 << 10
#: One recv waits for this much: fewer wake-ups than taking what is there, still fine progress.
STEP = 256 << 10
#: "100 Continue" and its like, before one answer.
INTERIM_MAX = 8
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,16})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: Everything a target may hold as it is; the rest is escaped, as browsers do.
_AS_IT_IS = "/?:@!$&'()*+,;=-._~%[]|^`{}<>\\\"#"


class ConnectionLost(Exception):
    """The connection ended, stalled or spoke nonsense. Another attempt may fare better."""


@dataclass(frozen=True)
class Answer:
    """Status and headers (lower-case names). `size_bytes`: of the body, None when only its end will
    tell."""

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
    """A URL to where and what. Raises ValueError for anything but http and https, and for what no
    request line may hold."""
    if _CONTROL.search(url):  # urlsplit drops them in silence
        raise ValueError(f"control characters in a URL: {_shown(url)}")
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.hostname
        or not _HOST.fullmatch(parts.hostname)
    ):
        raise ValueError(f"not an http(s) URL: {_shown(url)}")
    port = parts.port
    if port == 0 or parts.netloc.rpartition("@")[2].endswith(":"):
        raise ValueError(f"no port in a URL that names one: {_shown(url)}")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return Place(
        parts.scheme, parts.hostname, port or {"http": 80, "https": 443}[parts.scheme]
    ), quote(target, safe=_AS_IT_IS)


def _shown(url: str) -> str:
    from labkit.core import secrets  # only now: a server reads its weights through this module

    return repr(secrets.mask(url)[:200])


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
        except (OSError, UnicodeError) as error:
            raise ConnectionLost(f"cannot connect to {self.place.netloc}: {error}") from None
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
                sock = ssl.create_default_context().wrap_socket(
                    sock, server_hostname=self.place.host
                )
            except OSError as error:
                sock.close()
                raise ConnectionLost(f"TLS with {self.place.netloc}: {error}") from None
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

    def request(
        self, method: str, target: str, headers: Mapping[str, str], body: bytes | memoryview = b""
    ) -> Answer:
        """Send a request and read the head of its answer. Raises ConnectionLost, and Unsendable
        (nothing was sent) for what would be another request."""
        fields = {"Host": self.place.netloc, **headers}
        if body or method in ("PUT", "POST", "PATCH"):
            fields["Content-Length"] = str(len(body))
        if not is_token(method) or not target or not target.isascii() or " " in target:
            raise Unsendable(f"no request line can hold {method[:40]!r} {target[:200]!r}")
        raw = write_head(f"{method} {target} HTTP/1.1", fields)
        self.reusable, self._left, self._chunked = False, None, False
        try:
            self._sock.sendall(raw)
            if body:
                self._sock.sendall(body)
            for _ in range(INTERIM_MAX):
                head = self._head()
                version, status = parse_status(head.first)
                if status >= 200:
                    break
                if status == 101:
                    raise BadMessage("a switch of protocols that nobody asked for")
            else:
                raise BadMessage("interim answers without end")
            chunked = head.headers.get("transfer-encoding", "").lower()
            if chunked not in ("", "chunked"):
                raise BadMessage(f"transfer-encoding {chunked[:40]!r} is not spoken here")
            size = content_length(head.headers)
        except (OSError, BadMessage, ValueError) as error:
            raise self._broken(error) from None
        if method == "HEAD" or status in (204, 304):
            self._left = 0
        elif chunked:
            self._chunked, self._left = True, 0
        else:
            self._left = size
        # Two framings of one body: the chunks count, and nothing that follows on this connection is
        # believed.
        self._keep = (
            version == "HTTP/1.1"
            and keeps_alive(version, head.headers)
            and not (chunked and size is not None)
        )
        if chunked:
            size = None
        if self._left == 0 and not self._chunked:
            self.reusable = self._keep
        return Answer(status, head.headers, size)

    def _broken(self, error: Exception) -> ConnectionLost:
        if self._aborted:
            return ConnectionLost("aborted")
        if isinstance(error, (BlockingIOError, TimeoutError)):
            return ConnectionLost(f"nothing came for {self.timeout_s:g} s")
        return ConnectionLost(str(error) or type(error).__name__)

    def _head(self) -> Head:
        while (at := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX:
                raise BadMessage("head too large")
            got = self._sock.recv(RECEIVE)
            if not got:
                raise ConnectionLost("the server closed the connection before it answered")
            self._buffer += got
        raw, self._buffer = self._buffer[:at], self._buffer[at + 4 :]
        return parse_head(raw)

    def read_into(self, view: memoryview) -> int:
        """The next bytes of the body, at most `len(view)`; 0 at its end. Raises ConnectionLost when
        it ends early."""
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
                raise ConnectionLost(
                    "aborted" if self._aborted else f"the connection ended {self._left} bytes early"
                )
        if self._left is not None:
            self._left -= got
            if not self._left and not self._chunked:
                self.reusable = self._keep and not self._buffer
        return got

    def _line(self) -> bytes:
        while (at := self._buffer.find(b"\r\n")) < 0:
            if len(self._buffer) > HEAD_MAX + RECEIVE:
                raise ConnectionLost("no end of a line in a chunked body")
            try:
                got = self._sock.recv(RECEIVE)
            except OSError as error:
                raise self._broken(error) from None
            if not got:
                raise ConnectionLost("the connection ended within a chunked body")
            self._buffer += got
        line, self._buffer = self._buffer[:at], self._buffer[at + 2 :]
        return line

    def _next_chunk(self) -> None:
        if self._chunk_open and self._line():
            raise ConnectionLost("a chunk longer than it says")
        try:
            self._left = hexadecimal(self._line().split(b";")[0].rstrip(b" \t"))
        except ValueError:
            raise ConnectionLost("not a chunk size") from None
        self._chunk_open = bool(self._left)
        if not self._left:
            for _ in range(LINES_MAX):
                if not self._line():
                    break
            else:
                raise ConnectionLost("trailer lines without end")
            self._chunked = False

    _chunk_open = False
    _keep = False

    def read(self, limit_bytes: int = 64 << 20) -> bytes:
        """The whole body, of small things. Raises ConnectionLost beyond the limit."""
        parts, size, view = [], 0, memoryview(bytearray(RECEIVE))
        while got := self.read_into(view):
            size += got
            if size > limit_bytes:
                raise ConnectionLost(f"a body above {limit_bytes} bytes")
            parts.append(bytes(view[:got]))
        return b"".join(parts)

    def skip(self, limit_bytes: int = 64 << 10) -> None:
        """Read a refused answer's body if it is small, so that the connection can be used again."""
        with contextlib.suppress(ConnectionLost):
            self.read(limit_bytes)

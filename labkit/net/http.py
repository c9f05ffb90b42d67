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
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from labkit.core.digits import hexadecimal
from labkit.errors import TransferError
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
from labkit.net.outbound import Outbound, Proxy
from labkit.net.place import Place, split

RECEIVE = 64 << 10
#: One recv waits for this much: fewer wake-ups than taking what is there, still fine progress.
STEP = 256 << 10
#: "100 Continue" and its like, before one answer.
INTERIM_MAX = 8
PROXY_FIX = (
    "write its user and password into the variable (http://USER:PASSWORD@HOST:PORT), or list the"
    " server in NO_PROXY"
)


class ConnectionLost(Exception):
    """The connection ended, stalled or spoke nonsense. Another attempt may fare better."""


class BodyTooLarge(TransferError):
    """More than what was asked for can have. Another attempt would bring the same."""


@dataclass(frozen=True)
class Answer:
    """Status and headers (lower-case names). `size_bytes`: of the body, None when only its end will
    tell."""

    status: int
    headers: dict[str, str]
    size_bytes: int | None
    body: bytes = b""


def _dial(place: Place, proxy: Proxy | None, timeout_s: float) -> socket.socket:
    there, name = (proxy.place, f"the proxy {proxy.name}") if proxy else (place, place.netloc)
    try:
        sock = socket.create_connection((there.host, there.port), timeout=timeout_s)
    except (OSError, UnicodeError) as error:
        raise ConnectionLost(f"cannot connect to {name}: {error}") from None
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def _secured(sock: socket.socket, place: Place, outbound: Outbound) -> socket.socket:
    import ssl

    try:
        return outbound.tls().wrap_socket(sock, server_hostname=place.host)
    except ssl.SSLCertVerificationError as error:
        raise TransferError(
            f"TLS with {place.netloc}: {error.verify_message or error}",
            why="it may be somebody else who answers; nothing was sent",
            fix=f"name the authority that signed it: export {outbound.bundles[0]}=CA.pem",
        ) from None
    except OSError as error:
        raise ConnectionLost(f"TLS with {place.netloc}: {error}") from None


class Connection:
    """Keep-alive as long as every body is read to its end; `reusable` says so."""

    def __init__(
        self,
        place: Place | str,
        *,
        timeout_s: float = 20.0,
        outbound: Outbound | None = None,
    ):
        self.place = split(place)[0] if isinstance(place, str) else place
        self.timeout_s = timeout_s
        self.reusable = False
        self._buffer = b""
        self._left: int | None = 0
        self._chunked = False
        self._aborted = False
        outbound = outbound or Outbound()
        self.proxy = outbound.proxy(self.place)
        self._plain = self.place.scheme == "http"
        self._sock = _dial(self.place, self.proxy, timeout_s)
        try:
            if not self._plain:
                if self.proxy:
                    self._tunnel(self.proxy)
                self._sock = _secured(self._sock, self.place, outbound)
        except BaseException:
            self._sock.close()
            raise
        if self._plain:
            # A kernel time-out instead of Python's: one system call a read, not two.
            self._sock.settimeout(None)
            whole = int(timeout_s)
            span = struct.pack("ll", whole, int((timeout_s - whole) * 1e6))
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, span)
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, span)

    def _tunnel(self, proxy: Proxy) -> None:
        """Have the proxy connect to the place, which then is spoken to as if it were there."""
        there = self.place.host_port
        fields = {"Host": there, **proxy.headers}
        try:
            self._sock.sendall(write_head(f"CONNECT {there} HTTP/1.1", fields))
            _, status = parse_status(self._head().first)
        except (OSError, BadMessage) as error:
            raise self._broken(error) from None
        if self._buffer:
            raise ConnectionLost(f"the proxy {proxy.name} spoke before anybody asked it")
        if status in (401, 403, 407):
            raise TransferError(
                f"the proxy {proxy.name} does not let anybody through to {there}: HTTP {status}",
                why="it would refuse another attempt too",
                fix=PROXY_FIX,
            )
        if status // 100 != 2:
            raise ConnectionLost(f"the proxy {proxy.name} cannot reach {there}: HTTP {status}")

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
        if self._plain and self.proxy:
            target = f"http://{self.place.netloc}{target}"
            fields |= self.proxy.headers
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
        """The whole body, of small things. Raises ConnectionLost, and BodyTooLarge beyond the
        limit."""
        parts, size, view = [], 0, memoryview(bytearray(RECEIVE))
        while (self._left or 0) <= limit_bytes - size and (got := self.read_into(view)):
            size += got
            parts.append(bytes(view[:got]))
        if self._left or size > limit_bytes:
            raise BodyTooLarge(f"{self.place.netloc} sends a body above {limit_bytes} bytes")
        return b"".join(parts)

    def first(self, size_bytes: int) -> bytes:
        """The body's beginning, whatever follows. Raises ConnectionLost."""
        view, size = memoryview(bytearray(size_bytes)), 0
        while size < size_bytes and (got := self.read_into(view[size:])):
            size += got
        return bytes(view[:size])

    def skip(self, limit_bytes: int = 64 << 10) -> None:
        """Read a refused answer's body if it is small, so that the connection can be used again."""
        with contextlib.suppress(ConnectionLost, BodyTooLarge):
            self.read(limit_bytes)

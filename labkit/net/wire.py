"""The server's end of a connection: heads, lines and bodies out of one read buffer, in bounded
memory and time.

    wire = Wire(sock)
    request = parse_request(wire.head())
    for block in Body(wire, size_bytes, chunked=False, go_on=False): …

A body is read as it is asked for; one that its handler left unread is drained, or ends the
connection when that would be too much. Limits: a client may say nothing for IDLE_S, take HEAD_S for
a head (and what one read waits), and send a body that takes longer than GRACE_S at no less than
BODY_MIN_BYTES_PER_S; a head has at most 64 KiB, its lines and a chunked body's too. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterator

from labkit.core.digits import hexadecimal
from labkit.net.head import HEAD_MAX, LINES_MAX, BadMessage

RECEIVE = 1 << 20
DRAIN_MAX = 4 << 20
LINE_MAX = 8 << 10
EMPTY_LINES_MAX = 8
#: A connection on which nothing comes, between requests or within one, is let go; nginx waits as
#: long.
IDLE_S = 75
HEAD_S = 30.0
GRACE_S = 60.0
BODY_MIN_BYTES_PER_S = 1000
#: A client that takes nothing for so long is gone.
SEND_TIMEOUT_S = 120


def _span(seconds: float) -> bytes:
    whole = int(seconds)
    return struct.pack("ll", whole, int((seconds - whole) * 1e6))


class ClientGone(Exception):
    """The client went away."""


class Wire:
    """One connection with a read buffer."""

    def __init__(self, sock: socket.socket):
        self.sock, self._buffer = sock, bytearray()
        # Kernel time-outs instead of Python's: one system call a read, not two.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _span(IDLE_S))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _span(SEND_TIMEOUT_S))

    @property
    def unread(self) -> bool:
        """Something has come that nobody read: what a close would answer with a reset."""
        if self._buffer:
            return True
        try:
            return bool(self.sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _receive(self, limit: int) -> bytes:
        try:
            got = self.sock.recv(limit)
        except BlockingIOError:
            raise BadMessage("nothing came for too long", 408) from None
        if not got:
            raise ClientGone
        return got

    def head(self) -> bytes | None:
        """The next head without its empty line; None when the client is done, or has been silent
        for too long. Raises BadMessage."""
        empty, seen, until_s = 0, 0, None
        while True:
            while self._buffer[:2] == b"\r\n":
                del self._buffer[:2]
                empty, seen = empty + 1, 0
                if empty > EMPTY_LINES_MAX:
                    raise BadMessage("empty lines in place of a request")
            at = self._buffer.find(b"\r\n\r\n", max(0, seen - 3))
            if max(at, len(self._buffer) if at < 0 else 0) > HEAD_MAX:
                raise BadMessage("head too large", 431)
            if at >= 0:
                raw = bytes(self._buffer[:at])
                del self._buffer[: at + 4]
                return raw
            # A client that tries TLS first waits for its time-out unless it is told at once.
            if self._buffer and not self._buffer[:1].isalpha() and self._buffer != b"\r":
                raise BadMessage("not HTTP (TLS is not spoken here)")
            seen = len(self._buffer)
            try:
                self._buffer += self._receive(65536)
            except ClientGone:
                return None
            except BadMessage:
                if not seen:
                    return None
                raise
            now_s = time.monotonic()
            until_s = until_s or now_s + HEAD_S
            if now_s > until_s:
                raise BadMessage("a head that takes for ever", 408)

    def line(self) -> bytes:
        """Up to the next CRLF. Raises BadMessage."""
        while True:
            at = self._buffer.find(b"\r\n")
            if max(at, len(self._buffer) if at < 0 else 0) > LINE_MAX:
                raise BadMessage("line too long")
            if at >= 0:
                raw = bytes(self._buffer[:at])
                del self._buffer[: at + 2]
                return raw
            self._buffer += self._receive(65536)

    def some(self, limit: int) -> bytes:
        if not self._buffer:
            return self._receive(limit)
        raw = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return raw

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)

    def linger(self) -> None:
        """Before a close with bytes unread: let the answer arrive, or the reset would overtake it.
        Bounded in bytes and time."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, _span(1))
            until_s, size = time.monotonic() + 2, 0
            while (
                size < DRAIN_MAX and time.monotonic() < until_s and (got := self.sock.recv(RECEIVE))
            ):
                size += len(got)
        except OSError:
            pass


class Body:
    """The body of one request, de-chunked. `iter()` yields blocks; the views are valid until the
    next one."""

    def __init__(self, wire: Wire, size_bytes: int | None, chunked: bool, go_on: bool):
        self._wire, self._left, self._chunked, self._go_on = wire, size_bytes or 0, chunked, go_on
        self.size_bytes = None if chunked else size_bytes
        self.done = not chunked and not self._left

    def __iter__(self) -> Iterator[bytes]:
        if self._go_on and not self.done:
            self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._go_on = False
        began_s, size = time.monotonic(), 0
        while not self.done:
            if self._chunked and not self._left:
                self._left = self._chunk_size()
                if not self._left:
                    self._trailers()
                    self.done = True
                    return
            block = self._wire.some(min(self._left, RECEIVE))
            self._left -= len(block)
            if self._chunked and not self._left and self._wire.line():
                raise BadMessage("a chunk longer than it says")
            self.done = not self._chunked and not self._left
            yield block
            size += len(block)
            took_s = time.monotonic() - began_s
            if took_s > GRACE_S and size < took_s * BODY_MIN_BYTES_PER_S:
                raise BadMessage("a body that takes for ever", 408)

    def _chunk_size(self) -> int:
        size, _, extension = self._wire.line().partition(b";")
        if b"\n" in extension or b"\r" in extension:
            raise BadMessage("a line break in a chunk extension")
        try:
            return hexadecimal(size.rstrip(b" \t"))
        except ValueError:
            raise BadMessage("not a chunk size") from None

    def _trailers(self) -> None:
        """Read and dropped: nothing here asks for any."""
        for _ in range(LINES_MAX):
            if not self._wire.line():
                return
        raise BadMessage("too many trailer lines")

    def read(self, limit_bytes: int = 64 << 20) -> bytes:
        parts, size = [], 0
        if self._left > limit_bytes:  # as its length says: it need not be sent first
            raise BadMessage("body too large", 413)
        for block in self:
            size += len(block)
            if size > limit_bytes:
                raise BadMessage("body too large", 413)
            parts.append(block)
        return b"".join(parts)

    def drain(self) -> bool:
        """Read what the handler left; False when that is too much or was never asked for, and the
        connection must close."""
        if self.done:
            return True
        if self._go_on or self._chunked or self._left > DRAIN_MAX:
            return False
        for _ in self:
            pass
        return True

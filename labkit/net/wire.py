"""The server's end of a connection: heads, lines and bodies out of one read buffer.

    wire = Wire(sock)
    request = parse_request(wire.head())
    for block in Body(wire, size_bytes, chunked=False, go_on=False): …

A body is read as it is asked for; one that its handler left unread is drained, or ends the connection when that would be
too much. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

from labkit.net.message import HEAD_MAX, BadMessage

RECEIVE = 1 << 20
DRAIN_MAX = 4 << 20


class Gone(Exception):
    """The client went away."""


class Wire:
    """One connection with a read buffer."""

    def __init__(self, sock: socket.socket):
        self.sock, self._buffer = sock, bytearray()

    def _more(self) -> None:
        got = self.sock.recv(RECEIVE if len(self._buffer) else 65536)
        if not got:
            raise Gone
        self._buffer += got

    def head(self) -> bytes | None:
        """The next head without its empty line; None when the client is done."""
        while True:
            while self._buffer[:2] == b"\r\n":
                del self._buffer[:2]
            at = self._buffer.find(b"\r\n\r\n")
            if at >= 0:
                raw = bytes(self._buffer[:at])
                del self._buffer[: at + 4]
                return raw
            if len(self._buffer) > HEAD_MAX:
                raise BadMessage("head too large", 413)
            # A client that tries TLS first waits for its time-out unless it is told at once.
            if self._buffer and not self._buffer[:1].isalpha():
                raise BadMessage("not HTTP (TLS is not spoken here)")
            try:
                self._more()
            except Gone:
                return None

    def line(self) -> bytes:
        while True:
            at = self._buffer.find(b"\r\n")
            if at >= 0:
                raw = bytes(self._buffer[:at])
                del self._buffer[: at + 2]
                return raw
            if len(self._buffer) > HEAD_MAX:
                raise BadMessage("line too long")
            self._more()

    def some(self, limit: int) -> bytes:
        if not self._buffer:
            got = self.sock.recv(limit)
            if not got:
                raise Gone
            return got
        raw = bytes(self._buffer[:limit])
        del self._buffer[:limit]
        return raw

    def send(self, data: bytes | memoryview) -> None:
        self.sock.sendall(data)


class Body:
    """The body of one request, de-chunked. `iter()` yields blocks; the views are valid until the next one."""

    def __init__(self, wire: Wire, size_bytes: int | None, chunked: bool, go_on: bool):
        self._wire, self._left, self._chunked, self._go_on = wire, size_bytes or 0, chunked, go_on
        self.size_bytes = None if chunked else size_bytes
        self.done = not chunked and not self._left

    def __iter__(self) -> Iterator[bytes]:
        if self._go_on and not self.done:
            self._wire.send(b"HTTP/1.1 100 Continue\r\n\r\n")
            self._go_on = False
        while not self.done:
            if self._chunked and not self._left:
                line = self._wire.line().split(b";")[0].strip()
                try:
                    self._left = int(line, 16)
                except ValueError:
                    raise BadMessage("not a chunk size") from None
                if self._left < 0 or len(line) > 16:
                    raise BadMessage("not a chunk size")
                if not self._left:
                    while self._wire.line():
                        pass
                    self.done = True
                    return
            block = self._wire.some(min(self._left, RECEIVE))
            self._left -= len(block)
            if self._chunked and not self._left and self._wire.line():
                raise BadMessage("a chunk longer than it says")
            self.done = not self._chunked and not self._left
            yield block

    def read(self, limit_bytes: int = 64 << 20) -> bytes:
        parts, size = [], 0
        for block in self:
            size += len(block)
            if size > limit_bytes:
                raise BadMessage("body too large", 413)
            parts.append(block)
        return b"".join(parts)

    def drain(self) -> bool:
        """Read what the handler left; False when that is too much or was never asked for, and the connection must close."""
        if self.done:
            return True
        if self._go_on or self._chunked or self._left > DRAIN_MAX:
            return False
        for _ in self:
            pass
        return True

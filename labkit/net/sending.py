"""One answer on its way out: in slices the link lets go, by sendfile, or as it is made; or broken
in the middle, on demand.

    with Sending(wire, response, pacer, fault) as sending:       # closes what the answer holds,
        whatever happens
        whole = sending.run(head)                                # False: the connection is over
    sending.sent                                                 # bytes of the body

Physical limit: `os.sendfile` releases the interpreter lock; an unshaped answer is one call for
megabytes. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

from labkit.net.faults import Fault
from labkit.net.link import Pacer
from labkit.net.message import FileSlice, Response
from labkit.net.wire import Wire


class Sending:
    """`bare`: an answer without its body (HEAD, 204, 304). `chunked`: how a stream is framed; else
    its end is the connection's."""

    def __init__(
        self,
        wire: Wire,
        response: Response,
        pacer: Pacer,
        fault: Fault | None = None,
        *,
        bare: bool = False,
        chunked: bool = True,
    ):
        self.wire, self.response, self.pacer, self.fault, self.bare, self.chunked = (
            wire,
            response,
            pacer,
            fault,
            bare,
            chunked,
        )
        self.sent = 0

    def __enter__(self) -> Sending:
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()

    def run(self, head: bytes) -> bool:
        """True: all of it went, and the connection may go on. Raises OSError."""
        if self.bare:
            self.wire.send(head)
            return True
        if self.response.stream is not None:
            return self._stream(head, self.response.stream)
        parts, length = self.response.parts, self.response.length
        small = b"".join(p for p in parts if isinstance(p, bytes)) if len(parts) <= 1 else b""
        if len(small) == length and not self.fault:
            if length and (
                self.pacer.link.rate_bytes_per_s or self.pacer.link.connection_bytes_per_s
            ):
                with self.pacer.lane() as lane:
                    lane.wait(length)
            self.wire.send(head + small)
            self.sent = length
            return True
        self.wire.send(head)
        return self._parts(length)

    def _stream(self, head: bytes, blocks: Iterator[bytes]) -> bool:
        for block in blocks:
            self.wire.send(
                head + (b"%x\r\n%b\r\n" % (len(block), block) if self.chunked else block)
            )
            self.sent, head = self.sent + len(block), b""
        self.wire.send(head + (b"0\r\n\r\n" if self.chunked else b""))
        return self.chunked

    def _parts(self, length: int) -> bool:
        fault, sock = self.fault, self.wire.sock
        with self.pacer.lane(
            fault.slowed_to_bytes_per_s if fault and fault.kind == "straggler" else None
        ) as lane:
            breaks_at = (
                int(length * fault.at)
                if fault and fault.kind in ("reset", "truncate", "stall", "corrupt")
                else None
            )
            for part in self.response.parts:
                for offset, size in _slices(part, lane.slice_bytes):
                    if breaks_at is not None and self.sent + size > breaks_at:
                        assert fault
                        if fault.kind == "corrupt":
                            lane.wait(size)
                            self.wire.send(_flipped(part, offset, size, breaks_at - self.sent))
                            self.sent, breaks_at = self.sent + size, None
                            continue
                        size = breaks_at - self.sent
                        if size:
                            _send_slice(sock, part, offset, size)
                            self.sent += size
                        return _break(sock, fault)
                    if lane.slice_bytes is not None:
                        lane.wait(size)
                    _send_slice(sock, part, offset, size)
                    self.sent += size
        return True


def _break(sock: socket.socket, fault: Fault) -> bool:
    if fault.kind == "reset":
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    elif fault.kind == "stall":
        sock.recv(1)  # until the client loses patience
    return False


def _slices(part: bytes | FileSlice, slice_bytes: int | None) -> Iterator[tuple[int, int]]:
    size = len(part) if isinstance(part, bytes) else part.size_bytes
    start = 0 if isinstance(part, bytes) else part.offset
    step = slice_bytes or 8 << 20
    for at in range(0, size, step):
        yield start + at, min(step, size - at)


def _send_slice(sock: socket.socket, part: bytes | FileSlice, offset: int, size: int) -> None:
    if isinstance(part, bytes):
        sock.sendall(memoryview(part)[offset : offset + size])
        return
    while size:
        sent = os.sendfile(sock.fileno(), part.fd, offset, size)
        if not sent:
            raise OSError("the file got shorter while it was sent")
        offset, size = offset + sent, size - sent


def _flipped(part: bytes | FileSlice, offset: int, size: int, at: int) -> bytes:
    data = bytearray(
        part[offset : offset + size] if isinstance(part, bytes) else os.pread(part.fd, size, offset)
    )
    at = min(max(at, 0), len(data) - 1)
    data[at] ^= 0x01
    return bytes(data)

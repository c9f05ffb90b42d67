"""The server under the embedded registry and the embedded object store: a thread a connection, keep-alive, sendfile in paced slices.

Physical limit: loopback, 1-2 GB/s here on two cores shared with the client. Python stays out of the bytes: `os.sendfile`
releases the interpreter lock, and an unshaped answer is one call for megabytes. A shaped one is sent in slices that the
link's virtual clock lets go (`labkit.net.link`). Faults are injected at the same place (`labkit.net.faults`).

    with Server(app, link=parse("1gbit")) as server:       # app(request) -> Response
        print(server.url)

Beside the app's own paths every server answers `/_labkit/stats`, `/_labkit/link`, `/_labkit/faults`, `/_labkit/reset`
(never shaped, never counted): the counters are the evidence of a trial. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from labkit.errors import LabError
from labkit.net import faults as faults_room
from labkit.net import link as link_room
from labkit.net.message import REASONS, BadMessage, FileSlice, Request, Response, content_length, parse_request, text
from labkit.net.wire import Body, Gone, Wire

App = Callable[[Request], Response]
#: A client that takes nothing for so long is gone.
SEND_TIMEOUT_S = 120
PATHS_COUNTED = 20_000


class Counters:
    """What left this server, by path: the evidence that a technique fetched what it says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.open = 0
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self.requests = self.bytes_sent = self.bytes_received = self.ranges = self.connections = 0
            self.peak_connections = self.open
            self.by_path: dict[str, dict[str, int]] = {}
            self.by_status: dict[str, int] = {}

    def connected(self, by: int) -> None:
        with self._lock:
            self.open += by
            self.connections += by > 0
            self.peak_connections = max(self.peak_connections, self.open)

    def add(self, request: Request, status: int, sent: int) -> None:
        with self._lock:
            self.requests += 1
            self.bytes_sent += sent
            self.ranges += "range" in request.headers
            self.by_status[str(status)] = self.by_status.get(str(status), 0) + 1
            if request.path in self.by_path or len(self.by_path) < PATHS_COUNTED:
                of = self.by_path.setdefault(request.path, {"requests": 0, "bytes_sent": 0})
                of["requests"] += 1
                of["bytes_sent"] += sent

    def received(self, size_bytes: int) -> None:
        with self._lock:
            self.bytes_received += size_bytes

    def as_json(self) -> dict[str, Any]:
        with self._lock:
            return {"requests": self.requests, "bytes_sent": self.bytes_sent, "bytes_received": self.bytes_received,
                    "ranges": self.ranges, "connections": self.connections, "peak_connections": self.peak_connections,
                    "by_status": dict(self.by_status), "by_path": {k: dict(v) for k, v in self.by_path.items()}}


class Server:
    """Serves `app` until `stop` (or the end of the `with`). `port` 0 takes a free one."""

    def __init__(self, app: App, *, host: str = "127.0.0.1", port: int = 0, link: link_room.Link | str | None = None,
                 faults: faults_room.Faults | None = None, name: str = "labkit"):
        self.app, self.name = app, name
        self.pacer = link_room.Pacer(link_room.parse(link))
        self.faults = faults or faults_room.Faults()
        self.counters = Counters()
        self._threads: set[threading.Thread] = set()
        self._sockets: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._stopping = False
        try:
            self._listener = socket.create_server((host, port), backlog=512)
        except OSError as error:
            raise LabError(f"cannot listen on {host}:{port}: {error.strerror}", why="another server holds the port, or it is below 1024",
                           fix="--port 0 takes a free one") from None
        self.host, self.port = self._listener.getsockname()[:2]

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    @property
    def link(self) -> link_room.Link:
        return self.pacer.link

    def start(self) -> Server:
        threading.Thread(target=self._accept, name=f"{self.name}-accept", daemon=True).start()
        return self

    def stop(self, patience_s: float = 2.0) -> None:
        self._stopping = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._sockets:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            threads = list(self._threads)
        until = time.monotonic() + patience_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def __enter__(self) -> Server:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accept(self) -> None:
        while not self._stopping:
            try:
                sock, peer = self._listener.accept()
            except OSError:
                if self._stopping:
                    return
                time.sleep(0.05)  # out of descriptors: existing connections will end
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT_S, 0))
            thread = threading.Thread(target=self._connection, args=(sock, peer[0]), name=f"{self.name}-connection", daemon=True)
            with self._lock:
                self._sockets.add(sock)
                self._threads.add(thread)
            thread.start()

    def _connection(self, sock: socket.socket, peer: str) -> None:
        self.counters.connected(+1)
        try:
            wire = Wire(sock)
            while not self._stopping and self._exchange(wire, peer):
                pass
        except (Gone, OSError):
            pass
        finally:
            self.counters.connected(-1)
            with self._lock:
                self._sockets.discard(sock)
                self._threads.discard(threading.current_thread())
            sock.close()

    def _exchange(self, wire: Wire, peer: str) -> bool:
        """One request and its answer. True: the connection goes on."""
        request = None
        try:
            raw = wire.head()
            if raw is None:
                return False
            request = parse_request(raw)
            request.peer = peer
            coding = request.header("transfer-encoding").lower()
            if coding not in ("", "identity", "chunked"):
                raise BadMessage(f"transfer-encoding {coding}", 501)
            request.body = Body(wire, content_length(request.headers), coding == "chunked",
                                request.header("expect").lower() == "100-continue")
            ours = request.path.startswith("/_labkit/")
            arrived_s = time.monotonic()
            response = self._admin(request) if ours else self._refusal(request) or self.app(request)
        except BadMessage as error:
            response = text(error.status, f"{error}\n", Connection="close")
            self._send(wire, request or Request("GET", "/", "/", "/", {}, "", {}), response, None, 0.0)
            return False
        except (Gone, OSError) as error:
            if isinstance(error, OSError) and request is not None and error.errno is not None and not isinstance(error, ConnectionError):
                self._send(wire, request, text(500, f"{type(error).__name__}: {error}\n", Connection="close"), None, 0.0)
            return False
        except Exception:  # a defect of the app: the client gets a 500, the log the traceback, the server lives on
            traceback.print_exc(file=sys.stderr)
            self._send(wire, request, text(500, "internal error\n", Connection="close"), None, 0.0)
            return False
        if request.body.size_bytes:
            self.counters.received(request.body.size_bytes)
        go_on = request.body.drain() and request.header("connection").lower() != "close"
        fault = None if ours or request.method != "GET" else self.faults.draw(
            request.method, request.path, request.header("range"), response.length, body=True)
        wait_s = 0.0 if ours else self.link.first_byte_s - (time.monotonic() - arrived_s)
        if not go_on:
            response.headers["Connection"] = "close"
        return self._send(wire, request, response, fault, wait_s, counted=not ours) and go_on

    def _refusal(self, request: Request) -> Response | None:
        fault = self.faults.draw(request.method, request.path, request.header("range"), body=False)
        if fault is None:
            return None
        headers = {} if fault.kind == "500" else {"Retry-After": f"{fault.retry_after_s:g}"}
        return Response(int(fault.kind), {"Content-Type": "text/plain", **headers}, (b"injected fault\n",))

    def _send(self, wire: Wire, request: Request, response: Response, fault: faults_room.Fault | None, wait_s: float,
              counted: bool = True) -> bool:
        length, sent = response.length, 0
        lines = [f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Status')}", f"Server: {self.name}"]
        lines += [f"{k}: {v}" for k, v in response.headers.items()]
        if response.status != 204:
            lines.append(f"Content-Length: {length}")
        head = ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")
        bare = request.method == "HEAD" or response.status in (204, 304)
        try:
            if wait_s > 0:
                time.sleep(wait_s)
            small = b"".join(p for p in response.parts if isinstance(p, bytes)) if not bare and len(response.parts) <= 1 else b""
            if not bare and len(small) == length and not fault:
                if length:
                    self._pace(length)
                wire.send(head + small)
                sent = length
                return True
            wire.send(head)
            if bare:
                return True
            with self.pacer.lane(fault.slowed_to_bytes_per_s if fault and fault.kind == "straggler" else None) as lane:
                breaks_at = int(length * fault.at) if fault and fault.kind in ("reset", "truncate", "stall", "corrupt") else None
                for part in response.parts:
                    for offset, size in _slices(part, lane.slice_bytes):
                        if breaks_at is not None and sent + size > breaks_at:
                            assert fault
                            if fault.kind == "corrupt":
                                lane.wait(size)
                                wire.send(_flipped(part, offset, size, breaks_at - sent))
                                sent, breaks_at = sent + size, None
                                continue
                            size = breaks_at - sent
                            if size:
                                _send_slice(wire.sock, part, offset, size)
                                sent += size
                            return self._break(wire.sock, fault)
                        if lane.slice_bytes is not None:
                            lane.wait(size)
                        _send_slice(wire.sock, part, offset, size)
                        sent += size
            return True
        except OSError:
            return False
        finally:
            for part in response.files():
                os.close(part.fd)
            if counted:
                self.counters.add(request, response.status, sent)

    def _pace(self, size_bytes: int) -> None:
        if self.link.rate_bytes_per_s or self.link.connection_bytes_per_s:
            with self.pacer.lane() as lane:
                lane.wait(size_bytes)

    def _break(self, sock: socket.socket, fault: faults_room.Fault) -> bool:
        if fault.kind == "reset":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif fault.kind == "stall":
            sock.recv(1)  # until the client loses patience
        return False

    def _admin(self, request: Request) -> Response:
        what = request.path.removeprefix("/_labkit/")
        body = request.body.read(1 << 20).decode("utf-8", "replace").strip()
        try:
            if what == "link" and body:
                self.pacer = link_room.Pacer(link_room.parse(body))
            elif what == "faults" and request.method in ("POST", "PUT"):
                doc = json.loads(body) if body.startswith(("[", "{")) else body.split()
                seed = doc.get("seed", 0) if isinstance(doc, dict) else 0
                self.faults = faults_room.parse(doc.get("faults", []) if isinstance(doc, dict) else doc, seed)
            elif what == "reset":
                self.counters.clear()
                self.faults.hits.clear()
            elif what != "stats" and what not in ("link", "faults"):
                return text(404, "/_labkit/ has stats, link, faults, reset\n")
        except (LabError, ValueError, TypeError, AttributeError) as error:
            return text(400, f"{error}\n")
        doc = {"server": self.name, "link": self.link.spec, "link_label": self.link.label, "faults": dict(self.faults.hits),
               **self.counters.as_json()}
        return text(200, json.dumps(doc), "application/json")


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
    data = bytearray(part[offset : offset + size] if isinstance(part, bytes) else os.pread(part.fd, size, offset))
    at = min(max(at, 0), len(data) - 1)
    data[at] ^= 0x01
    return bytes(data)

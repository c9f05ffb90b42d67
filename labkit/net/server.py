"""The server under the embedded registry, the object store and the subject: a thread a connection,
keep-alive, sendfile in paced slices.

Physical limit: loopback, 1-2 GB/s here on two cores shared with the client. Python stays out of the
bytes (`labkit.net.sending`). A shaped answer is sent in slices that the link's virtual clock lets
go (`labkit.net.link`); faults are injected at the same place (`labkit.net.faults`). Connections are
taken by `labkit.net.accept`, heads read and written by `labkit.net.head`, and `labkit.net.guard`
says who may ask.

    with Server(app, link=parse("1gbit")) as server:       # app(request) -> Response
        print(server.url)

Beside the app's own paths every server answers `/_labkit/stats`, `/_labkit/transfers`,
`/_labkit/link`, `/_labkit/faults`, `/_labkit/reset` (never shaped, never counted): the counters are
the evidence of a trial. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import json
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable

from labkit.core.json_types import JsonObject
from labkit.errors import LabError
from labkit.net.accept import MOST, Acceptor, Held, exhausted
from labkit.net.faults import Fault, Faults
from labkit.net.faults import parse as parse_faults
from labkit.net.guard import CONTROL_PATH, Guard
from labkit.net.head import BadMessage, Unsendable, framing, write_head
from labkit.net.link import Link, Pacer
from labkit.net.link import parse as parse_link
from labkit.net.message import REASONS, Request, Response, parse_request, text
from labkit.net.sending import Sending
from labkit.net.wire import Body, ClientGone, Wire

App = Callable[[Request], Response]
PATHS_COUNTED, PATH_COUNTED_MAX = 20_000, 1024
TRANSFERS_KEPT = 4096  # about 1 MB; the newest of them


class Counters:
    """What left this server, by path: the evidence that a technique fetched what it says."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.open = 0
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self.requests = self.bytes_sent = self.bytes_received = self.ranges = (
                self.connections
            ) = 0
            self.peak_connections = self.open
            self.by_path: dict[str, dict[str, int]] = {}
            self.by_status: dict[str, int] = {}
            # path, begin and end on CLOCK_MONOTONIC, bytes sent
            self._transfers: deque[tuple[str, float, float, int]] = deque(maxlen=TRANSFERS_KEPT)

    def connected(self, by: int) -> None:
        with self._lock:
            self.open += by
            self.connections += by > 0
            self.peak_connections = max(self.peak_connections, self.open)

    def add(self, request: Request, status: int, sent: int, began_s: float) -> None:
        with self._lock:
            self.requests += 1
            self.bytes_sent += sent
            self.ranges += "range" in request.headers
            self.by_status[str(status)] = self.by_status.get(str(status), 0) + 1
            path = request.path[:PATH_COUNTED_MAX]
            if path in self.by_path or len(self.by_path) < PATHS_COUNTED:
                of = self.by_path.setdefault(path, {"requests": 0, "bytes_sent": 0})
                of["requests"] += 1
                of["bytes_sent"] += sent
            self._transfers.append((path, began_s, time.monotonic(), sent))

    def transfers(self, since_s: float) -> list[tuple[str, float, float, int]]:
        """Of the newest requests those that were answered since then, each from its head's arrival
        until its last byte was the kernel's."""
        with self._lock:
            return [t for t in self._transfers if t[2] >= since_s]

    def received(self, size_bytes: int) -> None:
        with self._lock:
            self.bytes_received += size_bytes

    def as_json(self) -> JsonObject:
        with self._lock:
            return {
                "requests": self.requests,
                "bytes_sent": self.bytes_sent,
                "bytes_received": self.bytes_received,
                "ranges": self.ranges,
                "connections": self.connections,
                "peak_connections": self.peak_connections,
                "by_status": dict(self.by_status),
                "by_path": {k: dict(v) for k, v in self.by_path.items()},
            }


class HTTPServer:
    """Serves `app` until `stop` (or the end of the `with`). `port` 0 takes a free one.

    A subclass may answer `/_labkit/*` (`control`), shape what is refused before the app is asked
    (`refuse`) and say how many connections it takes at a time (`most`)."""

    most = MOST

    def __init__(
        self,
        app: App,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        link: Link | str | None = None,
        faults: Faults | None = None,
        name: str = "labkit",
    ):
        self.app, self.name = app, name
        self.pacer = Pacer(parse_link(link))
        self.faults = faults or Faults()
        self.counters = Counters()
        self.guard = Guard(host)
        self._acceptor = Acceptor(host, port, self._connection, name=name, most=self.most)
        self.host, self.port = self._acceptor.host, self._acceptor.port

    @property
    def url(self) -> str:
        return (
            f"http://[{self.host}]:{self.port}"
            if ":" in self.host
            else f"http://{self.host}:{self.port}"
        )

    @property
    def link(self) -> Link:
        return self.pacer.link

    def start(self) -> HTTPServer:
        self._acceptor.start()
        return self

    def stop(self, patience_s: float = 2.0) -> None:
        self._acceptor.stop(patience_s)

    def __enter__(self) -> HTTPServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def refuse(self, status: int, message: str) -> Response:
        return text(status, message + "\n")

    def _connection(self, held: Held) -> None:
        self.counters.connected(+1)
        try:
            wire, here = Wire(held.sock), held.sock.getsockname()[0]
            while not self._acceptor.stopping and self._exchange(wire, held, here):
                held.waiting_since_s = time.monotonic()
            if wire.unread:
                wire.linger()
        except (ClientGone, OSError, MemoryError):
            pass
        finally:
            self.counters.connected(-1)

    def _exchange(self, wire: Wire, held: Held, here: str) -> bool:
        """One request and its answer. True: the connection goes on."""
        request = response = None
        try:
            raw = wire.head()
            held.waiting_since_s = None
            if raw is None:
                return False
            request = parse_request(raw)
            request.peer = held.host
            size_bytes, chunked = framing(request.version, request.headers)
            request.body = Body(
                wire, size_bytes, chunked, request.header("expect").lower() == "100-continue"
            )
            self.guard.check(request, here)
            ours = request.path.startswith(CONTROL_PATH)
            arrived_s = time.monotonic()
            response = (
                self.control(request) if ours else self._refusal(request) or self.app(request)
            )
            if request.body.size_bytes:
                self.counters.received(request.body.size_bytes)
            go_on = request.body.drain() and request.keeps_alive
            fault = (
                None
                if ours or request.method != "GET" or response.stream is not None
                else self.faults.draw(
                    request.method,
                    request.path,
                    request.header("range"),
                    response.length,
                    body=True,
                )
            )
            wait_s = 0.0 if ours else self.link.first_byte_s - (time.monotonic() - arrived_s)
            return self._send(
                wire, request, response, go_on, fault, wait_s, None if ours else arrived_s
            )
        except Exception as error:
            held.waiting_since_s = None
            if response is not None:
                response.close()
            refusal = self._failure(error)
            if refusal is not None:
                self._send(
                    wire, request or Request("GET", "/", "/", "/", {}, "", {}), refusal, False
                )
            return False

    def _failure(self, error: Exception) -> Response | None:
        """What a client is told when its request ended in an error; None: it is gone, so
        nothing."""
        if isinstance(error, BadMessage):
            return self.refuse(error.status, str(error))
        if exhausted(error):
            response = self.refuse(503, "this server has run out of something: ask again")
            response.headers["Retry-After"] = "1"
            return response
        if isinstance(error, (ClientGone, ConnectionError, BlockingIOError)):
            return None
        if isinstance(error, OSError):
            print(f"{self.name}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return self.refuse(500, f"{type(error).__name__}: {error.strerror}")
        if isinstance(error, Unsendable):
            print(f"{self.name}: {error}", file=sys.stderr, flush=True)
            return self.refuse(500, "what is stored here cannot be put into a header")
        # a defect of the app: the client gets a 500, the log this, the server lives on
        traceback.print_exception(error, file=sys.stderr)
        return self.refuse(500, "internal error")

    def _refusal(self, request: Request) -> Response | None:
        fault = self.faults.draw(request.method, request.path, request.header("range"), body=False)
        if fault is None:
            return None
        headers = {} if fault.kind == "500" else {"Retry-After": f"{fault.retry_after_s:g}"}
        return Response(
            int(fault.kind), {"Content-Type": "text/plain", **headers}, (b"injected fault\n",)
        )

    def _send(
        self,
        wire: Wire,
        request: Request,
        response: Response,
        go_on: bool,
        fault: Fault | None = None,
        wait_s: float = 0.0,
        counted_since_s: float | None = None,
    ) -> bool:
        """True: all of it went, and the connection goes on. `counted_since_s`: when a request that
        counts arrived. Raises Unsendable before anything is sent."""
        chunked = response.stream is not None and request.version == "HTTP/1.1"
        go_on = go_on and (response.stream is None or chunked)
        fields = {"Server": self.name, **response.headers}
        if chunked:
            fields["Transfer-Encoding"] = "chunked"
        elif response.stream is None and response.status not in (204, 304):
            fields["Content-Length"] = str(response.length)
        if not go_on:
            fields["Connection"] = "close"
        bare = request.method == "HEAD" or response.status in (204, 304)
        with Sending(wire, response, self.pacer, fault, bare=bare, chunked=chunked) as sending:
            head = write_head(
                f"HTTP/1.1 {response.status} {REASONS.get(response.status, 'Status')}", fields
            )
            try:
                if wait_s > 0:
                    time.sleep(wait_s)
                return sending.run(head) and go_on
            except OSError:
                return False
            except Exception as error:
                # a stream that broke: what was sent cannot be taken back, so the connection ends
                if not exhausted(error):
                    traceback.print_exception(error, file=sys.stderr)
                return False
            finally:
                if counted_since_s is not None:
                    self.counters.add(request, response.status, sending.sent, counted_since_s)

    def control(self, request: Request) -> Response:
        """The answer to what is below `/_labkit/`."""
        name, reads = request.path.removeprefix(CONTROL_PATH), request.method in ("GET", "HEAD")
        if name not in ("stats", "transfers", "link", "faults", "reset"):
            return text(404, "/_labkit/ has stats, transfers, link, faults, reset\n")
        if (
            (name in ("stats", "transfers") and not reads)
            or (name == "reset" and reads)
            or not (reads or request.method in ("POST", "PUT"))
        ):
            return text(405, "GET reads, POST changes\n")
        body = request.body.read(1 << 20).decode("utf-8", "replace").strip()
        try:
            if name == "link" and not reads:
                self.pacer = Pacer(parse_link(body))
            elif name == "faults" and not reads:
                doc = json.loads(body) if body.startswith(("[", "{")) else body.split()
                seed = doc.get("seed", 0) if isinstance(doc, dict) else 0
                self.faults = parse_faults(
                    doc.get("faults", []) if isinstance(doc, dict) else doc, seed
                )
            elif name == "transfers":
                since_s = float(request.query.get("since_s", "0"))
                return text(200, json.dumps(self.counters.transfers(since_s)), "application/json")
            elif name == "reset":
                self.counters.clear()
                self.faults.hits.clear()
        except (LabError, ValueError, TypeError, AttributeError, RecursionError) as error:
            return text(400, f"{error}\n")
        doc = {
            "server": self.name,
            "link": self.link.spec,
            "link_label": self.link.label,
            "faults": dict(self.faults.hits),
            **self.counters.as_json(),
        }
        return text(200, json.dumps(doc), "application/json")

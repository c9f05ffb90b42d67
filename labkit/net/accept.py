"""The one accept loop of the lab's servers: a thread a connection, a bound on both, and no pressure
that ends it for good.

What a kernel says at `accept` is of three kinds. The connection is gone already (ECONNABORTED):
take the next. This process or host has run out (EMFILE, ENFILE, ENOBUFS, no memory, "can't start
new thread"): let the client that has waited longest without asking anything go, wait until
something ends, go on. The listener is closed: that was `stop`.

    with Acceptor("127.0.0.1", 0, serve, name="store") as acceptor:      # serve(held) runs in a
        thread of its own
        print(acceptor.port)

At `most` connections a new one takes the place of the one that has been silent longest (an idle
keep-alive, a slow head); where all are at work it gets 503 at once. Physical limit: 8 MiB of
address space and about 50 KB of memory a thread. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import errno
import resource
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from labkit.errors import LabError
from labkit.net.head import write_head

MOST = 1024
BACKLOG = 512
#: The connection that was waiting is gone, or its network is; the listener is well.
_GONE = {
    errno.ECONNABORTED,
    errno.EINTR,
    errno.EPROTO,
    errno.ENETDOWN,
    errno.ENOPROTOOPT,
    errno.EHOSTDOWN,
    errno.ENONET,
    errno.EHOSTUNREACH,
    errno.EOPNOTSUPP,
    errno.ENETUNREACH,
    errno.ETIMEDOUT,
    errno.EPERM,
    errno.EAGAIN,
}
_OUT_OF = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
#: Left for files: every connection at work has one open.
DESCRIPTORS_KEPT = 16
PAUSE_S, PAUSE_MOST_S = 0.01, 1.0


def exhausted(error: BaseException) -> bool:
    """Whether an error says that this process or host has run out of something that will come
    back."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _OUT_OF)


@dataclass(eq=False)
class Held:
    """One connection. `waiting_since_s`: nothing has been asked on it since; None while a request
    is at work."""

    sock: socket.socket
    host: str
    waiting_since_s: float | None = None
    thread: threading.Thread | None = field(default=None, repr=False)

    def cut(self) -> None:
        """Make its thread's reads and writes end at once."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)


def _start_thread(thread: threading.Thread) -> None:
    thread.start()


class Acceptor:
    """Listens from the moment it is made; takes connections from `start` on. `start_thread` is for
    tests of hosts that have none left."""

    def __init__(
        self,
        host: str,
        port: int,
        serve: Callable[[Held], None],
        *,
        name: str = "labkit",
        most: int = MOST,
        start_thread: Callable[[threading.Thread], None] = _start_thread,
    ):
        self._serve, self.name, self.most, self._start_thread = serve, name, most, start_thread
        self._held: set[Held] = set()
        self._lock = threading.Lock()
        self._freed = threading.Event()
        self._told = False
        self.stopping = False
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            both = host == "::" and socket.has_dualstack_ipv6()
            self.listener = socket.create_server(
                (host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both
            )
        except (OSError, OverflowError, UnicodeError) as error:
            raise LabError(
                f"cannot listen on {host}:{port}: {getattr(error, 'strerror', None) or error}",
                why=(
                    "another server holds the port, it is below 1024, or the address is not of this"
                    " host"
                ),
                fix="--port 0 takes a free one",
            ) from None
        self._first = self.listener.fileno()
        self.host, self.port = self.listener.getsockname()[:2]

    def __enter__(self) -> Acceptor:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> Acceptor:
        try:
            threading.Thread(target=self._loop, name=f"{self.name}-accept", daemon=True).start()
        except RuntimeError as error:
            self.listener.close()
            raise LabError(
                f"{self.name}: {error}",
                why="nobody would take connections",
                fix="end some processes, or raise ulimit -u",
            ) from None
        return self

    def stop(self, patience_s: float = 2.0) -> None:
        self.stopping = True
        self._freed.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        with self._lock:
            threads = [h.thread for h in self._held if h.thread is not None]
            for held in self._held:
                held.cut()
        until = time.monotonic() + patience_s
        for thread in threads:
            # taken, but not started yet: its connection is cut already
            with contextlib.suppress(RuntimeError):
                thread.join(max(0.0, until - time.monotonic()))

    def _loop(self) -> None:
        pause_s = PAUSE_S
        while not self.stopping:
            self._freed.clear()
            sock = None
            try:
                sock, peer = self.listener.accept()
                if not self._make_room():
                    _refuse(sock)
                    continue
                self._admit(sock, peer[0])
                pause_s = PAUSE_S
            except (OSError, RuntimeError, MemoryError) as error:
                if sock is not None:
                    _refuse(sock)
                if self.stopping:
                    return
                if isinstance(error, OSError) and (
                    error.errno in _GONE or (sock is not None and not exhausted(error))
                ):
                    continue
                self._tell(error)
                # whoever has only just come has not been silent, only slower than this loop
                self._shed(keep=1)
                self._freed.wait(pause_s)
                pause_s = min(PAUSE_MOST_S, pause_s * 2)

    def _admit(self, sock: socket.socket, peer: str) -> None:
        """Hand it to a thread of its own. Raises RuntimeError where there is none to have."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        held = Held(sock, peer, time.monotonic())
        held.thread = threading.Thread(
            target=self._run, args=(held,), name=f"{self.name}-connection", daemon=True
        )
        with self._lock:
            self._held.add(held)
        try:
            self._start_thread(held.thread)
        except BaseException:
            with self._lock:
                self._held.discard(held)
            raise

    def _run(self, held: Held) -> None:
        try:
            self._serve(held)
        finally:
            with self._lock:
                self._held.discard(held)
            held.sock.close()
            self._freed.set()

    def _make_room(self) -> bool:
        """False where there is none: too many connections, or too few descriptors left for what
        they will ask for."""
        most, limit = self.most, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit != resource.RLIM_INFINITY:
            # Descriptors are given out from the lowest: the listener's number is about how many
            # others there are.
            most = min(most, max(1, limit - self._first - max(DESCRIPTORS_KEPT, limit // 16)))
        with self._lock:
            full = len(self._held) >= most
        if not full:
            return True
        shed = self._shed()
        if shed:
            # this loop is faster than the threads that close what it cuts
            self._freed.wait(PAUSE_MOST_S)
        return shed

    def _shed(self, keep: int = 0) -> bool:
        """Let the one go that has been silent longest. False: all are at work, but for the `keep`
        that came last."""
        with self._lock:
            waiting = [h for h in self._held if h.waiting_since_s is not None]
            if len(waiting) <= keep:
                return False
            silent = min(waiting, key=lambda h: h.waiting_since_s or 0.0)
            self._held.discard(silent)  # its thread ends by itself; its place is free now
            silent.cut()
            return True

    def _tell(self, error: BaseException) -> None:
        if not self._told:
            self._told = True
            with contextlib.suppress(OSError, ValueError):
                print(
                    f"{self.name}: {error or type(error).__name__}; new clients wait until"
                    " something ends (said once)",
                    file=sys.stderr,
                    flush=True,
                )


def _refuse(sock: socket.socket) -> None:
    """503 without waiting for anything: the accept loop must not depend on a client."""
    with contextlib.suppress(OSError, MemoryError):
        sock.setblocking(False)
        sock.send(
            write_head(
                "HTTP/1.1 503 Service Unavailable",
                {"Retry-After": "1", "Content-Length": "0", "Connection": "close"},
            )
        )
    sock.close()

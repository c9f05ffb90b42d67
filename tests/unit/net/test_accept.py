"""The one loop that takes connections, at its end."""

from __future__ import annotations

import socket
import threading

from labkit.net.accept import Acceptor


def test_a_server_that_ends_while_a_connection_is_being_taken_ends():
    taken, go, served = threading.Event(), threading.Event(), threading.Event()

    def start_late(thread: threading.Thread) -> None:
        taken.set()
        go.wait(10)
        thread.start()

    acceptor = Acceptor("127.0.0.1", 0, lambda held: served.set(), start_thread=start_late).start()
    with socket.create_connection(("127.0.0.1", acceptor.port)):
        assert taken.wait(10)
        acceptor.stop()
        go.set()
        assert served.wait(10), "its thread was lost"

"""labkit.core.control_call against a real server: what is an answer, and what is none."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from labkit.core.control_call import call, call_json, http_url


@contextmanager
def answering(raw: bytes) -> Iterator[tuple[str, list[bytes]]]:
    """A server that answers one request with these bytes; yields its URL and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                asked.append(connection.recv(65536))
                connection.sendall(raw)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
        thread.join(5)


def test_a_call_sends_what_it_is_given_and_no_proxy_is_asked(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with answering(b'HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n{"a":1}') as (url, asked):
        found = call_json(url + "/x?y=1", method="POST", body=b"z", headers={"X-Labkit": "control"})
    assert found == {"a": 1}
    assert asked[0].startswith(b"POST /x?y=1 HTTP/1.1\r\n") and b"X-Labkit: control\r\n" in asked[0]


def test_another_status_is_an_answer_but_no_document():
    raw = b"HTTP/1.1 503 Busy\r\nContent-Length: 3\r\n\r\nnot"
    with answering(raw) as (url, _):
        assert call(url) == (503, b"not")
    with answering(raw) as (url, _), pytest.raises(OSError, match="503"):
        call_json(url)


@pytest.mark.parametrize(
    "raw", [b"", b"SSH-2.0-x\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx"]
)
def test_what_is_no_http_answer_is_an_oserror(raw):
    with answering(raw) as (url, _), pytest.raises(OSError):
        call(url)


def test_an_ipv6_address_is_written_in_brackets():
    assert http_url("::1", 80, "/x") == "http://[::1]:80/x"
    assert http_url("127.0.0.1", 80) == "http://127.0.0.1:80"


def test_nobody_there_is_an_oserror():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with pytest.raises(OSError):
        call(url, timeout_s=0.5)

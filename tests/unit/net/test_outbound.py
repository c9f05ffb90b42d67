"""Which proxy a connection takes and whom it trusts: the names and rules of curl and requests."""

from __future__ import annotations

import socket
import threading

import pytest

from labkit.errors import BadInput, TransferError
from labkit.net.client import Client, Retry
from labkit.net.outbound import Outbound
from labkit.net.place import split

ONCE = Retry(attempts=1)
PROXY = "http://proxy.example:3128"


def proxy_of(url: str, **env: str) -> str:
    found = Outbound(env).proxy(split(url)[0])
    return found.name if found else ""


@pytest.mark.parametrize(
    "url, env",
    [
        ("http://a.example/", {"http_proxy": PROXY}),
        ("http://a.example/", {"HTTP_PROXY": PROXY}),
        ("http://a.example/", {"http_proxy": PROXY, "HTTP_PROXY": "http://other.example"}),
        ("http://a.example/", {"http_proxy": "", "HTTP_PROXY": PROXY}),
        ("https://a.example/", {"https_proxy": PROXY, "http_proxy": "http://other.example"}),
        ("https://a.example/", {"HTTPS_PROXY": PROXY}),
        ("https://a.example/", {"ALL_PROXY": PROXY}),
        ("http://a.example/", {"HTTP_PROXY": "proxy.example:3128"}),
        ("http://a.example/", {"HTTP_PROXY": "http://me:pass@proxy.example:3128/"}),
    ],
)
def test_a_proxy_is_found_by_its_scheme(url, env):
    assert proxy_of(url, **env) == PROXY


@pytest.mark.parametrize(
    "url, env",
    [
        ("https://a.example/", {"HTTP_PROXY": PROXY}),
        ("http://a.example/", {"HTTP_PROXY": PROXY, "REQUEST_METHOD": "GET"}),
        ("http://127.0.0.1:5000/", {"HTTP_PROXY": PROXY}),
        ("http://127.8.9.1/", {"HTTP_PROXY": PROXY}),
        ("http://[::1]:5000/", {"HTTP_PROXY": PROXY}),
        ("http://LOCALHOST/", {"HTTP_PROXY": PROXY}),
        ("http://a.localhost/", {"ALL_PROXY": PROXY}),
    ],
)
def test_no_proxy_is_taken_to_this_host_and_from_an_untrusted_variable(url, env):
    assert proxy_of(url, **env) == ""


EXCEPTIONS = [
    ("http://a.example/", "*", True),
    ("http://a.example/", "b.example, *", True),
    ("http://a.example/", "example", True),
    ("http://a.example/", ".example", True),
    ("http://a.example/", "*.example", True),
    ("http://A.Example/", "a.EXAMPLE", True),
    ("http://a.example/", "a.example.", True),
    ("http://a.example/", "b.example a.example", True),
    ("http://a.example/", "xa.example", False),
    ("http://xa.example/", "a.example", False),
    ("http://a.example:8080/", "a.example:8080", True),
    ("http://a.example/", "a.example:80", True),
    ("http://a.example:8080/", "a.example:80", False),
    ("http://10.1.2.3/", "10.0.0.0/8", True),
    ("http://10.1.2.3/", "10.1.2.3", True),
    ("http://10.1.2.3:81/", "10.1.2.3:80", False),
    ("http://11.1.2.3/", "10.0.0.0/8", False),
    ("http://10.1.2.3/", "not/a/network, 2.3", False),
    ("http://[fd00::5]/", "fd00::/8", True),
    ("http://[fd00::5]:81/", "[fd00::5]:81", True),
    ("http://[fd00::5]/", "10.0.0.0/8", False),
    ("http://a.example/", " , .", False),
]


@pytest.mark.parametrize("url, listed, direct", EXCEPTIONS)
@pytest.mark.parametrize("name", ["no_proxy", "NO_PROXY"])
def test_no_proxy_lists_names_addresses_and_networks(url, listed, direct, name):
    assert (proxy_of(url, ALL_PROXY=PROXY, **{name: listed}) == "") is direct


@pytest.mark.parametrize("value", ["socks5://h:1080", "https://h:3128", "http://", "http://h:x"])
def test_a_proxy_that_is_not_spoken_is_refused_with_its_variable(value):
    with pytest.raises(BadInput, match="HTTP_PROXY"):
        proxy_of("http://a.example/", HTTP_PROXY=value)


class Proxy:
    """Takes one connection, notes the head of its request, answers, and echoes nothing."""

    def __init__(self, answer: bytes):
        self.answer, self.head = answer, b""
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.env = {
            name: f"http://me:p%40ss-word@127.0.0.1:{self._listener.getsockname()[1]}"
            for name in ("HTTP_PROXY", "HTTPS_PROXY")
        }
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                while b"\r\n\r\n" not in self.head and (got := sock.recv(4096)):
                    self.head += got
                sock.sendall(self.answer)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._listener.close()

    def ask(self, url: str) -> bytes:
        with Client(retry=ONCE, timeout_s=5, outbound=Outbound(self.env)) as client:
            body = client.ask("GET", url).body
            self.facts = client.facts()
            return body


def test_a_plain_request_goes_to_the_proxy_with_its_whole_url():
    with Proxy(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi") as proxy:
        assert proxy.ask("http://bucket.example:80/a?b") == b"hi"
    first, *lines = proxy.head.decode().split("\r\n")
    assert first == "GET http://bucket.example/a?b HTTP/1.1"
    assert "Host: bucket.example" in lines
    assert "Proxy-Authorization: Basic bWU6cEBzcy13b3Jk" in lines
    (named,) = proxy.facts["proxies"]
    assert named == proxy.env["HTTP_PROXY"].replace("me:p%40ss-word@", "")


def test_tls_goes_through_a_tunnel_that_the_proxy_is_asked_for():
    with Proxy(b"HTTP/1.1 200 Connection established\r\n\r\n") as proxy:
        with pytest.raises(TransferError, match="TLS with bucket.example"):
            proxy.ask("https://bucket.example/a")
    assert proxy.head.startswith(b"CONNECT bucket.example:443 HTTP/1.1\r\n")
    assert b"Host: bucket.example:443\r\n" in proxy.head and b"/a" not in proxy.head


@pytest.mark.parametrize(
    "url, answer, words",
    [
        ("https://b.example/", b"HTTP/1.1 407 Who\r\n\r\n", "let anybody through to b.example:443"),
        ("https://b.example/", b"HTTP/1.1 502 No\r\n\r\n", "cannot reach b.example:443"),
        ("http://b.example/", b"HTTP/1.1 407 Who\r\nContent-Length: 0\r\n\r\n", "HTTP 407"),
    ],
)
def test_what_a_proxy_refuses_is_said_without_its_password(url, answer, words):
    with Proxy(answer) as proxy, pytest.raises(TransferError) as refused:
        proxy.ask(url)
    assert words in str(refused.value) and "ss-word" not in str(refused.value)


def test_a_bundle_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("no certificate")
    for path in (tmp_path / "ca.pem", tmp_path / "absent"):
        with pytest.raises(BadInput, match="CURL_CA_BUNDLE"):
            Outbound({"CURL_CA_BUNDLE": str(path), "SSL_CERT_FILE": "/unused"}).tls()

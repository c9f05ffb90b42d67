"""Heads and numbers, read and written: what is not plainly one is refused, and what would end its
own line is never sent."""

from __future__ import annotations

import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.digits import decimal, fraction, hexadecimal
from labkit.errors import TransferError
from labkit.net import head
from labkit.net.client import Client, Retry, retry_after_s
from labkit.net.http import Connection, ConnectionLost
from labkit.net.message import text
from labkit.net.place import split
from labkit.net.server import HTTPServer

ODD = [
    "",
    " 5",
    "5 ",
    "+5",
    "-5",
    "1_0",
    "5\n",
    "\n5",
    "²",
    "٣",
    "0x5",
    "5.0",
    "1e3",
    "nan",
    "inf",
    "9" * 19,
]


@pytest.mark.parametrize("given", ODD)
def test_a_number_is_ascii_digits_and_nothing_else(given):
    with pytest.raises(ValueError):
        decimal(given)
    if given not in ("5.0",):
        with pytest.raises(ValueError):
            fraction(given)


@pytest.mark.parametrize("given", ["", " 5", "+5", "-5", "1_0", "0x5", "g", "²", "f" * 17, "5\n"])
def test_a_hexadecimal_number_is_its_digits_and_nothing_else(given):
    with pytest.raises(ValueError):
        hexadecimal(given)


@given(st.integers(0, 10**18 - 1))
def test_numbers_come_back_as_they_were_written(number):
    assert decimal(str(number)) == decimal(str(number).encode()) == number
    assert hexadecimal(f"{number:x}") == hexadecimal(f"{number:X}".encode()) == number


@given(st.text(max_size=40), st.text(max_size=40))
def test_what_can_be_written_reads_back_as_one_header(name, value):
    try:
        raw = head.write_head("HTTP/1.1 200 OK", {name: value})
    except head.Unsendable:
        assert not name or not name.isascii() or not head.is_token(name) or not head.is_value(value)
        return
    read = head.parse_head(raw.removesuffix(b"\r\n\r\n"))
    assert read.headers == {name.lower(): value.strip(" \t")}


@pytest.mark.parametrize(
    "name, value",
    [
        ("A", "b\r\nX: y"),
        ("A", "b\nX: y"),
        ("A", "b\rX"),
        ("A", "b\0"),
        ("A", "日本"),
        ("A\r\nX", "b"),
        ("A b", "c"),
        ("A:", "b"),
        ("", "b"),
        ("Ä", "b"),
    ],
)
def test_no_head_is_written_that_says_more_than_it_should(name, value):
    with pytest.raises(head.Unsendable):
        head.write_head("HTTP/1.1 200 OK", {name: value})


@pytest.mark.parametrize(
    "first",
    [
        "HTTP/1.1 20",
        "HTTP/1.1 2000 OK",
        "HTTP/1.1 +20 OK",
        "HTTP/1.1 2_0 OK",
        "HTTP/1.1  200 OK",
        "HTTP/2 200 OK",
        "HTTP/1.1 ²00 OK",
        "HTTP/1.1 099 no",
        "http/1.1 200 OK",
        "",
    ],
)
def test_a_status_line_has_three_digits(first):
    with pytest.raises(head.BadMessage):
        head.parse_status(first)


@pytest.mark.parametrize(
    "asked",
    [
        "nan",
        "inf",
        "-5",
        "1e9",
        "1_0",
        "²",
        "soon",
        "Mon, 99 Jan 2026 99:00:00 GMT",
        "9" * 5000,
        "",
    ],
)
def test_a_retry_after_that_is_no_time_is_none(asked):
    assert retry_after_s(asked) is None


@given(st.text(max_size=60))
def test_any_retry_after_is_a_time_that_can_be_waited_or_none(asked):
    waited = Retry().wait_s(1, asked)
    assert 0 <= waited <= 60


@pytest.mark.parametrize(
    "url",
    [
        "http://h/a\r\nX: y",
        "http://h/\ta",
        "http://h\0/",
        "http://h:0/",
        "http://h:99999/",
        "http://h:1_0/",
        "http://h:²/",
        "http://h:/",
        "http://h x/",
        "http:///a",
        "ftp://h/",
        "file:///etc/passwd",
        "http://[::1/",
        "http://h\r\n/",
        "javascript:x",
        "",
        "//h/a",
    ],
)
def test_a_url_that_no_request_can_be_made_of_is_refused(url):
    with pytest.raises(ValueError):
        split(url)


@given(st.text(max_size=60))
def test_a_target_made_of_any_path_is_one_word(path):
    try:
        _, target = split("http://h/" + path)
    except ValueError:
        return
    assert target.startswith("/") and target.isascii() and not set(target) & set(" \r\n\t\0\x7f")


@pytest.fixture
def answer():
    """A server that says exactly these bytes to each request."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = []

        def run():
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                with sock:
                    sock.recv(65536)
                    sock.sendall(said[0])

        thread = threading.Thread(target=run, daemon=True)
        thread.start()

        def says(raw: bytes) -> str:
            said[:] = [raw]
            return f"http://127.0.0.1:{listener.getsockname()[1]}/"

        yield says
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 2_0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhello\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 1000,
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 200_000,
        b"HTTP/1.1 200 OK\n\nhello",
        b"HTTP/1.1 200 OK\r\nA: b\nC: d\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n folded\r\n\r\n",
        b"SSH-2.0-x\r\n\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhello",
    ],
    ids=lambda raw: repr(raw[:70]),
)
def test_an_answer_that_is_not_plainly_one_is_a_broken_connection(answer, raw):
    with Connection(answer(raw), timeout_s=20) as wire, pytest.raises(ConnectionLost):
        wire.request("GET", "/", {})
        wire.read()


def test_an_answer_framed_twice_ends_its_connection(answer):
    with Connection(
        answer(
            b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding:"
            b" chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"
        )
    ) as wire:
        wire.request("GET", "/", {})
        assert wire.read() == b"hello" and not wire.reusable


@given(st.binary(max_size=200))
def test_any_bytes_are_an_answer_or_a_broken_connection(raw):
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(b"HTTP/1.1 200 OK\r\n" + raw)
        theirs.shutdown(socket.SHUT_WR)
        wire = Connection.__new__(Connection)
        wire.place, wire.proxy, wire.timeout_s, wire._buffer, wire._aborted = (
            split("http://h/")[0],
            None,
            1.0,
            b"",
            False,
        )
        wire._plain, wire._sock = True, ours
        try:
            wire.request("GET", "/", {})
            wire.read()
        except ConnectionLost:
            pass


@pytest.mark.parametrize(
    "location",
    ["http://h:99999/", "ftp://h/", "http://[::1/", "http://a b/", "javascript:alert(1)"],
)
def test_a_redirect_to_no_place_is_one_clear_error(answer, location):
    with (
        Client(timeout_s=5) as client,
        pytest.raises(TransferError, match="sends its clients to no place"),
    ):
        client.ask(
            "GET",
            answer(
                b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nLocation: "
                + location.encode()
                + b"\r\n\r\n"
            ),
        )


@pytest.mark.parametrize("location", ["/a b HTTP/1.1", "/\xe9", "/a\tb?x= y"])
def test_a_redirect_cannot_put_words_into_the_next_request(location):
    asked = []

    def app(request):
        asked.append(request.target)
        return text(307, "", Location=location) if len(asked) == 1 else text(200, "there")

    with HTTPServer(app) as server, Client(timeout_s=5) as client:
        try:
            assert client.ask("GET", server.url + "/start").body == b"there"
            assert len(asked) == 2 and " " not in asked[1] and asked[1].isascii()
        except TransferError:
            assert "\t" in location


@pytest.mark.parametrize(
    "headers",
    [{"Authorization": "Bearer x\r\nX-Injected: 1"}, {"X\r\nInjected": "1"}, {"X": "日本"}],
)
def test_a_header_of_a_client_that_would_be_another_is_not_sent(headers):
    asked = []
    with (
        HTTPServer(lambda request: asked.append(1) or text(200, "")) as server,
        Client(timeout_s=5) as client,
        pytest.raises(TransferError, match="no header can be"),
    ):
        client.ask("GET", server.url + "/", headers)
    assert not asked

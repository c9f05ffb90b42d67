"""One contract over every server of the lab: numbers are digits, one framing a message, pressure
passes, pages of others change nothing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import resource
import select
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from labkit.net import accept, wire
from tests.support.servers import DIGEST, NAMES, request, serving

pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture(params=NAMES)
def subject(request, tmp_path):
    with serving(request.param, tmp_path) as made:
        yield made


ROOT = Path(__file__).resolve().parents[2] / "labkit"
SOURCES = sorted(p for p in ROOT.rglob("*.py"))
#: One end of a measurement with itself; a probe for a free port; a Unix socket in a private folder,
#: which reads nothing and sends one line.
NO_SERVERS = {
    "core/rates.py",
    "core/trial.py",
    "bench/pull_rivals.py",
    "image/lazyfs/techniques.py",
    "device/resident.py",
}


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if str(p.relative_to(ROOT)) not in NO_SERVERS and p.name != "accept.py"],
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_no_module_listens_or_serves_by_itself(path):
    """A server beside the one loop and the one writer of heads would have neither's bounds."""
    source = path.read_text(encoding="utf-8")
    assert not re.search(
        r"\.accept\(|create_server\(|import socketserver|from http\.server|import"
        r" http\.server|start_server\(|\.listen\(\)",
        source,
    )
    if path.relative_to(ROOT).parts[0] in ("net", "objects") or path.name in (
        "registry.py",
        "http.py",
        "api.py",
    ):
        assert ".isdigit(" not in source, "digits of every script: labkit.core.digits reads numbers"


# -- messages --------------------------------------------------------------------------------------


def framed(
    length: str = "",
    chunks: str = "",
    more: str = "",
    version: str = "HTTP/1.1",
    first: str = "POST /v1/completions",
) -> bytes:
    lines = [
        f"{first} {version}",
        "Host: 127.0.0.1",
        *([f"Content-Length: {length}"] if length else []),
        *(["Transfer-Encoding: chunked"] if chunks else []),
    ]
    return ("\r\n".join(lines) + more + "\r\n\r\n" + chunks).encode("latin-1")


SMUGGLED = {
    **{
        f"content-length {n!r}": framed(length=n)
        for n in (
            "+5",
            "-5",
            "1_0",
            "0x5",
            "5 5",
            "5,5",
            "5, 6",
            "\xb2",
            "9" * 19,
            "5\x0b",
            "5.0",
            "1e3",
        )
    },
    **{
        f"chunk size {n!r}": framed(chunks=f"{n}\r\nhello\r\n0\r\n\r\n")
        for n in ("+5", "-5", "0_5", "0x5", " 5", "\t5", "", "g", "\xb2", "F" * 17, "5\n", ";x")
    },
    "a chunk longer than it says": framed(chunks="3\r\nhello\r\n0\r\n\r\n"),
    "a line break in a chunk extension": framed(chunks="5;a\nb\r\nhello\r\n0\r\n\r\n"),
    "endless trailers": framed(chunks="0\r\n" + "a: b\r\n" * 200),
    "both framings": framed(length="5", chunks="0\r\n\r\n"),
    "two content lengths": framed(length="5", more="\r\nContent-Length: 6"),
    "another coding": framed(more="\r\nTransfer-Encoding: gzip, chunked"),
    "chunked twice": framed(chunks="0\r\n\r\n", more="\r\nTransfer-Encoding: chunked"),
    "identity": framed(more="\r\nTransfer-Encoding: identity"),
    "vertical tab chunked": framed(more="\r\nTransfer-Encoding: \x0bchunked"),
    "chunks in HTTP/1.0": framed(chunks="0\r\n\r\n", version="HTTP/1.0"),
    "a folded line": framed(more="\r\n folded: x"),
    "a space before the colon": framed(more="\r\nContent-Length : 5"),
    "a bare LF": framed(more="\nContent-Length: 5"),
    "a bare CR": framed(more="\r\nX: a\rContent-Length: 5"),
    "NUL in a value": framed(more="\r\nX: a\0b"),
    "no name": framed(more="\r\n: x"),
    "no colon": framed(more="\r\nX"),
    "a name with a line feed": framed(more="\r\nX\n: y"),
    "no host": b"GET /health HTTP/1.1\r\n\r\n",
    "two hosts": framed(more="\r\nHost: evil.example"),
    "a host with a path": b"GET / HTTP/1.1\r\nHost: 127.0.0.1/x\r\n\r\n",
    "four words": framed(first="GET / x"),
    "two spaces": framed(first="GET  /"),
    "a tab": framed(first="GET\t/"),
    "a method that is no token": framed(first="G(T /"),
    "another version": framed(version="HTTP/1.2"),
    "a version with more to it": framed(version="HTTP/1.1 "),
    "a raw byte in the target": framed(first="GET /\xe9"),
    "a percent that escapes nothing": framed(first="GET /%zz"),
    "half an escape": framed(first="GET /a?b=%f"),
    "NUL in a path": framed(first="GET /%00"),
    "no path": framed(first="GET http:/"),
    "a hundred and more lines": framed(more="\r\nA: b" * 120),
    "a head too large": framed(more="\r\nA: " + "b" * 70_000),
    "a head without end": b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nA: " + b"b" * 200_000,
    "a target too large": framed(first="GET /" + "a" * 70_000),
    "empty lines": b"\r\n" * 50 + framed(),
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_what_two_readers_could_read_differently_is_refused_and_the_connection_ends(subject, name):
    got, _ = subject.send(SMUGGLED[name] + b"GET /smuggled HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert (
        got.startswith((b"HTTP/1.1 4", b"HTTP/1.1 501"))
        and got.count(b"HTTP/1.1 ") == 1
        and b"smuggled" not in got
    )
    assert subject.alive()


def test_requests_in_a_row_on_one_connection_are_answered_in_order(subject):
    got, _ = subject.send(
        subject.good * 3 + request("GET", "/nothing-here/at-all", Connection="close") + subject.good
    )
    assert got.count(b"HTTP/1.1 ") == 4 and got.count(f"HTTP/1.1 {subject.status} ".encode()) == 3


def test_a_chunked_body_with_extension_and_trailer_is_read(subject):
    answers, _ = subject.send(
        request(
            "POST",
            "/nothing/x",
            b"5;name=x\r\nhello\r\n0\r\nA: b\r\n\r\n",
            Transfer_Encoding="chunked",
        )
        + subject.good
    )
    assert answers.startswith(b"HTTP/1.1 4") and b"chunk" not in answers


def test_an_old_client_gets_its_answer_and_the_end(subject):
    got, _ = subject.send(subject.good.replace(b"HTTP/1.1", b"HTTP/1.0"), half_close=False)
    assert (
        got.startswith(f"HTTP/1.1 {subject.status} ".encode())
        and b"\r\nConnection: close\r\n" in got
    )


# -- pressure --------------------------------------------------------------------------------------


def acceptor(subject) -> accept.Acceptor:
    return subject.server._acceptor


def test_a_server_that_could_start_no_thread_serves_again(subject, capsys):
    """The failure is the real one: no stack of that size can be had."""
    subject.alive()
    threading.stack_size(1 << 46)
    try:
        answers = [subject.send(subject.good)[0][:12] for _ in range(5)]
    finally:
        threading.stack_size(0)
    assert set(answers) <= {b"HTTP/1.1 503", b""}
    assert subject.alive()
    assert capsys.readouterr().err.count("new clients wait") == 1


class Faulty:
    """A listener whose `accept` fails in the given ways first."""

    def __init__(self, listener: socket.socket, errors: list[BaseException]):
        self._listener, self.errors = listener, errors

    def accept(self):
        if self.errors:
            raise self.errors.pop(0)
        return self._listener.accept()

    def __getattr__(self, name):
        return getattr(self._listener, name)


@pytest.mark.parametrize(
    "error",
    [
        *(
            OSError(n, os.strerror(n))
            for n in (
                errno.EMFILE,
                errno.ENFILE,
                errno.ENOBUFS,
                errno.ENOMEM,
                errno.ECONNABORTED,
                errno.EINTR,
                errno.EPROTO,
                errno.ENETDOWN,
                errno.EPERM,
            )
        ),
        MemoryError(),
        RuntimeError("can't start new thread"),
    ],
    ids=lambda e: errno.errorcode.get(getattr(e, "errno", None), type(e).__name__),
)
def test_no_error_of_accept_is_the_last(subject, error):
    errors = [error] * 4
    acceptor(subject).listener = Faulty(acceptor(subject).listener, errors)
    # the first may have been waiting in the true `accept` already
    assert subject.alive() and subject.alive()
    assert not errors


@pytest.mark.parametrize("what", ["registry", "store"])
def test_a_server_out_of_descriptors_takes_no_client_for_lost_and_serves_again(what, tmp_path):
    """A process of its own with 40 descriptors, and 60 clients that hold on: the silent ones give
    way."""
    with contextlib.ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-m", "labkit", what, "serve", "--root", str(tmp_path), "--child"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        stack.callback(process.wait)
        stack.callback(process.stdin.close)
        port = json.loads(process.stdout.readline())["port"]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in range(60)
        ]
        with socket.create_connection(("127.0.0.1", port), timeout=60) as sock:
            sock.sendall(request("GET", "/v2/" if what == "registry" else "/lab?list-type=2"))
            assert sock.recv(100).startswith(b"HTTP/1.1 200")
        assert len(silent) == 60


def test_silent_clients_give_way_to_one_that_asks(subject):
    acceptor(subject).most = 8
    with contextlib.ExitStack() as stack:
        for n in range(40):
            sock = stack.enter_context(
                socket.create_connection(("127.0.0.1", subject.server.port), timeout=60)
            )
            sock.sendall(b"GET / HTTP/1.1\r\nA: "[: n % 19])  # slow heads, each stopped elsewhere
        assert subject.alive()
    assert subject.alive()


def test_where_all_are_at_work_a_new_client_is_told_at_once(tmp_path):
    asked, go = threading.Event(), threading.Event()
    with serving("store", tmp_path) as subject:
        answer = subject.server.app

        def slow(asking):
            if asking.path == "/slow":
                asked.set()
                go.wait(60)
            return answer(asking)

        subject.server.app, acceptor(subject).most = slow, 1
        thread = threading.Thread(target=subject.send, args=(request("GET", "/slow"),))
        thread.start()
        assert asked.wait(60)
        assert subject.send(subject.good)[0].startswith(b"HTTP/1.1 503")
        go.set()
        thread.join()
        assert subject.alive()


def drip(sock: socket.socket) -> None:
    """A byte, and another, until something comes back."""
    with contextlib.suppress(ConnectionError):
        while not select.select([sock], [], [], 0.005)[0]:
            sock.sendall(b"a")


def test_a_head_that_takes_for_ever_ends(subject, monkeypatch):
    monkeypatch.setattr(wire, "HEAD_S", 0)
    with socket.create_connection(("127.0.0.1", subject.server.port), timeout=60) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nA: ")
        drip(sock)
        assert sock.recv(100).startswith(b"HTTP/1.1 408")


def test_a_body_that_takes_for_ever_ends(subject, monkeypatch):
    monkeypatch.setattr(wire, "GRACE_S", 0)
    monkeypatch.setattr(wire, "BODY_MIN_BYTES_PER_S", 1e15)
    target = (
        "/lab/slow"
        if "store" in subject.name
        else "/v1/completions"
        if "subject" in subject.name
        else "/v2/lab/x/manifests/slow"
    )
    with socket.create_connection(("127.0.0.1", subject.server.port), timeout=60) as sock:
        sock.sendall(
            request(
                "POST" if "subject" in subject.name else "PUT", target, Content_Length="1000000"
            )
            + b"a"
        )
        drip(sock)
        assert sock.recv(100).startswith(b"HTTP/1.1 408")


def test_a_client_that_says_nothing_is_let_go(subject, monkeypatch):
    monkeypatch.setattr(wire, "IDLE_S", 0.05)
    with (
        socket.create_connection(("127.0.0.1", subject.server.port), timeout=60) as silent,
        socket.create_connection(("127.0.0.1", subject.server.port), timeout=60) as half,
    ):
        half.sendall(b"GET / HT")
        assert silent.recv(100) == b""
        assert half.recv(100).startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("length", [str(10**17), "9" * 18])
def test_a_length_that_lies_costs_no_memory(subject, length):
    target = (
        "/v1/completions"
        if "subject" in subject.name
        else "/v2/lab/x/manifests/lie"
        if subject.name == "registry"
        else "/lab?delete"
    )
    got, _ = subject.send(
        request("PUT" if subject.name == "registry" else "POST", target, Content_Length=length)
        + b"x" * 1000
    )
    assert not got or got.startswith(b"HTTP/1.1 4")
    assert subject.alive()


def test_no_descriptor_is_left_behind_by_clients_that_leave(subject):
    """An answer that was made and could not be sent holds a file."""
    target = f"/v2/lab/x/blobs/{DIGEST}" if "registry" in subject.name else "/lab/a/key"
    for seed in subject.seeds[:1]:
        subject.send(seed)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(30):
        subject.send(request("GET", target, Content_Length="50") + b"half")
        subject.send(
            request("GET", target, Range="bytes=" + ",".join(f"{n}-{n}" for n in range(0, 40, 2)))
        )
    subject.server.stop()
    assert len(os.listdir("/proc/self/fd")) <= before


# -- who may ask -----------------------------------------------------------------------------------

FOREIGN = [
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Host": "evil.example"},
    {"Host": "evil.example:5000", "Origin": "http://evil.example:5000"},
    {"Host": "127.0.0.1.evil.example"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_a_page_of_another_origin_changes_nothing(subject, headers):
    before = subject.changed()
    for kind in ({"X-Labkit": "control"}, {"Content-Type": "application/json"}):
        assert (
            subject.ask(request("POST", subject.changes, b"200mbit", **{**kind, **headers}))[0]
            == 403
        )
    assert subject.changed() == before


@pytest.mark.parametrize(
    "kind",
    [
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "text/plain; x=application/json",
        None,
    ],
)
def test_what_a_form_can_send_changes_nothing(subject, kind):
    before = subject.changed()
    assert subject.ask(request("POST", subject.changes, b"200mbit", Content_Type=kind))[0] == 403
    assert subject.changed() == before


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "PATCH", "OPTIONS"])
def test_only_post_and_put_change_something(subject, method):
    before = subject.changed()
    subject.send(request(method, subject.changes, b"200mbit", X_Labkit="control"))
    assert subject.changed() == before


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost:1234", "[::1]:80", "127.0.0.1:99", "x.localhost", ""]
)
@pytest.mark.parametrize(
    "headers", [{"X-Labkit": "control"}, {"Content-Type": "application/json; charset=utf-8"}]
)
def test_the_labs_own_clients_may(subject, host, headers):
    before = subject.changed()
    status, _, _ = subject.ask(request("POST", subject.changes, b"200mbit", Host=host, **headers))
    assert status == (503 if subject.name == "subject-loading" else 200)
    assert subject.changed() != before or subject.name == "subject-loading"


def test_a_name_of_somebody_elses_is_answered_by_no_server_of_this_host(subject):
    assert subject.ask(subject.good.replace(b"Host: 127.0.0.1", b"Host: rebound.example"))[0] == 403


@pytest.mark.parametrize(
    "target", ["/v2/lab/x/blobs/uploads/", "/lab/parts?uploads", "/v1/completions"]
)
def test_a_foreign_page_cannot_write_or_spend_either(subject, target):
    assert (
        subject.ask(
            request("POST", target, b"x", Content_Type="text/plain", Sec_Fetch_Site="cross-site")
        )[0]
        == 403
    )

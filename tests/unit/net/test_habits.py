"""Clients against servers with habits: ranges ignored, shortened or mistaken, redirects in a
circle, refusals with long words. The right bytes, or one clear error after few requests."""

from __future__ import annotations

import hashlib

import pytest

from labkit.errors import TransferError
from labkit.net import faults
from labkit.net.client import Client, Retry
from labkit.net.fetch import fetch, fetch_file, fetch_ranges
from labkit.net.message import Request, Response, parse_range, text
from labkit.net.parts import Into
from labkit.net.ranges import RangeOptions
from labkit.net.server import HTTPServer

DATA = bytes(range(256)) * 400
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
EAGER = Retry(attempts=3, first_s=0.001, most_s=0.01, honour_s=0.02)


def ranges(request: Request, habit: str) -> Response:
    asked = parse_range(request.header("range"), len(DATA))
    if habit == "ignored" or not asked:
        return Response(200, {}, (DATA,))
    ((start, end),) = asked
    if habit == "chunked":
        return Response(200, stream=(block for block in (DATA[:1000], DATA[1000:])))
    if habit == "short":
        end = start + max(1, (end - start) // 3)
    size = "*" if habit == "star" else len(DATA)
    at = 0 if habit == "wrong" else start
    headers = {"Content-Range": f"bytes {at}-{at + end - start - 1}/{size}"}
    return Response(206, {} if habit == "unsaid" else headers, (DATA[start:end],))


def app(request: Request) -> Response:
    name = request.path.removeprefix("/")
    if name.startswith("to/"):
        return Response(307, {"Location": request.target.partition("?")[2] or "/echo"})
    if name == "echo":
        return text(200, request.header("authorization") + request.header("range"))
    if name == "circle":
        return Response(302, {"Location": "/circle"})
    if name == "refused":
        return Response(404, {}, (b"x" * 200_000,))
    return ranges(request, name)


@pytest.fixture(scope="module")
def server():
    with HTTPServer(app) as running:
        yield running


@pytest.fixture
def client():
    with Client(timeout_s=2, retry=EAGER) as made:
        yield made


def in_parts(client: Client, url: str) -> bytearray:
    got = bytearray(len(DATA))
    options = RangeOptions(connections=2)
    fetch_ranges(client, url, len(DATA), Into.buffer(got), part_bytes=30_000, options=options)
    return got


@pytest.mark.parametrize("habit", ["none", "short", "star", "ignored", "chunked"])
def test_what_http_allows_is_fetched_without_a_retry(server, client, habit):
    assert in_parts(client, f"{server.url}/{habit}") == DATA
    assert client.retries == 0


@pytest.mark.parametrize("habit", ["wrong", "unsaid"])
def test_another_range_than_asked_ends_the_fetch_at_once(server, client, habit):
    with pytest.raises(TransferError, match="were asked for"):
        in_parts(client, f"{server.url}/{habit}")
    assert client.retries == 0


def test_a_short_answer_to_the_rest_is_followed_by_the_rest_of_it(server, client):
    got = bytearray(DATA[:100])
    fetch(client, f"{server.url}/short", got.extend, len(DATA), start=100)
    assert (bytes(got), client.retries) == (DATA, 0)


@pytest.mark.parametrize("habit, requests", [("ignored", 1), ("none", 1)])
def test_a_part_left_by_a_kill_is_whole_with_and_without_ranges(
    server, client, tmp_path, habit, requests
):
    (tmp_path / "out.part").write_bytes(DATA[:50_000])
    fetch_file(
        client, f"{server.url}/{habit}", tmp_path / "out", size_bytes=len(DATA), digest=DIGEST
    )
    assert (tmp_path / "out").read_bytes() == DATA
    assert client.requests == requests


def test_a_stream_that_always_breaks_and_cannot_resume_is_given_up(client):
    with HTTPServer(lambda request: Response(200, {}, (DATA,))) as server:
        server.faults = faults.parse(["truncate:rate=1"], 1)
        with pytest.raises(TransferError, match="cannot resume"):
            fetch(client, server.url, lambda view: None, len(DATA), on_restart=lambda: None)
        assert client.requests == 1 + EAGER.attempts


def test_a_permission_stays_with_the_server_it_is_for(server, client):
    asked = {"Authorization": "Bearer of-this-one", "Range": "bytes=0-9"}
    with HTTPServer(app) as other:
        for to, seen in (("", "Bearer of-this-one"), (f"?{other.url}/echo", "")):
            body = client.ask("GET", f"{server.url}/to/{to}", asked).body
            assert body == (seen + "bytes=0-9").encode()


def test_redirects_in_a_circle_end_in_one_error(server, client):
    with pytest.raises(TransferError, match="redirects"):
        client.ask("GET", f"{server.url}/circle")
    assert (client.retries, client.requests) == (0, 10)


def test_a_refusal_with_many_words_is_a_refusal(server, client):
    with pytest.raises(TransferError, match="404"):
        client.ask("GET", f"{server.url}/refused")
    assert client.retries == 0

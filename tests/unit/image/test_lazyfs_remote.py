"""A mount reads ranges of a blob from servers with habits of their own."""

from __future__ import annotations

import pytest

from labkit.errors import TransferError
from labkit.image.lazyfs.remote import RegistrySource
from labkit.image.reference import parse_reference
from labkit.net.message import Request, Response, parse_range
from labkit.net.server import HTTPServer

BLOB = bytes(range(256)) * 40


def served(habit):
    """A server whose every answer is `habit(start, end)`: (status, first byte, bytes)."""

    def app(request: Request) -> Response:
        ((start, end),) = parse_range(request.header("range"), len(BLOB)) or [(0, len(BLOB))]
        status, at, part = habit(start, end)
        where = {"Content-Range": f"bytes {at}-{at + len(part) - 1}/{len(BLOB)}"}
        return Response(status, where if status == 206 else {}, (part,))

    return HTTPServer(app)


def read(server, start: int, end: int) -> bytes:
    source = RegistrySource(parse_reference(f"{server.url}/lab/x:v1"))
    try:
        return b"".join(map(bytes, source.stream("sha256:" + "0" * 64, start, end)))
    finally:
        source.close()


def test_less_of_a_range_than_asked_is_followed_by_the_rest():
    with served(lambda start, end: (206, start, BLOB[start : start + (end - start + 1) // 2])) as s:
        assert read(s, 100, 9000) == BLOB[100:9000]


def test_a_server_without_ranges_serves_a_beginning_only():
    with served(lambda start, end: (200, 0, BLOB)) as server:
        assert read(server, 0, 5000) == BLOB[:5000]
        with pytest.raises(TransferError, match="ignores ranges"):
            read(server, 10, 5000)


def test_an_answer_of_nothing_ends_the_attempt():
    with served(lambda start, end: (206, start, b"")) as server, pytest.raises(TransferError):
        read(server, 10, 5000)

"""A mount reads ranges of a blob from servers with habits of their own."""

from __future__ import annotations

import pytest

from labkit.errors import TransferError
from labkit.image.estargz.toc import Chunk
from labkit.image.lazyfs.cache import BlobStore, ChunkMemory
from labkit.image.lazyfs.feed import Feed
from labkit.image.lazyfs.remote import Refused, RegistrySource
from labkit.image.lazyfs.stats import Stats
from labkit.image.lazyfs.transfers import LayerFeed
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


@pytest.mark.parametrize(
    "habit, words",
    [
        (lambda start, end: (200, 0, BLOB), "ignores ranges"),
        (lambda start, end: (206, 0, BLOB[: end - start]), "bytes 10-4999 were asked for"),
        (lambda start, end: (206, start, BLOB[start : end + 1]), "bytes 10-4999 were asked for"),
        (lambda start, end: (404, 0, b"gone"), "404"),
        (lambda start, end: (403, 0, b"no"), "403"),
    ],
)
def test_what_would_be_answered_the_same_again_is_refused(habit, words):
    with served(habit) as server, pytest.raises(Refused, match=words):
        read(server, 10, 5000)


def test_a_blob_that_is_wanted_whole_needs_no_ranges():
    with served(lambda start, end: (200, 0, BLOB)) as server:
        assert read(server, 0, len(BLOB)) == BLOB


class Refusing:
    """A source that has what it was asked for counted, and nothing to give."""

    name = "refusing"

    def __init__(self):
        self.asked = 0

    def stream(self, digest, start, end):
        self.asked += 1
        raise Refused("the registry ignores ranges")

    def close(self):
        pass


def test_a_reader_is_told_at_once_what_its_source_refuses_for_good(tmp_path):
    source, stats = Refusing(), Stats(None)
    store = BlobStore(tmp_path, 1 << 20)
    digest = "sha256:" + "1" * 64
    layer = LayerFeed(digest, store.open(digest, 1000), [])
    feed = Feed([layer], source, ChunkMemory(1 << 20), stats, timeout_s=600)
    with pytest.raises(TransferError) as refused:
        feed.chunk(0, Chunk(0, 100, 0, 100, digest))
    feed.close()
    store.close()
    assert (source.asked, refused.value.why) == (1, "the registry ignores ranges")


def test_an_answer_of_nothing_ends_the_attempt():
    with served(lambda start, end: (206, start, b"")) as server, pytest.raises(TransferError):
        read(server, 10, 5000)

"""The client against the server, under every fault: whole and right, or one clear error and nothing
kept."""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import socket
import threading

import pytest

from labkit.errors import TransferError
from labkit.net import faults
from labkit.net.client import Client, Retry
from labkit.net.fetch import fetch, fetch_file, fetch_ranges
from labkit.net.guard import CONTROL
from labkit.net.http import Connection
from labkit.net.message import file_response, text
from labkit.net.parts import Into, RangePart, plan
from labkit.net.ranges import RangeOptions, fetch_parts
from labkit.net.server import HTTPServer

DATA = random.Random(7).randbytes(3_000_000)
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
EAGER = Retry(attempts=6, first_s=0.001, most_s=0.01, honour_s=0.02)


@pytest.fixture
def served(tmp_path):
    blob = tmp_path / "blob"
    blob.write_bytes(DATA)

    def app(request):
        if request.path == "/blob":
            return file_response(
                request,
                os.open(blob, os.O_RDONLY),
                len(DATA),
                {"Content-Type": "application/octet-stream"},
            )
        if request.path == "/no-ranges":
            request.headers.pop("range", None)
            return file_response(request, os.open(blob, os.O_RDONLY), len(DATA), {})
        if request.path == "/echo":
            return text(200, request.body.read())
        if request.path == "/defect":
            raise RuntimeError("a defect")
        return text(404, "nothing here")

    with HTTPServer(app) as server:
        yield server


@pytest.fixture
def client():
    with Client(timeout_s=1, retry=EAGER) as made:
        yield made


def inject(server, *texts, seed=1):
    server.faults = faults.parse(texts, seed)


BODY_FAULTS = ["503:nth=1", "429:nth=1,retry_after=0", "500:nth=1", "reset:nth=1", "truncate:nth=1"]


@pytest.mark.parametrize("fault", BODY_FAULTS)
def test_one_stream_survives_and_is_right(served, client, fault):
    inject(served, fault)
    got = bytearray()
    made = fetch(client, served.url + "/blob", got.extend, len(DATA))
    assert (bytes(got) == DATA, made.retries) == (True, 1)
    assert served.faults.hits.total() == 1


@pytest.mark.parametrize("fault", [*BODY_FAULTS, "stall:nth=2", "503:rate=0.2", "reset:rate=0.2"])
def test_parallel_ranges_survive_and_are_right(served, client, fault):
    inject(served, fault)
    got = bytearray(len(DATA))
    fetch_ranges(
        client,
        served.url + "/blob",
        len(DATA),
        Into.buffer(got),
        part_bytes=200_000,
        options=RangeOptions(connections=4),
    )
    assert got == DATA
    assert served.faults.hits.total() >= 1


def test_a_file_gets_its_name_only_with_the_right_digest(served, client, tmp_path):
    inject(served, "corrupt:rate=1")
    with pytest.raises(TransferError):
        fetch_file(
            client, served.url + "/blob", tmp_path / "out", size_bytes=len(DATA), digest=DIGEST
        )
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.part").exists()
    inject(served, "corrupt:nth=1")
    fetch_file(client, served.url + "/blob", tmp_path / "out", size_bytes=len(DATA), digest=DIGEST)
    assert (tmp_path / "out").read_bytes() == DATA


def test_a_part_left_by_a_kill_is_resumed_not_refetched(served, client, tmp_path):
    (tmp_path / "out.part").write_bytes(DATA[:2_000_000])
    fetch_file(client, served.url + "/blob", tmp_path / "out", size_bytes=len(DATA), digest=DIGEST)
    assert (tmp_path / "out").read_bytes() == DATA
    assert served.counters.bytes_sent == 1_000_000


def test_a_refusal_is_told_at_once_with_its_status(served, client):
    with pytest.raises(TransferError, match="404"):
        client.ask("GET", served.url + "/absent")
    assert client.retries == 0


def test_a_server_that_stays_down_ends_in_one_error(client):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(TransferError, match="6 attempts"):
        client.ask("GET", f"http://127.0.0.1:{port}/")


def test_a_server_without_ranges_is_read_in_one_stream(served, client):
    got = bytearray(len(DATA))
    made = fetch_ranges(
        client,
        served.url + "/no-ranges",
        len(DATA),
        Into.buffer(got),
        part_bytes=500_000,
    )
    assert got == DATA and made.connections == 1


def test_a_straggler_is_hedged_and_its_buffer_let_go(served, client):
    inject(served, "straggler:nth=3,slowed_to=20kB/s")
    served.pacer = served.pacer.__class__(
        served.link.__class__("slow enough to compare", connection_bytes_per_s=8e6)
    )
    got, done = bytearray(len(DATA)), []
    made = fetch_parts(
        client,
        plan(served.url + "/blob", len(DATA), 300_000),
        Into.buffer(got),
        options=RangeOptions(connections=4, on_done=done.append),
    )
    assert (got == DATA, made.hedges >= 1, made.hedges_won, len(done)) == (True, True, 1, 10)


def test_parts_of_several_objects_go_where_each_says(served, client, tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        buffer = bytearray(1000)
        fetch_parts(
            client,
            [
                RangePart(served.url + "/blob", 500, 1000, into=Into.buffer(buffer, shift=-500)),
                RangePart(served.url + "/blob", 0, 2000, into=Into.file(file.fileno())),
            ],
            options=RangeOptions(connections=2),
        )
        assert buffer == DATA[500:1500] and (tmp_path / "file").read_bytes() == DATA[:2000]


def test_a_range_beyond_the_end_is_refused_without_retries(served, client):
    with pytest.raises(TransferError, match="416"):
        fetch_parts(
            client,
            [RangePart(served.url + "/blob", len(DATA) + 5, 10)],
            Into.buffer(bytearray(len(DATA) + 20)),
        )


def test_one_connection_serves_many_requests(served, client):
    for _ in range(5):
        client.ask("PUT", served.url + "/echo", body=b"hello")
    assert (client.connections, served.counters.connections) == (1, 1)


def test_several_ranges_in_one_request_come_as_multipart(served):
    connection = http.client.HTTPConnection(served.host, served.port)
    connection.request("GET", "/blob", headers={"Range": "bytes=0-9,100-109"})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status == 206 and answer.headers.get_content_type() == "multipart/byteranges"
    assert DATA[:10] in body and DATA[100:110] in body and body.count(b"Content-Range") == 2


def test_chunked_uploads_are_read_and_chunked_answers_too(served):
    connection = http.client.HTTPConnection(served.host, served.port)
    connection.request(
        "PUT",
        "/echo",
        body=iter([b"a" * 70_000, b"", b"b"]),
        encode_chunked=True,
        headers={"Transfer-Encoding": "chunked"},
    )
    assert connection.getresponse().read() == b"a" * 70_000 + b"b"
    connection.close()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            sock, _ = listener.accept()
            sock.recv(4096)
            sock.sendall(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding:"
                b" chunked\r\n\r\n4\r\nwiki\r\n5;x=y\r\npedia\r\n0\r\n\r\n"
            )
            sock.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with Connection(f"http://127.0.0.1:{listener.getsockname()[1]}/") as wire:
            wire.request("GET", "/", {})
            assert wire.read() == b"wikipedia"
        thread.join()


def test_a_defect_of_the_app_is_a_500_and_the_server_lives_on(served, capsys):
    with Connection(served.url) as wire:
        assert wire.request("GET", "/defect", {}).status == 500
    with Connection(served.url) as wire:
        assert wire.request("GET", "/blob", {"Range": "bytes=0-0"}).status == 206
    assert "a defect" in capsys.readouterr().err


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/2.0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 70_000,
    ],
)
def test_what_is_not_http_is_answered_and_closed(served, raw):
    with socket.create_connection((served.host, served.port), timeout=5) as sock:
        sock.sendall(raw)
        assert sock.recv(100).startswith(b"HTTP/1.1 4")


def test_counters_say_what_left_by_path_and_can_be_reset(served, client):
    client.ask("GET", served.url + "/blob", {"Range": "bytes=0-99"}, ok=(206,))
    stats = client.ask("GET", served.url + "/_labkit/stats").body
    assert b'"/blob": {"requests": 1, "bytes_sent": 100}' in stats
    client.ask("POST", served.url + "/_labkit/reset", CONTROL)
    assert served.counters.as_json()["requests"] == 0


def test_link_and_faults_change_while_serving(served, client):
    client.ask("POST", served.url + "/_labkit/link", CONTROL, body=b"200mbit")
    assert served.link.name == "200mbit"
    with pytest.raises(TransferError, match="400"):
        client.ask("POST", served.url + "/_labkit/link", CONTROL, body=b"warp")
    client.ask(
        "POST",
        served.url + "/_labkit/faults",
        CONTROL,
        body=b'{"faults": ["503:rate=0.5"], "seed": 3}',
    )
    assert (served.faults.seed, len(served.faults.faults)) == (3, 1)


@pytest.mark.parametrize("started", [0, 2])
def test_a_host_without_threads_fetches_with_those_it_has(served, client, monkeypatch, started):
    start, left = threading.Thread.start, [started]

    def scarce(thread):
        if thread.name.startswith("fetch-"):
            if not left[0]:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", scarce)
    got = bytearray(len(DATA))
    fetch_ranges(
        client,
        served.url + "/blob",
        len(DATA),
        Into.buffer(got),
        part_bytes=200_000,
        options=RangeOptions(connections=4),
    )
    assert got == DATA and served.counters.peak_connections <= max(1, started)


@pytest.mark.parametrize(
    "text",
    [
        "503:nth=1_0",
        "503:nth=+1",
        "503:rate=nan",
        "503:rate=-1",
        "503:rate=2",
        "503:rate=1e-3",
        "reset:nth=1,at=inf",
        "503:nth=1,retry_after=nan",
        "503:nth=-1",
        "straggler:nth=1,slowed_to=0B/s",
        "reset:nth=1,min_bytes=-1",
    ],
)
def test_a_fault_whose_numbers_are_none_is_refused(text):
    from labkit.errors import BadInput

    with pytest.raises(BadInput):
        faults.parse_one(text)

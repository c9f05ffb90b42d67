"""The client's eye: when the first token of an answer came, however a server writes its stream."""

from __future__ import annotations

import itertools
import json
import socket
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.client import Answer, ask
from labkit.core.event_stream import DONE, EventReader

OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
END = b"data: [DONE]\n\n"


def event(text: str = "", **choice: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"text": text, **choice}]}).encode() + b"\n\n"


def chat(**delta: object) -> bytes:
    doc = {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    return b"data: " + json.dumps(doc).encode() + b"\n\n"


def answered(*blocks: bytes) -> Answer:
    """What the client makes of a server that sends these blocks, then closes."""
    answers: list[Answer] = []
    closed = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        asking = threading.Thread(
            target=lambda: answers.append(
                ask("127.0.0.1", port, {"prompt": "x"}, give_up=closed.is_set)
            )
        )
        asking.start()
        with listener.accept()[0] as sock:
            request = b""
            while not request.endswith(b'"temperature": 0}'):
                request += sock.recv(4096)
            for block in blocks:
                sock.sendall(block)
        closed.set()
        asking.join()
    return answers[0]


@pytest.mark.parametrize(
    "blocks",
    [
        [OK, event("Hello"), event(" world"), END],
        [OK, event("Hello"), event(" world")],
        [OK, event("Hello").replace(b"\n", b"\r\n"), event(" world").replace(b"\n", b"\r\n"), END],
        [OK, event("Hello").replace(b"\n", b"\r"), event(" world").replace(b"\n", b"\r"), END],
        [OK, b": ping\n\nid: 1\nevent: completion\nretry: 5\n" + event("Hello world") + END],
        [OK, event("Hello world").replace(b'[{"text', b'\ndata: [{"text'), END],
        [OK, event("Hello world").replace(b"data: ", b"data:")],
        [OK, event("Hello world").rstrip(b"\n")],
        [OK, b"\xef\xbb\xbf" + event("Hello world")],
        [OK, chat(role="assistant", content=""), chat(content=None), chat(content="Hello world")],
        [OK, chat(role="assistant"), chat(content="Hello world"), chat(), END],
        [OK, chat(reasoning_content="Hello"), chat(reasoning=" world"), chat(content="")],
        [OK, event("Hello world"), b'data: {"choices": [], "usage": {"total_tokens": 5}}\n\n', END],
        [OK, b'data: {"error": null, "choices": [{"text": "Hello world"}]}\n\n', END],
        [b"HTTP/1.1 100 Continue\r\n\r\n" + OK + event("Hello world") + END],
        [
            b"HTTP/1.1 200 OK\r\nTransfer-encoding:Chunked\r\n\r\n",
            b"%x\r\n%b\r\n0\r\n\r\n" % (len(event("Hello world")), event("Hello world")),
        ],
    ],
    ids=lambda blocks: repr(blocks[1:2])[:50],
)
def test_the_text_is_read_however_the_stream_is_written(blocks):
    answer = answered(*blocks)
    assert (answer.text, answer.error, answer.attempts) == ("Hello world", "", 1)
    assert answer.first_token_s is not None


def test_an_answer_of_a_length_is_over_where_it_ends_though_the_connection_is_kept():
    body = event("Hello")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        kept = []

        def serve() -> None:
            kept.append(listener.accept()[0])
            kept[0].recv(4096)
            kept[0].sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))

        serving = threading.Thread(target=serve)
        serving.start()
        assert ask("127.0.0.1", port, {}, give_up=lambda: False).text == "Hello"
        serving.join()
        kept[0].close()


@pytest.mark.parametrize(
    "blocks, said",
    [
        ([OK, b'data: {"error": {"message": "out of memory"}}\n\n'], "out of memory"),
        ([OK, b'error: {"message": "out of memory"}\n\n'], "out of memory"),
        ([OK, b'event: error\ndata: {"error": "out of memory"}\n\n'], "out of memory"),
        ([OK, b'{"choices": [{"text": "Hello"}]}'], "in one piece"),
        ([OK, chat(role="assistant"), END], "before a token"),
        ([b"HTTP/1.1 404 Not Found\r\nContent-Length: 8\r\n\r\n", b"no model"], "404: no model"),
        (
            [b"HTTP/1.1 400 Bad\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\nbad\r\n0\r\n\r\n"],
            "400: bad",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_answer_ends_the_asking_with_the_servers_words(blocks, said):
    answer = answered(*blocks)
    assert said in answer.error and answer.first_token_s is None and answer.attempts == 1


def test_an_error_after_the_first_token_is_kept_beside_the_text():
    answer = answered(OK, event("Hello"), b'data: {"error": {"message": "lost"}}\n\n')
    assert answer.text == "Hello" and "lost" in answer.error


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "delta", "text", "content", "token_ids", "error"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@given(JSON)
def test_no_event_ends_the_client(doc):
    from labkit.core.client import _take

    answer = Answer(0.0)
    reader = EventReader()
    for found in reader.feed(b"data: " + json.dumps(doc).encode() + b"\n\n"):
        _take(found, answer)
    assert isinstance(answer.text, str) and isinstance(answer.tokens, list)


WHOLE = b'data: {"a": 1}\r\n\r\n: c\rdata: {"b":\ndata: 2}\n\ndata:[DONE]\r\n\r\n'


@given(st.lists(st.integers(0, len(WHOLE)), max_size=6))
def test_events_are_the_same_wherever_the_stream_is_cut(cuts):
    reader, at = EventReader(), [0, *sorted(cuts), len(WHOLE)]
    found = [e for a, b in itertools.pairwise(at) for e in reader.feed(WHOLE[a:b])]
    assert found + reader.end() == [{"a": 1}, {"b": 2}, DONE]

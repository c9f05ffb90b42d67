"""The client: one real HTTP request that is sent at t0 and asked again until the first token comes
back.

t0 is the moment of the first attempt, when nothing listens yet. A refused connection, a reset, or a
503 ("not ready") is asked again after `poll_s`; a 4xx is the end (asking again would not help). The
first token is the arrival of the first SSE chunk that carries a token, at this end of the socket –
not health, not headers.

    answer = ask("127.0.0.1", 8000, {"prompt": "Hello", "max_tokens": 8}, give_up=lambda: False)
    answer.first_token_s - answer.t0_s

What it costs: with `poll_s` = 2 ms the client adds at most 2 ms to a start and about 1 % of one
core while it waits. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from labkit.core import timeline
from labkit.core.control_call import host_port
from labkit.core.digits import decimal, hexadecimal
from labkit.core.event_stream import EventReader
from labkit.core.json_types import JsonObject

HEAD_MAX = 64 << 10
#: How much of a refusal is read, and how long it is waited for.
REFUSAL_MAX, REFUSAL_S = 4096, 1.0
#: Where the text of a chat's event is.
CONTENT = ("content", "reasoning_content", "reasoning")
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*\bchunked\b", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,18})[ \t]*(?:\r\n|$)", re.IGNORECASE)


@dataclass
class Answer:
    """Times are CLOCK_MONOTONIC seconds; `None` where it never happened. `error`: why the asking
    ended without a token."""

    t0_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    attempts: int = 0
    tokens: list[int] = field(default_factory=list)
    times_s: list[float] = field(default_factory=list)  # when each event with a token arrived
    text: str = ""
    error: str = ""


def ask(
    host: str,
    port: int,
    request: JsonObject,
    *,
    give_up: Callable[[], bool],
    poll_s: float = 0.002,
    on_t0: Callable[[], Any] | None = None,
    path: str = "/v1/completions",
) -> Answer:
    """Send `request` (streaming) at once, and again until a token arrives or `give_up()` is true.
    Never raises for the server's faults.

    `on_t0` is called right after the first refused attempt began: the harness tells the node agent
    "go" there."""
    body = json.dumps({**request, "stream": True, "temperature": 0}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {host_port(host, port)}\r\n"
        f"Content-Type: application/json\r\nAccept: text/event-stream\r\n"
        f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    answer = Answer(t0_s=timeline.now_s())
    if on_t0:
        on_t0()
    while not give_up():
        answer.attempts += 1
        try:
            if _attempt(host, port, head + body, answer, give_up):
                return answer
        except OSError:
            answer.tokens, answer.times_s, answer.text, answer.first_token_s = [], [], "", None
        time.sleep(poll_s)
    answer.error = answer.error or "gave up before a token came back"
    return answer


def _attempt(
    host: str, port: int, message: bytes, answer: Answer, give_up: Callable[[], bool]
) -> bool:
    """One request. True when the asking is over (answered, or refused for good)."""
    with socket.create_connection((host, port), timeout=1.0) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(message)
        connection.settimeout(0.5)
        data, status = b"", 100
        while 100 <= status < 200:  # "go on", early hints: the answer is still to come
            while b"\r\n\r\n" not in data:
                if len(data) > HEAD_MAX:
                    raise ConnectionError("a head without end")
                data += _receive(connection, give_up)
            head, _, data = data.partition(b"\r\n\r\n")
            status = _status(head)
        if status == 503 or status == 502:
            return False
        if status == 200:
            return _stream(_Body(connection, head, data, give_up), answer)
        until_s = timeline.now_s() + REFUSAL_S
        body = _Body(connection, head, data, lambda: give_up() or timeline.now_s() > until_s)
        answer.error = f"the server answered {status}: {_shown(_beginning(body))}"
        return True


def _status(head: bytes) -> int:
    """Raises ConnectionError for what is no HTTP: asked again, as any answer that broke."""
    try:
        version, status, *_ = head.split(b"\r\n", 1)[0].split(b" ", 2)
        if not version.startswith(b"HTTP/1."):
            raise ValueError
        return decimal(status, 999)
    except ValueError:
        raise ConnectionError("no HTTP status line") from None


def _receive(connection: socket.socket, give_up: Callable[[], bool]) -> bytes:
    while True:
        try:
            data = connection.recv(65536)
        except TimeoutError:
            if give_up():
                raise
            continue
        if not data:
            raise ConnectionError("closed in mid-answer")
        return data


def _dechunk(data: bytes, left: int) -> tuple[bytes, bytes, int]:
    """HTTP/1.1 chunked framing, incrementally: (payload, unread rest, bytes left of the current
    chunk; -1 = last chunk seen)."""
    payload = b""
    while data and left >= 0:
        if left:
            taken = data[:left]
            payload, data, left = payload + taken, data[len(taken) :], left - len(taken)
        else:
            line, newline, rest = data.lstrip(b"\r\n").partition(b"\n")
            if not newline:
                break
            try:
                data, left = rest, hexadecimal(line.split(b";")[0].strip(b" \t\r")) or -1
            except ValueError:
                raise ConnectionError("no chunk size") from None
    return payload, data, left


class _Body:
    """What comes after a head: in chunks, of a length, or until the connection ends."""

    def __init__(
        self, connection: socket.socket, head: bytes, data: bytes, give_up: Callable[[], bool]
    ):
        self._connection, self._give_up = connection, give_up
        self._chunked = bool(_CHUNKED.search(head))
        length = None if self._chunked else _LENGTH.search(head)
        self._data, self._left = data, decimal(length[1]) if length else None
        if self._chunked:
            self._left = 0

    def read(self) -> bytes:
        """What has come, waiting for something; b"" at the end. Raises ConnectionError where it
        breaks off."""
        while True:
            payload, data = self._data, b""
            if self._chunked:
                payload, data, left = _dechunk(self._data, self._left or 0)
                self._left = left
            elif self._left is not None:
                payload = payload[: self._left]
                self._left -= len(payload)
            self._data = data
            if payload or self._is_over():
                return payload
            try:
                self._data += _receive(self._connection, self._give_up)
            except ConnectionError:
                if self._left is not None:
                    raise
                return b""

    def _is_over(self) -> bool:
        return self._left == -1 if self._chunked else self._left == 0


def _beginning(body: _Body) -> str:
    """What a server says of its refusal, as far as it comes in time."""
    text = b""
    with contextlib.suppress(OSError):
        while len(text) < REFUSAL_MAX and (data := body.read()):
            text += data
    return text.decode(errors="replace").strip()


def _stream(body: _Body, answer: Answer) -> bool:
    """Read SSE events until [DONE], an error event, or the end."""
    reader, whole, done = EventReader(), False, False
    while not whole:
        try:
            data = body.read()
        except ConnectionError:
            if answer.first_token_s is None:
                raise
            return True
        whole = not data
        for event in reader.feed(data) if data else reader.end():
            if not isinstance(event, dict):
                whole = done = True
            elif event.get("error"):
                answer.error = _shown(str(event["error"]))
                return True
            else:
                _take(event, answer)
    if answer.first_token_s is None and reader.seen.lstrip().startswith((b"{", b"[")):
        answer.error = (
            "the server answered in one piece, not as a stream of events: when its first token came"
            f" cannot be seen: {_shown(reader.seen.decode(errors='replace'))}"
        )
    elif answer.first_token_s is None and done:
        answer.error = "the server's answer was over before a token came"
    return answer.first_token_s is not None or bool(answer.error)


def _take(event: JsonObject, answer: Answer) -> None:
    """The tokens of one event: of a completion or a chat, thinking aloud or not. One that names the
    role or the usage has none."""
    choices = event.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return
    delta = choice.get("delta")
    found = [choice.get("text")]
    if isinstance(delta, dict):
        found += [delta.get(name) for name in CONTENT]
    piece = next((text for text in found if isinstance(text, str) and text), "")
    ids = choice.get("token_ids") or []
    if not isinstance(ids, list):
        ids = []
    if ids or piece:
        answer.last_token_s = timeline.now_s()
        answer.times_s.append(answer.last_token_s)
        if answer.first_token_s is None:
            answer.first_token_s = answer.last_token_s
        answer.tokens += ids
        answer.text += piece


def _shown(text: str) -> str:
    """The beginning of what a server says of its own fault; masked before it is cut, as half a
    secret would pass for none."""
    from labkit.core import secrets

    return secrets.mask(text)[:300]

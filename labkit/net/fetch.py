"""A client that gets bytes whole or says why not: keep-alive pool, retries that honour Retry-After,
resume, digests.

    with Client() as client:
        client.ask("GET", url).body                                  # something small
        fetch(client, url, sink=print, digest="sha256:…")            # one stream, resumed by Range
            after a break
        fetch_file(client, url, path, digest="sha256:…")             # never under its name before
            its digest is right

A registry that asks for a login gets one (`labkit.net.login`). Parallel ranges:
`labkit.net.ranges`. A failure that outlasts its retries is one `TransferError` that names URL, byte
and last cause. Physical limit: link floor (`Link.floor_s`). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urljoin

from labkit.core.digits import fraction
from labkit.errors import BadInput, TransferError
from labkit.net.head import Unsendable, http_date
from labkit.net.http import Answer, Connection, ConnectionLost, Place, split
from labkit.net.login import TOKEN_LIMIT_BYTES, Login

BLOCK = 1 << 20
RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
#: headers that sign or authorise a request: (method, url, headers) -> headers
Authorize = Callable[[str, str, dict[str, str]], dict[str, str]]


@dataclass(frozen=True)
class Retry:
    """`attempts` without progress, back-off from `first_s` doubling to `most_s` with jitter;
    Retry-After up to `honour_s`."""

    attempts: int = 7
    first_s: float = 0.1
    most_s: float = 5.0
    honour_s: float = 60.0

    def wait_s(self, failures: int, retry_after: str = "") -> float:
        """Before attempt `failures + 1`."""
        asked = _retry_after_s(retry_after)
        if asked is not None:
            return min(asked, self.honour_s)
        return min(self.most_s, self.first_s * 2 ** (failures - 1)) * random.uniform(0.7, 1.3)


def _retry_after_s(text: str) -> float | None:
    if not text:
        return None
    try:
        return fraction(text)
    except ValueError:
        at = http_date(text)
        return None if at is None else max(0.0, at - time.time())


def _shown(text: bytes) -> str:
    """Masked before it is cut: a server may quote the key it refuses, and half of one would pass
    for none."""
    from labkit.core import secrets  # only now: a server reads its weights through this module

    return secrets.mask(text.decode("utf-8", "replace"))[:300].strip()


class HTTPStatusError(Exception):
    """An answer that is not what was asked for. `again`: another attempt may fare better."""

    def __init__(self, answer: Answer, text: bytes = b""):
        super().__init__(f"HTTP {answer.status}" + (f": {_shown(text)}" if text else ""))
        self.answer, self.again = answer, answer.status in RETRY_STATUS


class Client:
    """A pool of keep-alive connections, shared by threads. Counts what it did: `requests`,
    `retries`, `bytes_received`.

    `login` answers registries that ask for one (default: with the user's stored credentials, or
    anonymously); a client that signs its requests (`authorize`) has none."""

    def __init__(
        self,
        *,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),
        authorize: Authorize | None = None,
        login: Login | None = None,
    ):
        self.timeout_s, self.retry, self.authorize = timeout_s, retry, authorize
        self.login = login or (Login() if authorize is None else None)
        self._idle: dict[Place, list[Connection]] = {}
        self._lock = threading.Lock()
        self.requests = self.retries = self.connections = self.bytes_received = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            idle, self._idle = [c for cs in self._idle.values() for c in cs], {}
        for connection in idle:
            connection.close()

    def count(self, **by: int) -> None:
        with self._lock:
            for name, n in by.items():
                setattr(self, name, getattr(self, name) + n)

    def facts(self) -> dict[str, int]:
        return {
            "requests": self.requests,
            "retries": self.retries,
            "connections": self.connections,
            "bytes_received": self.bytes_received,
        }

    def take(self, place: Place, fresh: bool = False) -> Connection:
        with self._lock:
            waiting = self._idle.get(place, [])
            if waiting and not fresh:
                return waiting.pop()
        made = Connection(place, timeout_s=self.timeout_s)
        self.count(connections=1)
        return made

    def give(self, connection: Connection) -> None:
        if connection.reusable:
            with self._lock:
                self._idle.setdefault(connection.place, []).append(connection)
        else:
            connection.close()

    @contextmanager
    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | memoryview = b"",
        ok: tuple[int, ...] = (200,),
    ) -> Iterator[tuple[Answer, Connection]]:
        """One attempt, redirects followed; the body is the caller's to read. Raises ConnectionLost
        or Refused."""
        place, target = _place(url, url)
        answered = False
        for _ in range(6):
            given = {**(self.login.headers(method, url) if self.login else {}), **(headers or {})}
            if self.authorize:
                given = self.authorize(method, url, given)
            connection = self.take(place)
            try:
                self.count(requests=1)
                try:
                    answer = connection.request(method, target, given, body)
                except ConnectionLost:
                    # A kept connection may have been closed by the server meanwhile: that is no
                    # failure of this request.
                    connection.close()
                    connection = self.take(place, fresh=True)
                    answer = connection.request(method, target, given, body)
                if answer.status in (301, 302, 303, 307, 308) and "location" in answer.headers:
                    connection.skip()
                    url, asked = _joined(url, answer.headers["location"]), url
                    old, (place, target) = place, _place(url, asked)
                    if place != old:
                        headers = {
                            k: v for k, v in (headers or {}).items() if k.lower() != "authorization"
                        }
                    continue
                if answer.status == 401 and not answered and self._log_in(url, answer, given):
                    connection.skip()
                    answered = True
                    continue
                if answer.status not in ok:
                    text = b"" if method == "HEAD" else connection.read(64 << 10)
                    raise HTTPStatusError(answer, text)
                yield answer, connection
                return
            except Unsendable as error:
                raise TransferError(
                    f"{method} {url}: {error}",
                    why="it would have been another request; nothing was sent",
                    fix="look at the URL, and at the credentials in the environment",
                ) from None
            finally:
                self.give(connection)
        raise ConnectionLost(f"more than 5 redirects from {url}")

    def _log_in(self, url: str, refused: Answer, given: Mapping[str, str]) -> bool:
        """Answer a challenge, over a connection of its own. Raises TransferError."""
        challenge = refused.headers.get("www-authenticate", "")
        if not self.login or not challenge:
            return False

        def ask(method: str, realm: str, headers: dict[str, str], body: bytes) -> bytes:
            with Client(
                timeout_s=self.timeout_s,
                retry=replace(self.retry, attempts=min(3, self.retry.attempts)),
                authorize=_as_given,
            ) as other:
                return other.ask(method, realm, headers, body, limit_bytes=TOKEN_LIMIT_BYTES).body

        return self.login.answer(url, challenge, given.get("Authorization", ""), ask)

    def ask(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        ok: tuple[int, ...] = (200,),
        limit_bytes: int = 64 << 20,
    ) -> Answer:
        """Something small, whole, with retries. Raises TransferError."""
        attempts = Attempts(self, f"{method} {url}")
        while True:
            try:
                with self.open(method, url, headers, body, ok) as (answer, connection):
                    raw = b"" if method == "HEAD" else connection.read(limit_bytes)
                    self.count(bytes_received=len(raw))
                    return Answer(answer.status, answer.headers, answer.size_bytes, raw)
            except (ConnectionLost, HTTPStatusError) as error:
                attempts.failed(error)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _place(url: str, asked: str) -> tuple[Place, str]:
    """Raises TransferError, for a URL of the user's as for one that a server sent its client to."""
    try:
        return split(url)
    except ValueError as error:
        if url == asked:
            raise TransferError(str(error), fix="write it like http://HOST:PORT/PATH") from None
        raise TransferError(
            f"{asked}: the server sends its clients to no place there is: {error}"
        ) from None


def _as_given(_method: str, _url: str, headers: dict[str, str]) -> dict[str, str]:
    """No login for the place that gives tokens: it could ask for one for ever."""
    return headers


class Attempts:
    """Count failures without progress; wait between them, or give up with a TransferError."""

    def __init__(self, client: Client, what: str, stop: Callable[[], bool] | None = None):
        self.client, self.what, self.failures, self.stop = client, what, 0, stop

    def progressed(self) -> None:
        self.failures = 0

    def failed(self, error: Exception, at: int | None = None) -> None:
        self.failures += 1
        where = f" at byte {at}" if at else ""
        refused = error if isinstance(error, HTTPStatusError) else None
        if refused and not refused.again:
            raise TransferError(
                f"{self.what}{where}: {error}",
                why="the server refuses, so another attempt would be refused too",
                fix=_fix(refused.answer.status),
            ) from None
        if self.failures >= self.client.retry.attempts:
            raise TransferError(
                f"{self.what}{where}: {error} ({self.failures} attempts)",
                why="nothing of it was kept",
                fix="look whether the server is there and reachable, then run it again",
            ) from None
        self.client.count(retries=1)
        until = time.monotonic() + self.client.retry.wait_s(
            self.failures, refused.answer.headers.get("retry-after", "") if refused else ""
        )
        while (left := until - time.monotonic()) > 0 and not (self.stop and self.stop()):
            time.sleep(min(left, 0.05) if self.stop else left)


def _fix(status: int) -> str:
    return {
        401: "log in: podman login REGISTRY, or docker login REGISTRY",
        403: "check the credentials and what they may read",
        404: "check the name, and that it was pushed",
        416: "the object is shorter than its description says: push it again",
    }.get(status, "see the server's own words")


def hasher(digest: str) -> tuple[hashlib._Hash, str]:
    """(hash state, expected hex) of `sha256:…` or `sha512:…`. Raises BadInput."""
    kind, _, wanted = digest.partition(":")
    if kind not in ("sha256", "sha512") or len(wanted) != {"sha256": 64, "sha512": 128}.get(kind):
        raise BadInput(f"not a digest: {digest[:80]!r}", fix="sha256:… with 64 hex digits")
    return hashlib.new(kind), wanted


@dataclass(frozen=True)
class Fetched:
    size_bytes: int
    seconds: float
    retries: int = 0
    digest: str = ""


def fetch(
    client: Client,
    url: str,
    sink: Callable[[memoryview], object],
    *,
    size_bytes: int | None = None,
    digest: str = "",
    headers: Mapping[str, str] | None = None,
    start: int = 0,
    on_restart: Callable[[], object] | None = None,
) -> Fetched:
    """One stream into `sink` (views valid until it returns), resumed by Range after a break,
    digest-checked at the end.

    `start`: bytes the caller has already (their digest is then the caller's to check). `on_restart`
    is called when a server without ranges makes it begin again. Raises TransferError; the caller
    drops what the sink got."""
    state, wanted = hasher(digest) if digest and not start else (None, "")
    at, began_s, view = start, time.monotonic(), memoryview(bytearray(BLOCK))
    attempts, retries, tag = Attempts(client, f"GET {url}"), 0, ""
    while True:
        asked = dict(headers or {})
        if at:
            asked["Range"] = f"bytes={at}-"
            if tag:
                asked["If-Match"] = tag
        try:
            with client.open("GET", url, asked, ok=(200, 206)) as (answer, connection):
                if at and answer.status == 200:
                    if on_restart is None or start:
                        raise TransferError(
                            f"GET {url}: broke at byte {at}, and the server cannot resume",
                            why="it ignores Range",
                            fix="fetch it again from the beginning",
                        )
                    on_restart()
                    at, state = 0, (hasher(digest)[0] if digest else None)
                if answer.size_bytes is not None:
                    if size_bytes is None:
                        size_bytes = at + answer.size_bytes
                    elif at + answer.size_bytes != size_bytes:
                        raise TransferError(
                            f"GET {url}: {at + answer.size_bytes} bytes on offer, {size_bytes}"
                            " expected",
                            why="it is not the thing that was described",
                            fix="push it again",
                        )
                tag = (
                    answer.headers.get("etag", "")
                    if not answer.headers.get("etag", "").startswith("W/")
                    else ""
                )
                while got := connection.read_into(view):
                    block = view[:got]
                    if size_bytes is not None and at + got > size_bytes:
                        raise TransferError(
                            f"GET {url}: more than {size_bytes} bytes",
                            why="longer than described",
                            fix="push it again",
                        )
                    if state is not None:
                        state.update(block)
                    sink(block)
                    at += got
                    attempts.progressed()
                    client.count(bytes_received=got)
            if size_bytes is not None and at < size_bytes:
                raise ConnectionLost(f"the body ended {size_bytes - at} bytes early")
            break
        except (ConnectionLost, HTTPStatusError) as error:
            if size_bytes is not None and at == size_bytes:
                break
            retries += 1
            attempts.failed(error, at)
    if state is not None and state.hexdigest() != wanted:
        raise TransferError(
            f"GET {url}: the bytes are {digest.partition(':')[0]}:{state.hexdigest()[:16]}…,"
            f" not {digest[:23]}…",
            why="corrupted on the way or in the store; nothing of it was kept",
            fix="fetch it again; if it repeats, push it again",
        )
    return Fetched(at - start, time.monotonic() - began_s, retries, digest)


def fetch_file(
    client: Client,
    url: str,
    path: str | os.PathLike[str],
    *,
    size_bytes: int | None = None,
    digest: str = "",
    headers: Mapping[str, str] | None = None,
    again: int = 1,
) -> Fetched:
    """Into a file that gets its name only when size and digest are right. A `.part` left by a kill
    is resumed.

    `again`: how often a wrong digest is fetched anew before it is an error."""
    target = Path(path)
    part = target.with_name(target.name + ".part")
    for attempt in range(again + 1):
        state, _ = hasher(digest) if digest else (None, "")
        with open(part, "a+b", buffering=0) as out:
            out.seek(0)
            have = 0
            while block := out.read(BLOCK):
                have += len(block)
                if state is not None:
                    state.update(block)
            if size_bytes is not None and have > size_bytes:
                out.truncate(0)
                state, have = (hasher(digest)[0] if digest else None), 0

            def sink(
                view: memoryview,
                out: BinaryIO = out,
                state: hashlib._Hash | None = state,
            ) -> None:
                out.write(view)
                if state is not None:
                    state.update(view)

            if size_bytes is None or have < size_bytes:
                got = fetch(client, url, sink, size_bytes=size_bytes, headers=headers, start=have)
            else:
                got = Fetched(0, 0.0)
        if state is None or state.hexdigest() == digest.partition(":")[2]:
            os.replace(part, target)
            return Fetched(have + got.size_bytes, got.seconds, got.retries + attempt, digest)
        part.unlink()
        client.count(retries=1)
    raise TransferError(
        f"GET {url}: wrong digest {again + 1} times, expected {digest[:23]}…",
        why="corrupted in the store; nothing of it was kept",
        fix="push it again",
    )

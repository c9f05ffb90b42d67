"""A client for HTTP that tries again: keep-alive pool, retries that honour Retry-After, redirects,
a registry's login (`labkit.net.login`), proxies and authorities of the environment
(`labkit.net.outbound`).

    with Client() as client:
        client.ask("GET", url).body                       # something small, whole
        with client.open("GET", url) as (answer, connection):
            connection.read_into(view)                    # one attempt, in pieces

One object whole, digest-checked: `labkit.net.fetch`; many ranges at once: `labkit.net.ranges`. A
failure that outlasts its retries is one `TransferError` that names URL, byte and last cause.
Physical limit: a round trip a request. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from urllib.parse import urljoin

from labkit.core.digits import fraction
from labkit.core.json_types import JsonObject
from labkit.errors import TransferError
from labkit.net.head import Unsendable, http_date
from labkit.net.http import PROXY_FIX, Answer, Connection, ConnectionLost
from labkit.net.login import TOKEN_LIMIT_BYTES, Login
from labkit.net.outbound import Outbound
from labkit.net.place import Place, split

RETRY_STATUS = (408, 425, 429, 500, 502, 503, 504)
REDIRECT_STATUS = (301, 302, 303, 307, 308)
REDIRECTS_MAX = 10
_S3_ERROR = re.compile(r"<Error\b.*?<Code>([^<]*)</Code>.*?<Message>([^<]*)</Message>", re.DOTALL)
#: headers that sign or authorise a request: (method, url, headers) -> headers
Authorize = Callable[[str, str, dict[str, str]], dict[str, str]]
#: where else to ask what was refused: (url, the refusal with its body) -> url, "" for nowhere
Relocate = Callable[[str, Answer], str]


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
        requested_s = retry_after_s(retry_after)
        if requested_s is not None:
            return min(requested_s, self.honour_s)
        return min(self.most_s, self.first_s * 2 ** (failures - 1)) * random.uniform(0.7, 1.3)


def retry_after_s(text: str) -> float | None:
    """Seconds or an HTTP date; None for anything else."""
    if not text:
        return None
    try:
        return fraction(text)
    except ValueError:
        at = http_date(text)
        return None if at is None else max(0.0, at - time.time())


def _shown(text: bytes) -> str:
    """On one line; of an S3's error its code and message. Masked before it is cut: a server may
    quote the key it refuses, and half of one would pass for none."""
    from labkit.core import secrets  # only now: a server reads its weights through this module

    words = secrets.mask(text.decode("utf-8", "replace"))
    if found := _S3_ERROR.search(words):
        words = ": ".join(found.groups())
    return " ".join(words.split())[:300]


class HTTPStatusError(Exception):
    """An answer that is not what was asked for. `again`: another attempt may fare better."""

    def __init__(self, answer: Answer, text: bytes = b"", again: bool | None = None):
        super().__init__(f"HTTP {answer.status}" + (f": {_shown(text)}" if text else ""))
        self.answer = answer
        self.again = answer.status in RETRY_STATUS if again is None else again


class Client:
    """A pool of keep-alive connections, shared by threads. Counts what it did: `requests`,
    `retries`, `bytes_received`.

    `login` answers registries that ask for one (default: with the user's stored credentials, or
    anonymously); a client that signs its requests (`authorize`) has none. `relocate`: where a
    refusal says that the thing is."""

    def __init__(
        self,
        *,
        timeout_s: float = 20.0,
        retry: Retry = Retry(),
        authorize: Authorize | None = None,
        login: Login | None = None,
        relocate: Relocate | None = None,
        outbound: Outbound | None = None,
    ):
        self.timeout_s, self.retry, self.authorize = timeout_s, retry, authorize
        self.login = login or (Login() if authorize is None else None)
        self.relocate, self.outbound = relocate, outbound or Outbound()
        self.proxies: set[str] = set()  # those that a connection went through
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

    def facts(self) -> JsonObject:
        return {
            **({"proxies": sorted(self.proxies)} if self.proxies else {}),
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
        self.count(connections=1)
        connection = Connection(place, timeout_s=self.timeout_s, outbound=self.outbound)
        if connection.proxy is not None:
            self.proxies.add(connection.proxy.name)
        return connection

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
        """One attempt, redirects followed; the body is the caller's to read. Raises ConnectionLost,
        HTTPStatusError, TransferError."""
        before, answered, asked = url, False, headers or {}
        for _ in range(REDIRECTS_MAX):
            place, target = _place(url, before)
            given = {**(self.login.headers(method, url) if self.login else {}), **asked}
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
                if answer.status in ok:
                    yield answer, connection
                    return
                if answer.status in REDIRECT_STATUS and "location" in answer.headers:
                    connection.skip()
                    before, url = url, _joined(url, answer.headers["location"])
                    if _place(url, before)[0] != place:
                        asked = {k: v for k, v in asked.items() if k.lower() != "authorization"}
                    continue
                if answer.status == 401 and not answered and self._log_in(url, answer, given):
                    connection.skip()
                    answered = True
                    continue
                text = b""
                with suppress(ConnectionLost):  # its words decide nothing
                    text = connection.first(64 << 10)
                if self.relocate and (there := self.relocate(url, replace(answer, body=text))):
                    before, url = url, there
                    continue
                raise HTTPStatusError(answer, text)
            except Unsendable as error:
                raise TransferError(
                    f"{method} {url}: {error}",
                    why="it would have been another request; nothing was sent",
                    fix="look at the URL, and at the credentials in the environment",
                ) from None
            finally:
                self.give(connection)
        raise TransferError(
            f"{method} {url}: more than {REDIRECTS_MAX} redirects",
            why="the servers send their clients in a circle",
            fix="look at the server's own configuration, and at a proxy before it",
        )

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
                outbound=self.outbound,
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
        whole: bool = True,
    ) -> Answer:
        """Something small, with retries; `whole`: more than the limit is an error, else what
        follows is left. Raises TransferError."""
        attempts = Attempts(self, f"{method} {url}")
        while True:
            try:
                with self.open(method, url, headers, body, ok) as (answer, connection):
                    raw = (connection.read if whole else connection.first)(limit_bytes)
                    self.count(bytes_received=len(raw))
                    return Answer(answer.status, answer.headers, answer.size_bytes, raw)
            except (ConnectionLost, HTTPStatusError) as error:
                attempts.failed(error)


def _joined(url: str, location: str) -> str:
    try:
        return urljoin(url, location)
    except ValueError:
        return ""


def _place(url: str, before: str) -> tuple[Place, str]:
    """Raises TransferError, for a URL of the user's as for one that a server sent its client to."""
    try:
        return split(url)
    except ValueError as error:
        if url == before:
            raise TransferError(str(error), fix="write it like http://HOST:PORT/PATH") from None
        raise TransferError(
            f"{before}: the server sends its clients to no place there is: {error}"
        ) from None


def _as_given(_method: str, _url: str, headers: dict[str, str]) -> dict[str, str]:
    """No login for the place that gives tokens: it could ask for one for ever."""
    return headers


class Attempts:
    """Count failures without progress; wait between them, or give up with a TransferError."""

    def __init__(self, client: Client, request: str, stop: Callable[[], bool] | None = None):
        self.client, self.request, self.failures, self.stop = client, request, 0, stop

    def progressed(self) -> None:
        self.failures = 0

    def failed(self, error: Exception, at: int | None = None) -> None:
        self.failures += 1
        where = f" at byte {at}" if at else ""
        refused = error if isinstance(error, HTTPStatusError) else None
        if refused and not refused.again:
            raise TransferError(
                f"{self.request}{where}: {error}",
                why="the server refuses, so another attempt would be refused too",
                fix=fix_of(refused.answer.status),
            ) from None
        if self.failures >= self.client.retry.attempts:
            raise TransferError(
                f"{self.request}{where}: {error} ({self.failures} attempts)",
                why="nothing of it was kept",
                fix="look whether the server is there and reachable, then run it again",
            ) from None
        self.client.count(retries=1)
        until = time.monotonic() + self.client.retry.wait_s(
            self.failures, refused.answer.headers.get("retry-after", "") if refused else ""
        )
        while (left := until - time.monotonic()) > 0 and not (self.stop and self.stop()):
            time.sleep(min(left, 0.05) if self.stop else left)


def fix_of(status: int) -> str:
    """What a user can do about a refusal."""
    return {
        401: "log in: podman login REGISTRY, or docker login REGISTRY",
        403: (
            "check the credentials and what they may read (to keys without s3:ListBucket, S3 says"
            " so of what is not there, too)"
        ),
        404: "check the name, and that it was pushed",
        407: PROXY_FIX,
        416: "the object is shorter than its description says: push it again",
    }.get(status, "see the server's own words")

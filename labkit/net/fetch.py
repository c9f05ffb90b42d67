"""One object, whole or an error: as one stream, as a checked file, or as many ranges at once.

    with Client() as client:
        fetch(client, url, print, size_bytes)                    # resumed by Range after a break
        fetch_file(client, url, path, size_bytes=size_bytes, digest="sha256:…")
        fetch_ranges(client, url, size_bytes, Into.file(fd))

A failure that outlasts its retries is one `TransferError` that names URL, byte and last cause.
Physical limit: link floor (`Link.floor_s`). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labkit.errors import BadInput, TransferError
from labkit.net.client import Attempts, Client, HTTPStatusError
from labkit.net.content_range import NoRanges, enclosed
from labkit.net.http import ConnectionLost
from labkit.net.parts import PART_BYTES, Into, plan, pwrite
from labkit.net.ranges import Progress, RangeOptions, fetch_parts

BLOCK = 1 << 20


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


def fetch(
    client: Client,
    url: str,
    sink: Callable[[memoryview], object],
    size_bytes: int,
    *,
    start: int = 0,
    on_restart: Callable[[], object] | None = None,
) -> Fetched:
    """One stream into `sink` (views valid until it returns), resumed by Range after a break; the
    digest is the caller's to check.

    `start`: bytes the caller has already. `on_restart` is called when a server without ranges makes
    it begin again, at byte 0. Raises TransferError; the caller drops what the sink got."""
    at, began_s, view = start, time.monotonic(), memoryview(bytearray(BLOCK))
    attempts, retries, restarts, tag = Attempts(client, f"GET {url}"), 0, 0, ""
    while at < size_bytes:
        headers = {"Range": f"bytes={at}-"} if at else {}
        if at and tag:
            headers["If-Match"] = tag
        try:
            with client.open("GET", url, headers, ok=(200, 206)) as (answer, connection):
                end = size_bytes
                if answer.status == 206:
                    end = enclosed(url, answer, at, size_bytes)
                elif at:
                    # what breaks each time would begin again for ever
                    restarts += 1
                    if on_restart is None or restarts >= client.retry.attempts:
                        raise TransferError(
                            f"GET {url}: broke at byte {at}, and the server cannot resume",
                            why="it ignores Range",
                            fix="fetch it again from the beginning",
                        )
                    on_restart()
                    at = start = 0
                if answer.size_bytes not in (None, end - at):
                    raise TransferError(
                        f"GET {url}: {at + (answer.size_bytes or 0)} bytes on offer, {end}"
                        " expected",
                        why="it is not the thing that was described",
                        fix="push it again",
                    )
                tag = answer.headers.get("etag", "")
                if tag.startswith("W/"):
                    tag = ""
                while got := connection.read_into(view):
                    if at + got > end:
                        raise TransferError(
                            f"GET {url}: more than {end} bytes",
                            why="longer than described",
                            fix="push it again",
                        )
                    sink(view[:got])
                    at += got
                    attempts.progressed()
                    client.count(bytes_received=got)
            if at < end:
                raise ConnectionLost(f"the body ended {end - at} bytes early")
        except (ConnectionLost, HTTPStatusError) as error:
            if at < size_bytes:
                retries += 1
                attempts.failed(error, at)
    return Fetched(at - start, time.monotonic() - began_s, retries)


class _Part:
    """A file on its way to its name, and the digest of what is in it."""

    def __init__(self, file: BinaryIO, digest: str):
        self.file, self.digest, self.size_bytes = file, digest, 0
        self.state, _ = hasher(digest)
        while block := file.read(BLOCK):
            self.state.update(block)
            self.size_bytes += len(block)

    def write(self, view: memoryview) -> None:
        self.file.write(view)
        self.state.update(view)

    def restart(self) -> None:
        self.file.truncate(0)
        (self.state, _), self.size_bytes = hasher(self.digest), 0


def fetch_file(
    client: Client, url: str, path: str | os.PathLike[str], *, size_bytes: int, digest: str
) -> Fetched:
    """Into a file that gets its name only when size and digest are right. A `.part` left by a kill
    is resumed; a wrong digest is fetched anew once before it is an error. Raises TransferError."""
    target = Path(path)
    path_of_part = target.with_name(target.name + ".part")
    _, wanted = hasher(digest)
    for attempt in range(2):
        with open(path_of_part, "a+b", buffering=0) as file:
            file.seek(0)
            part = _Part(file, digest)
            if part.size_bytes > size_bytes:
                part.restart()
            got = fetch(
                client,
                url,
                part.write,
                size_bytes,
                start=part.size_bytes,
                on_restart=part.restart,
            )
        if part.state.hexdigest() == wanted:
            os.replace(path_of_part, target)
            return Fetched(size_bytes, got.seconds, got.retries + attempt)
        path_of_part.unlink()
        client.count(retries=1)
    raise TransferError(
        f"GET {url}: wrong digest 2 times, expected {digest[:23]}…",
        why="corrupted in the store; nothing of it was kept",
        fix="push it again",
    )


def fetch_ranges(
    client: Client,
    url: str,
    size_bytes: int,
    into: Into,
    *,
    part_bytes: int = PART_BYTES,
    options: RangeOptions = RangeOptions(),
) -> Progress:
    """One object, in parallel, into a buffer or file; in one stream where a server has no ranges.
    The digest is the caller's to check. Raises TransferError; what was written then is not to be
    used."""
    try:
        return fetch_parts(client, plan(url, size_bytes, part_bytes), into, options)
    except NoRanges:
        return _one_stream(client, url, size_bytes, into)


def _one_stream(client: Client, url: str, size_bytes: int, into: Into) -> Progress:
    at = into.shift

    def sink(view: memoryview) -> None:
        nonlocal at
        if into.view is not None:
            into.view[at : at + len(view)] = view
        else:
            pwrite(into.fd, view, at)
        at += len(view)

    def restart() -> None:
        nonlocal at
        at = into.shift

    fetched = fetch(client, url, sink, size_bytes, on_restart=restart)
    return Progress(size_bytes, fetched.seconds, 1, fetched.retries, 0, 0, 1)

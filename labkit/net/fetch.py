"""One object, whole and digest-checked or an error: as one stream, or as many ranges at once.

    with Client() as client:
        fetch(client, url, sink=print, digest="sha256:…")        # resumed by Range after a break
        fetch_file(client, url, path, digest="sha256:…")         # its name only with the digest
        fetch_ranges(client, url, size_bytes, Into.file(fd), digest="sha256:…")

A failure that outlasts its retries is one `TransferError` that names URL, byte and last cause.
Physical limit: link floor (`Link.floor_s`). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from labkit.errors import BadInput, TransferError
from labkit.net.client import Attempts, Client, HTTPStatusError
from labkit.net.http import ConnectionLost
from labkit.net.parts import PART_BYTES, Into, plan, pwrite
from labkit.net.ranges import NoRanges, Progress, RangeOptions, fetch_parts

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
        sent = dict(headers or {})
        if at:
            sent["Range"] = f"bytes={at}-"
            if tag:
                sent["If-Match"] = tag
        try:
            with client.open("GET", url, sent, ok=(200, 206)) as (answer, connection):
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
                tag = answer.headers.get("etag", "")
                if tag.startswith("W/"):
                    tag = ""
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


def fetch_ranges(
    client: Client,
    url: str,
    size_bytes: int,
    into: Into,
    *,
    part_bytes: int = PART_BYTES,
    digest: str = "",
    options: RangeOptions = RangeOptions(),
) -> Progress:
    """One object, in parallel, into a buffer or file; digest-checked when given. Falls back on one
    stream where a server has no ranges.

    Raises TransferError; what was written then is not to be used."""
    try:
        progress = fetch_parts(client, plan(url, size_bytes, part_bytes), into, options)
    except NoRanges:
        progress = _one_stream(client, url, size_bytes, into)
    if digest:
        state, wanted = hasher(digest)
        for block in _blocks(into, size_bytes):
            state.update(block)
        if state.hexdigest() != wanted:
            raise TransferError(
                f"GET {url}: what arrived is not {digest[:23]}…",
                why="corrupted on the way or in the store; nothing of it counts",
                fix="fetch it again; if it repeats, push it again",
            )
    return progress


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

    fetched = fetch(client, url, sink, size_bytes=size_bytes, on_restart=restart)
    return Progress(size_bytes, fetched.seconds, 1, fetched.retries, 0, 0, 1)


def _blocks(into: Into, size_bytes: int) -> Iterator[bytes | memoryview]:
    if into.view is not None:
        yield into.view[into.shift : into.shift + size_bytes]
        return
    for at in range(0, size_bytes, BLOCK):
        yield os.pread(into.fd, min(BLOCK, size_bytes - at), into.shift + at)

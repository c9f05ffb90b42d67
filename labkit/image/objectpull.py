"""Pull an image in parallel ranges, unpacking while it arrives: from a bucket, or from a registry
that speaks ranges.

    with source_of("s3://lab/images#lab/subject:latest", env) as source:
        pull(source, node / "rootfs", scratch=node / "blobs", options=PullOptions(connections=8))

Four things happen at once: several connections fetch parts of the image layers in order (stragglers
hedged), one thread decompresses and checks the compressed digest, one checks the diff id, a process
writes files (labkit.image.writer). So the time is the largest of three floors – link,
decompression, disk – and not their sum. The bytes lie in `scratch` with a journal of what arrived:
a pull that was killed goes on where it was. Nothing gets its name before every digest is right.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.ledger import remove_tree
from labkit.errors import BadInput, TransferError
from labkit.image.codecs import codec_of, decompress, verified
from labkit.image.distribution import WrongDigest, fetch_config
from labkit.image.image_source import ImageSource
from labkit.image.resumable_blob import ResumableBlob
from labkit.image.stages import background, staged
from labkit.image.tree import Limits
from labkit.image.writer import Writer
from labkit.net.client import Client
from labkit.net.content_range import NoRanges
from labkit.net.fetch import fetch_ranges
from labkit.net.parts import Into, RangePart
from labkit.net.ranges import Fetching, Progress, RangeOptions

CONNECTIONS = 8
PART_BYTES = 2 << 20


@dataclass(frozen=True)
class PullOptions:
    """`pipelined=False` unpacks only when all has arrived (the notebook's control arm);
    `keep_blobs` leaves the compressed layers in `scratch`."""

    connections: int = CONNECTIONS
    part_bytes: int = PART_BYTES
    hedge: bool = True
    limits: Limits = field(default_factory=Limits)
    fast: bool = True
    keep_blobs: bool = False
    pipelined: bool = True


def pull(
    source: ImageSource,
    rootfs: str | os.PathLike[str],
    *,
    scratch: str | os.PathLike[str],
    options: PullOptions = PullOptions(),
) -> JsonObject:
    """Fetch and unpack. Returns facts: bytes, seconds until the last byte, retries, hedges, what
    was resumed, `config`. A wrong digest is fetched once more."""
    folder = Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        try:
            facts = _pull(source, Path(rootfs), folder, options)
            break
        except WrongDigest:
            if attempt == 2:
                raise
    if not options.keep_blobs:
        remove_tree(folder)
    return {**facts, "attempts": attempt}


def _pull(source: ImageSource, rootfs: Path, folder: Path, options: PullOptions) -> JsonObject:
    began_s, manifest, client = time.monotonic(), source.manifest, source.client
    blobs = [ResumableBlob(d, folder / d.digest[7:], options.part_bytes) for d in manifest.layers]
    config = background(
        lambda: fetch_config(client, source.url_of(manifest.config.digest), manifest)
    )
    parts = [p for blob in blobs for p in blob.missing(source.url_of(blob.descriptor.digest))]
    engine = Fetching(
        client,
        parts,
        options=RangeOptions(
            connections=options.connections,
            hedge=options.hedge,
            on_done=lambda part: part.key.done(part),
            on_progress=lambda part, at: part.key.progressed(part.start, at),
        ),
    )
    fetch = background(lambda: _fetch(engine, client, parts, blobs)) if parts else None
    stop = threading.Event()
    writer = Writer(rootfs, options.limits)
    try:
        if fetch is not None and not options.pipelined:
            fetch.result()
        document = config.result()
        ids = document["rootfs"]["diff_ids"]
        ready: list[Iterator[bytes]] = []
        for at in range(len(ids)):
            # the next layer is decompressed while this one is written
            while len(ready) <= min(at + 1, len(blobs) - 1):
                ready.append(_plain(blobs[len(ready)], ids[len(ready)], stop, options.fast))
            writer.layer(ready[at])
        progress, fetched_s = fetch.result() if fetch is not None else (None, began_s)
        return {
            "layers": len(blobs),
            **writer.commit(),
            "bytes": manifest.layers_bytes,
            "resumed_bytes": sum(blob.resumed_bytes for blob in blobs),
            "fetch_s": fetched_s - began_s,
            "seconds": time.monotonic() - began_s,
            "connections": progress.connections if progress else 0,
            "hedges": progress.hedges if progress else 0,
            "retries": client.retries,
            "requests": client.requests,
            "config": document,
        }
    except BadInput as error:
        if fetch is not None:
            fetch.result()
        raise _blame(blobs, error) from None
    finally:
        stop.set()
        writer.end()
        given_up = TransferError("the pull was given up")
        for blob in blobs:
            blob.fail(given_up)
        if fetch is not None:
            engine.stop(given_up)
            wait([fetch], timeout=30)
        for blob in blobs:
            blob.close()


def _checked(chunks: Iterable[bytes], digest: str, name: str) -> Iterator[bytes]:
    """Pass chunks on; after the last one, raise WrongDigest unless they were what `digest`
    names."""
    return verified(
        chunks,
        digest,
        lambda actual: WrongDigest(
            f"{name}: the bytes are {actual[:23]}…, not {digest[:23]}…",
            why="corrupted on the way or in the store; nothing of it was kept",
            fix="pull again; if it repeats, push the image again",
        ),
    )


def _packed(blob: ResumableBlob) -> Iterator[bytes]:
    """The compressed layer as it arrives, checked; a wrong one is not resumed."""
    digest = blob.descriptor.digest
    try:
        yield from _checked(blob.chunks(), digest, digest[:23])
    except WrongDigest:
        blob.forget()
        raise


def _plain(blob: ResumableBlob, diff_id: str, stop: threading.Event, fast: bool) -> Iterator[bytes]:
    """Compressed chunks → digest → plain chunks → diff id, each side of the decompression on a
    thread of its own."""
    layer = blob.descriptor
    # Beside the writer: packed digest + decompression, plain digest, and the fetch itself.
    codec_of(layer.media_type)
    plain = staged(decompress(_packed(blob), fast=fast, name=f"layer {layer.digest}"), stop)
    return staged(_checked(plain, diff_id, f"layer {layer.digest[:23]} unpacked"), stop)


def _blame(blobs: list[ResumableBlob], error: BadInput) -> Exception:
    """Corrupt bytes often show as a broken stream or tar first. The digest decides whether to fetch
    again or to refuse."""
    for blob in blobs:
        try:
            for _ in _packed(blob):
                pass
        except WrongDigest as wrong:
            return wrong
    return error


def _fetch(
    engine: Fetching, client: Client, parts: list[RangePart], blobs: list[ResumableBlob]
) -> tuple[Progress, float]:
    """What the engine did, and when it had all."""
    try:
        return engine.run(), time.monotonic()
    except NoRanges:
        return _whole_blobs(client, blobs, parts), time.monotonic()
    except BaseException as error:
        for blob in blobs:
            blob.fail(error)
        raise


def _whole_blobs(client: Client, blobs: list[ResumableBlob], parts: list[RangePart]) -> Progress:
    """A server without ranges: one stream a layer. The last one's progress."""
    urls = {id(part.key): part.url for part in parts}
    for blob in blobs:
        if url := urls.get(id(blob)):
            size_bytes = blob.descriptor.size_bytes
            progress = fetch_ranges(
                client,
                url,
                size_bytes,
                Into.file(blob.fd),
                part_bytes=size_bytes,
                options=RangeOptions(connections=1),
            )
            blob.done(RangePart(url, 0, size_bytes))
    return progress

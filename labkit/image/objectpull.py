"""Pull an image in parallel ranges, unpacking while it arrives: from a bucket, or from a registry
that speaks ranges.

    with source_of("s3://lab/images#lab/subject:latest", env) as source:
        pull(source, node / "rootfs", scratch=node / "blobs", connections=8)

Four things happen at once: several connections fetch parts of the layers in order (stragglers
hedged), one thread decompresses and checks the compressed digest, one checks the diff id, a process
writes files (labkit.image.writer). So the time is the largest of three floors – link,
decompression, disk – and not their sum. The bytes lie in `scratch` with a journal of what arrived:
a pull that was killed goes on where it was. Nothing gets its name before every digest is right.
Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import hashlib
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core.ledger import remove_tree
from labkit.errors import BadInput, TransferError
from labkit.image import oci
from labkit.image.codecs import codec_of, decompress
from labkit.image.push import blob_key, manifest_key
from labkit.image.resumable_blob import Arriving
from labkit.image.tree import Limits
from labkit.image.writer import Writer
from labkit.net.fetch import Client
from labkit.net.ranges import Fetching, Into, NoRanges, Progress, RangePart, fetch_ranges
from labkit.objects.client import open_bucket

CONNECTIONS = 8
PART_BYTES = 2 << 20
AHEAD = 8  # chunks between two stages: up to 1 MiB each


@dataclass(frozen=True)
class ImageSource:
    """Where an image comes from: its manifest, and a URL for each blob."""

    client: Client
    manifest: oci.Manifest
    url_of: Callable[[str], str]  # digest -> URL
    reference: str


@contextmanager
def source_of(
    reference: str, env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[ImageSource]:
    """`s3://BUCKET/PREFIX#NAME:TAG`, `gs://…#…`, or a registry's `http://HOST:PORT/NAME:TAG`.
    Raises TransferError, BadInput."""
    if reference.startswith(("s3://", "gs://")):
        url, mark, name = reference.partition("#")
        if not mark:
            raise BadInput(
                f"{reference!r} names a bucket but no image",
                fix="s3://lab/images#lab/subject:latest",
            )
        wanted = oci.parse_reference(name)
        with open_bucket(url, env, **options) as bucket:
            raw = bucket.get(
                manifest_key(wanted.name, wanted.target), oci.DOCUMENT_LIMIT_BYTES
            ).body
            yield ImageSource(
                bucket.client,
                oci.parse_manifest(raw),
                lambda digest: bucket.url(blob_key(digest)),
                reference,
            )
        return
    wanted = oci.parse_reference(reference)
    with Client(**options) as client:
        base, target = f"{wanted.base}/v2/{wanted.name}", wanted.target
        for _ in range(3):
            answer = client.ask(
                "GET",
                f"{base}/manifests/{target}",
                {"Accept": oci.ACCEPT},
                limit_bytes=oci.DOCUMENT_LIMIT_BYTES,
            )
            if target.startswith("sha256:") and oci.digest_of(answer.body) != target:
                raise TransferError(
                    f"{reference}: the manifest is not {target[:23]}…",
                    why="corrupted on the way",
                    fix="pull again",
                )
            if answer.headers.get("content-type", "").split(";")[0] not in oci.INDEX_TYPES:
                yield ImageSource(
                    client,
                    oci.parse_manifest(answer.body),
                    lambda digest: f"{base}/blobs/{digest}",
                    reference,
                )
                return
            target = oci.choose(oci.parse_index(answer.body)).digest
        raise BadInput(f"{reference}: indexes nested too deep")


class WrongDigest(TransferError):
    """Bytes that are not what their name says. Worth one more fetch."""


def _checked(chunks: Iterable[bytes], digest: str, what: str) -> Iterator[bytes]:
    """Pass chunks on; after the last one, raise WrongDigest unless they were what `digest`
    names."""
    state = hashlib.sha256()
    for chunk in chunks:
        state.update(chunk)
        yield chunk
    if f"sha256:{state.hexdigest()}" != digest:
        raise WrongDigest(
            f"{what}: the bytes are sha256:{state.hexdigest()[:16]}…, not {digest[:23]}…",
            why="corrupted on the way or in the store; nothing of it was kept",
            fix="pull again; if it repeats, push the image again",
        )


class _End:
    pass


def staged(chunks: Iterable[bytes], stop: threading.Event, depth: int = AHEAD) -> Iterator[bytes]:
    """The same chunks, made in a thread of their own, at most `depth` ahead: two stages on two
    cores."""
    waiting: queue.Queue[Any] = queue.Queue(depth)

    def put(item: Any) -> bool:
        while not stop.is_set():
            with contextlib.suppress(queue.Full):
                waiting.put(item, timeout=0.1)
                return True
        return False

    def work() -> None:
        try:
            for chunk in chunks:
                if not put(chunk):
                    return
            put(_End())
        except BaseException as error:  # raised again where the chunks are consumed
            put(error)

    threading.Thread(target=work, name="stage", daemon=True).start()

    def drain() -> Iterator[bytes]:
        while True:
            try:
                item = waiting.get(timeout=0.5)
            except queue.Empty:
                if stop.is_set():
                    return
                continue
            if isinstance(item, _End):
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    return drain()


def pull(
    source: ImageSource,
    rootfs: str | os.PathLike[str],
    *,
    scratch: str | os.PathLike[str],
    connections: int = CONNECTIONS,
    part_bytes: int = PART_BYTES,
    hedge: bool = True,
    limits: Limits = Limits(),
    fast: bool = True,
    keep_blobs: bool = False,
    pipelined: bool = True,
) -> dict[str, Any]:
    """Fetch and unpack. Returns facts: bytes, seconds until the last byte, retries, hedges, what
    was resumed, `config`.

    A wrong digest is fetched once more. `pipelined=False` unpacks only when all has arrived (the
    notebook's control arm)."""
    folder = Path(scratch)
    folder.mkdir(parents=True, exist_ok=True)
    for attempt in (1, 2):
        try:
            facts = _pull(
                source,
                Path(rootfs),
                folder,
                connections,
                part_bytes,
                hedge,
                limits,
                fast,
                pipelined,
            )
            break
        except WrongDigest:
            if attempt == 2:
                raise
    if not keep_blobs:
        remove_tree(folder)
    return {**facts, "attempts": attempt}


def _pull(
    source: ImageSource,
    rootfs: Path,
    folder: Path,
    connections: int,
    part_bytes: int,
    hedge: bool,
    limits: Limits,
    fast: bool,
    pipelined: bool,
) -> dict[str, Any]:
    began_s, manifest, client = time.monotonic(), source.manifest, source.client
    layers = [Arriving(d, folder / d.digest[7:], part_bytes) for d in manifest.layers]
    config = _Later(
        lambda: (
            client.ask(
                "GET", source.url_of(manifest.config.digest), limit_bytes=oci.DOCUMENT_LIMIT_BYTES
            ).body
        )
    )
    parts = [p for layer in layers for p in layer.missing(source.url_of(layer.layer.digest))]
    engine = Fetching(
        client,
        parts,
        connections=connections,
        hedge=hedge,
        on_done=lambda part: part.key.done(part),
        on_progress=lambda part, at: part.key.progressed(part.start, at),
    )
    fetch = _Later(lambda: _fetch(engine, client, parts, layers)) if parts else None
    stop = threading.Event()
    writer = Writer(rootfs, limits)
    try:
        if fetch is not None and not pipelined:
            fetch.result()
        document = oci.parse_config(_config(config.result(), manifest), len(layers))
        ids = document["rootfs"]["diff_ids"]
        ready: list[Iterator[bytes]] = []
        for at in range(len(ids)):
            # the next layer is decompressed while this one is written
            while len(ready) <= min(at + 1, len(layers) - 1):
                ready.append(_plain(layers[len(ready)], ids[len(ready)], stop, fast))
            writer.layer(ready[at])
        progress: Progress | None = fetch.result() if fetch is not None else None
        fetched_s = (fetch.ended_s if fetch is not None else began_s) - began_s
        return {
            "layers": len(layers),
            **writer.commit(),
            "bytes": manifest.layers_bytes,
            "resumed_bytes": sum(a.resumed_bytes for a in layers),
            "fetch_s": fetched_s,
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
        raise _blame(layers, error) from None
    finally:
        stop.set()
        writer.end()
        given_up = TransferError("the pull was given up")
        for layer in layers:
            layer.fail(given_up)
        if fetch is not None:
            engine.stop(given_up)
            fetch.settle()
        for layer in layers:
            layer.close()


def _config(raw: bytes, manifest: oci.Manifest) -> bytes:
    if oci.digest_of(raw) != manifest.config.digest:
        raise WrongDigest(
            f"the image config is not {manifest.config.digest[:23]}…",
            why="corrupted on the way",
            fix="pull again",
        )
    return raw


def _plain(layer: Arriving, diff_id: str, stop: threading.Event, fast: bool) -> Iterator[bytes]:
    """Compressed chunks → digest → plain chunks → diff id, each side of the decompression on a
    thread of its own."""

    def packed() -> Iterator[bytes]:
        try:
            yield from _checked(layer.chunks(), layer.layer.digest, layer.layer.digest[:23])
        except WrongDigest:
            layer.forget()
            raise

    # Beside the writer: packed digest + decompression, plain digest, and the fetch itself.
    plain = staged(decompress(packed(), codec_of(layer.layer.media_type), fast=fast), stop)
    return staged(_checked(plain, diff_id, f"layer {layer.layer.digest[:23]} unpacked"), stop)


def _blame(layers: list[Arriving], error: BadInput) -> Exception:
    """Corrupt bytes often show as a broken stream or tar first. The digest decides whether to fetch
    again or to refuse."""
    for layer in layers:
        try:
            for _ in _checked(layer.chunks(), layer.layer.digest, layer.layer.digest[:23]):
                pass
        except WrongDigest as wrong:
            layer.forget()
            return wrong
    return error


def _fetch(
    engine: Fetching, client: Client, parts: list[RangePart], layers: list[Arriving]
) -> Progress:
    try:
        return engine.run()
    except NoRanges:
        return _whole_blobs(client, layers, parts)
    except BaseException as error:
        for layer in layers:
            layer.fail(error)
        raise


def _whole_blobs(client: Client, layers: list[Arriving], parts: list[RangePart]) -> Progress:
    """A server without ranges: one stream a layer."""
    made = None
    for layer in layers:
        url = next((p.url for p in parts if p.key is layer), "")
        if url:
            made = fetch_ranges(
                client,
                url,
                layer.layer.size_bytes,
                Into.file(layer.fd),
                part_bytes=layer.layer.size_bytes,
                connections=1,
            )
            layer.done(RangePart(url, 0, layer.layer.size_bytes))
    assert made is not None
    return made


class _Later:
    """A call in a thread, its result or error when asked for, and when it ended."""

    def __init__(self, call: Callable[[], Any]):
        self._value: Any = None
        self._error: BaseException | None = None
        self.ended_s = 0.0
        self._thread = threading.Thread(target=self._run, args=(call,), name="later", daemon=True)
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self._value = call()
        except BaseException as error:
            self._error = error
        self.ended_s = time.monotonic()

    def settle(self) -> None:
        self._thread.join(30)

    def result(self) -> Any:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value

"""An image reference to a mounted directory: manifest, TOCs, tree, mount, request loop, take-down.

    options = Options(cache=Path("/tmp/cache"))
    with Session("http://127.0.0.1:5000/lab/subject:esgz", "/mnt/image", options) as session:
        session.serve()

Two round trips before the mount stands: the manifest, then each layer's footer and TOC side by
side. Everything else is fetched when it is touched, or ahead of it. Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import contextlib
import gc
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.ledger import unmount
from labkit.errors import BadInput, LabError, TransferError
from labkit.image import access_record, oci
from labkit.image.estargz import layout
from labkit.image.estargz.reader import read_toc
from labkit.image.estargz.toc import Toc
from labkit.image.lazyfs import mount, tree
from labkit.image.lazyfs.cache import Blob, BlobStore, ChunkMemory
from labkit.image.lazyfs.feed import Feed
from labkit.image.lazyfs.remote import Busy, LayerSource, Refused, open_source
from labkit.image.lazyfs.serve import FuseServer
from labkit.image.lazyfs.stats import Stats
from labkit.image.lazyfs.transfers import LayerFeed


@dataclass(frozen=True)
class Options:
    """`io_timeout_s`: when a read that gets no bytes fails with EIO. `record`: file for the order
    of first touches. `read_ahead_kb`: how far the kernel reads ahead (0: `mount.READ_AHEAD_*`)."""

    cache: Path
    cache_limit_bytes: int = 64 << 30
    memory_bytes: int = 256 << 20
    connections: int = 4
    io_timeout_s: float = 30.0
    prefetch: bool = True
    background: bool = True
    record: Path | None = None
    stats: Path | None = None
    extra_dirs: tuple[str, ...] = ()
    extra_files: tuple[str, ...] = ()
    allow_other: bool | None = None
    read_ahead_kb: int = 0


@dataclass
class Touches:
    """First touches of files, in order, with the ranges the kernel asked for."""

    started_s: float = field(default_factory=time.monotonic)
    #: By inode number: the file, seconds after the mount, ranges.
    seen: dict[int, tuple[tree.Node, float, set[tuple[int, int]]]] = field(default_factory=dict)

    def __call__(self, node: tree.Node, offset: int, size: int) -> None:
        held = self.seen.get(node.ino)
        if held is None:
            held = self.seen.setdefault(node.ino, (node, time.monotonic() - self.started_s, set()))
        held[2].add((offset, offset + size))

    def accesses(self) -> list[access_record.Access]:
        accesses = []
        for node, at_s, ranges in list(self.seen.values()):
            spans = tuple(access_record.merged(ranges.copy()))
            accesses.append(access_record.Access(node.path, node.layer, "", at_s, spans))
        return accesses


class Session:
    """Everything of one mount. Opening it mounts; closing it unmounts, whatever state the mount is
    in."""

    def __init__(self, reference: str, target: str | os.PathLike[str], options: Options):
        self.reference, self.target, self.options = reference, os.path.realpath(target), options
        self.source: LayerSource = open_source(reference)
        self.stats = Stats(options.stats, image=reference, pid=os.getpid())
        self.store = BlobStore(options.cache, options.cache_limit_bytes)
        self.touches = Touches() if options.record else None
        self.facts: JsonObject = {}
        self._fd = -1
        self._stop = threading.Event()
        # unmounted at our own wish; who still holds a file gets an error once the process is gone
        self.over = False

    def open(self) -> Session:
        """Mount. Raises LabError; nothing stays mounted then."""
        # a hundred thousand objects that all stay: every pass over them is for nothing
        gc.disable()
        try:
            return self._open()
        finally:
            gc.freeze()
            gc.enable()

    def _open(self) -> Session:
        started_s = time.monotonic()
        manifest = self.source.manifest()
        self.config = self.source.config(manifest)
        manifest_s = time.monotonic() - started_s
        with ThreadPoolExecutor(min(8, max(1, len(manifest.layers)))) as pool:
            opened = list(pool.map(self._open_layer, manifest.layers))
        toc_s = time.monotonic() - started_s - manifest_s
        merged = tree.build(
            [toc for toc, _ in opened], self.options.extra_dirs, self.options.extra_files
        )
        layers = [feed for _, feed in opened]
        blobs_bytes = sum(feed.blob.size_bytes for feed in layers)
        fits_in_cache = self.options.cache_limit_bytes > blobs_bytes * 1.1
        self.feed = Feed(
            layers,
            self.source,
            ChunkMemory(self.options.memory_bytes),
            self.stats,
            connections=self.options.connections,
            timeout_s=self.options.io_timeout_s,
            background=self.options.background and fits_in_cache,
        )
        self.feed.ahead.start()  # bytes flow while the kernel is still mounting
        self._fd = mount.mount(
            self.target, name=self.reference, allow_other=self.options.allow_other
        )
        squash = (os.geteuid(), os.getegid()) if os.geteuid() else None
        self.server = FuseServer(
            self._fd, merged, self.feed, self.stats, squash=squash, on_read=self.touches
        )
        self.stats.about |= {
            "mountpoint": self.target,
            "blobs_bytes": blobs_bytes,
            "content_bytes": sum(toc.content_bytes for toc, _ in opened),
            "chunks": sum(len(f.chunks) for f in layers),
            "prefetch_planned_bytes": sum(b - a for f in layers for a, b in f.prefetch),
        }
        self.facts = {
            "manifest_s": manifest_s,
            "toc_s": toc_s,
            "mount_s": time.monotonic() - started_s,
            "layers": len(layers),
            "nodes": len(merged.nodes),
        } | {k: v for k, v in self.stats.about.items() if k.endswith("_bytes")}
        return self

    def _open_layer(self, descriptor: oci.Descriptor) -> tuple[Toc, LayerFeed]:
        digest = descriptor.annotations.get(layout.TOC_DIGEST)
        if digest is None:
            raise BadInput(
                f"{self.reference}: layer {descriptor.digest[:19]}… has no TOC digest in the"
                " manifest",
                why=(
                    "it is no eStargz layer, or nobody vouches for its TOC; a lazy mount would have"
                    " to believe it"
                ),
                fix="labkit image convert LAYOUT OUT, then push that",
            )
        blob = self.store.open(descriptor.digest, descriptor.size_bytes)
        try:
            toc = read_toc(self._reader(descriptor, blob), descriptor.size_bytes, digest)
        except BadInput:  # what an earlier mount left here may be torn: once more, from the source
            toc = read_toc(
                self._reader(descriptor, blob, trust_cache=False), descriptor.size_bytes, digest
            )
        text = descriptor.annotations.get(layout.TOUCHED_RANGES)
        ranges: list[tuple[int, int]] = []
        if self.options.prefetch and text is not None:
            ranges = layout.parse_ranges(text, toc.toc_offset)
        elif self.options.prefetch and toc.prefetch_end:
            ranges = [(0, toc.prefetch_end)]
        chunks = [chunk for entry in toc.entries for chunk in entry.chunks]
        return toc, LayerFeed(descriptor.digest, blob, chunks, ranges)

    def _reader(
        self, descriptor: oci.Descriptor, blob: Blob, trust_cache: bool = True
    ) -> Callable[[int, int], bytes]:
        """Footer and TOC through the disk cache, with retries."""

        def read_at(start: int, size: int) -> bytes:
            end, deadline_s = start + size, time.monotonic() + self.options.io_timeout_s
            if size > self.options.memory_bytes:
                raise BadInput(
                    f"{descriptor.digest}: a TOC of {size} bytes",
                    why="larger than the mount's memory bound",
                )
            while not (trust_cache and blob.has(start, end)):
                try:
                    at = start
                    for piece in self.source.stream(descriptor.digest, start, end):
                        blob.write(at, piece)
                        at += len(piece)
                    self.stats.add(self.stats.bytes, "toc", size)
                    break
                except TransferError as error:
                    self.stats.add(self.stats.counts, "retries")
                    if isinstance(error, Refused) or time.monotonic() > deadline_s:
                        raise
                    self._stop.wait(error.retry_after_s if isinstance(error, Busy) else 0.1)
            return blob.read(start, size)

        return read_at

    def serve(self) -> None:
        """Until unmounted or stopped."""
        ticker = threading.Thread(target=self._tick, name="ticker", daemon=True)
        ticker.start()
        self.server.run()
        self._stop.set()

    def after_mount(self) -> None:
        """What touches the mount itself: only once the loop runs."""
        if self.server.ready.wait(5) and os.geteuid() == 0:
            recorded = any(feed.prefetch for feed in self.feed.layers)
            mount.read_ahead(
                self.target,
                self.options.read_ahead_kb
                or (mount.READ_AHEAD_RECORDED_KB if recorded else mount.READ_AHEAD_KB),
            )

    def _tick(self) -> None:
        last = -1
        while not self._stop.wait(0.25):
            self.stats.write()
            fetched = sum(self.stats.bytes.values())
            if fetched != last:
                last = fetched
                self.store.keep_bound()

    def write_record(self) -> None:
        if self.touches and self.options.record:
            access_record.write(self.options.record, self.touches.accesses())

    def stop(self) -> None:
        """From any thread or a signal's handler thread: unmount, which ends `serve`."""
        self._stop.set()
        with contextlib.suppress(Exception):
            self.write_record()
        unmount(self.target)
        self.over = True

    def close(self) -> None:
        self._stop.set()
        if hasattr(self, "feed"):
            self.feed.close()
        if self._fd >= 0:
            unmount(self.target)
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1
        with contextlib.suppress(OSError, LabError):
            self.write_record()
        with contextlib.suppress(OSError):
            self.stats.write()
        self.store.close()

    def __enter__(self) -> Session:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, *_: object) -> None:
        self.close()

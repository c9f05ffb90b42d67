"""One load, from a directory or a bucket into a model.

    load(model, "/models/1b", "cpu", threads=4)            # options: StreamOptions

Five steps: plan all reads from the headers (`plan`) · look what is in the page cache and read the
rest past it from several threads (`local`), or as parallel ranges of a bucket (`labkit.net.ranges`:
retries, hedged stragglers) · let bytes land in their final place, or in a bounded ring that is
moved on while the next reads run (`buffers`) · check that no file changed · make the tensors the
model's parameters.

Files on a disk take one of two read paths to the host's memory, looked up file by file: *mapped*,
where the page cache holds them already or the kernel reads far enough ahead of one thread that
touches page after page, else *direct*. A GPU's bytes are always read into the ring.

Limit: bytes ÷ min(storage, memory or PCIe bandwidth). Peak memory beside the parameters: the ring.
Lesson: notebooks/05_streaming."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from labkit.core import disks
from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.errors import BadInput
from labkit.weights.loaders.placing import Placer
from labkit.weights.loaders.views import torch_dtype
from labkit.weights.source import CheckpointSource, open_source
from labkit.weights.streamer import buffers
from labkit.weights.streamer.buffers import Arena, Ring, Tensors
from labkit.weights.streamer.local import FAR_AHEAD_BYTES, LocalFile, Read, facts_of
from labkit.weights.streamer.plan import (
    CHUNK_BYTES,
    DEVICE_CHUNK_BYTES,
    PART_BYTES,
    Chunk,
    File,
    cut,
    open_files,
    plan_chunks,
)

if TYPE_CHECKING:
    import torch

    from labkit.net.client import Client

#: From this share in the page cache on, a file is mapped: pages that are there need not be copied,
#: the rest is read in.
MAP_FROM = 0.98
#: With 8 MiB parts enough for 500 MB/s at 50 MB/s and 30 ms a connection (lesson 05 computes it),
#: and for the shorter tail.
CONNECTIONS = 24
TAIL_BYTES = 2 << 20
Job = TypeVar("Job")
Memory = Arena | buffers.Mapped | Tensors


class StreamOptions(NamedTuple):  # a dataclass would cost 1 ms more of each load
    """How one load reads; what is 0 or "" the streamer chooses itself.

    `threads` and `chunk_bytes`: of reading. `read_path`: "mapped" or "direct" whatever the files
    and the disk are. `ring`: force the ring on a CPU, of `slots` chunks. `connections`: to a
    bucket. `preadv`: reads a file, as `os.preadv` does."""

    threads: int = 0
    chunk_bytes: int = 0
    read_path: str = ""
    ring: bool = False
    slots: int = 0
    connections: int = CONNECTIONS
    preadv: Read = os.preadv


def load(model: torch.nn.Module, source: str, device: str = "cpu", **options: Any) -> JsonObject:
    """Fill the model's parameters; `options` are those of `StreamOptions`. Facts: tensors,
    size_bytes, mode, direct_bytes, cached_bytes, mapped_bytes, retries, hedges.

    Raises BadInput (forged, truncated or changed files), TransferError (storage or network gave
    up)."""
    if road := options.pop("road", ""):  # the option's old name, for one version
        options["read_path"] = road
    settings = StreamOptions(**options)
    if settings.read_path not in ("", "mapped", "direct"):
        raise BadInput(
            f"no read path {settings.read_path!r}",
            fix='read_path="mapped", "direct", or neither: the streamer looks',
        )
    opened = open_source(source)
    placer = Placer(model, device)
    with span("load.stream", loader="labkit-streamer") as facts:
        facts |= (_from_bucket if opened.remote else _from_files)(opened, placer, settings)
    return placer.finish() | dict(facts)


def in_parallel(jobs: Sequence[Job], work: Callable[[Job], None], threads: int) -> None:
    """`work(job)` over all jobs in order, by several threads; the first error ends all of them and
    is raised here."""
    waiting, lock = iter(jobs), threading.Lock()
    errors: list[BaseException] = []

    def run() -> None:
        while not errors:
            with lock:
                job = next(waiting, None)
            if job is None:
                return
            try:
                work(job)
            except BaseException as error:
                errors.append(error)

    many = [
        threading.Thread(target=run, name=f"stream-{n}", daemon=True)
        for n in range(min(threads, len(jobs)))
    ]
    for thread in many:
        thread.start()
    for thread in many:
        thread.join()
    if errors:
        raise errors[0]


def _needs_ring(placer: Placer, options: StreamOptions) -> bool:
    return (
        options.ring or placer.device != "cpu" or any(not p.is_meta for p in placer.slots.values())
    )


def _ring(
    placer: Placer, files: Sequence[File], slots: int, chunk_bytes: int
) -> tuple[Ring, list[Tensors]]:
    """A ring, and the tensors it is emptied into: the model's own storage where it has some of the
    right dtype."""
    tensors = []
    for file in files:
        own = {}
        for e in file.layout.tensors:
            slot = placer.slots.get(e.name)
            if (
                slot is not None
                and not slot.is_meta
                and slot.dtype == torch_dtype(e)
                and slot.is_contiguous()
                and placer.slot(e.name, e.shape) is not None
            ):
                own[e.name] = slot
        tensors.append(Tensors(file, placer.device, own))
    copier = buffers.CudaCopies(placer.device) if placer.device.startswith("cuda") else None
    return Ring(slots, chunk_bytes, copier), tensors


def _hand_over(
    placer: Placer,
    files: Sequence[File],
    memories: Sequence[Memory],
) -> None:
    for file, memory in zip(files, memories, strict=True):
        for entry in file.layout.tensors:
            placer.put(entry.name, memory.tensor(entry))


def _in_place(file: File, local: LocalFile, read_path: str, threads: int) -> Memory:
    """The file's own pages where that is the faster read path, complete; else empty memory that
    its chunks are to be read into."""
    cached = local.share >= MAP_FROM
    if read_path == "mapped" or (
        not read_path and (cached or disks.read_ahead_bytes(local.device) >= FAR_AHEAD_BYTES)
    ):
        mapped = buffers.Mapped(file, local.fd)
        # In order and by one thread the kernel reads ahead of it; scattered holes are asked for
        # side by side.
        if cached:
            complete = mapped.read_in(local.missing(), threads)
        else:
            complete = mapped.read_in(cut(0, file.size_bytes, buffers.POPULATE_BYTES), 1)
        if complete:
            return mapped
    return Arena(file)


def _from_files(source: CheckpointSource, placer: Placer, options: StreamOptions) -> JsonObject:
    on_gpu = placer.device.startswith("cuda")
    files = open_files(source)
    threads = options.threads or buffers.preferred(files, placer.device)
    chunk_bytes = options.chunk_bytes or (DEVICE_CHUNK_BYTES if on_gpu else CHUNK_BYTES)
    opened: list[LocalFile] = []
    try:
        opened += [LocalFile(source.path(f.name), f, options.preadv) for f in files]
        chunks = plan_chunks(files, chunk_bytes)
        ring, mapped_bytes = None, 0
        memories: Sequence[Memory]
        if _needs_ring(placer, options):
            slots = 2 * threads if placer.device == "cpu" else threads + max(2, threads // 2)
            ring, tensors = _ring(placer, files, options.slots or slots, chunk_bytes)
            memories = tensors

            def read(chunk: Chunk) -> None:
                slot = ring.take()
                try:
                    opened[chunk.file].read(chunk, ring.memory(slot))
                except BaseException:
                    ring.give(slot)
                    raise
                ring.move(slot, chunk, tensors[chunk.file])

        else:
            memories = [
                _in_place(f, local, options.read_path, threads)
                for f, local in zip(files, opened, strict=True)
            ]
            arenas = {n: m for n, m in enumerate(memories) if isinstance(m, Arena)}
            mapped_bytes = sum(f.size_bytes for n, f in enumerate(files) if n not in arenas)
            chunks = [chunk for chunk in chunks if chunk.file in arenas]

            def read(chunk: Chunk) -> None:
                opened[chunk.file].read(chunk, arenas[chunk.file].memory(chunk))

        try:
            in_parallel(chunks, read, threads)
        finally:
            if ring:
                ring.drain()
        for local in opened:
            local.check_unchanged()
        _hand_over(placer, files, memories)
        return {
            "mode": "ring" if ring else "in place",
            "mapped_bytes": mapped_bytes,
            "threads": threads,
            "chunks": len(chunks),
            "overlapped_copies": ring.overlapped if ring else 0,
            **facts_of(opened),
        }
    finally:
        for local in opened:
            local.close()


class _Slotted:
    """A ring's slot as the target of one fetched part: taken when its first byte is about to
    arrive."""

    def __init__(self, ring: Ring, part_start: int):
        self.ring, self.shift, self.fd, self.slot = ring, -part_start, -1, -1
        self._lock = threading.Lock()

    @property
    def view(self) -> memoryview:
        with self._lock:
            if self.slot < 0:
                self.slot = self.ring.take()
        return self.ring.memory(self.slot)


def _from_bucket(source: CheckpointSource, placer: Placer, options: StreamOptions) -> JsonObject:
    from labkit.net.parts import Into, RangePart
    from labkit.net.ranges import RangeOptions, fetch_parts

    chunk_bytes = options.chunk_bytes or PART_BYTES
    with source.client() as client:
        files = open_files(source, client)
        chunks = plan_chunks(files, chunk_bytes, TAIL_BYTES)
        ring, landed = None, None
        memories: Sequence[Memory]
        targets: Sequence[Into | _Slotted]
        if _needs_ring(placer, options):
            slots = max(options.slots, options.connections + 4)
            ring, tensors = _ring(placer, files, slots, chunk_bytes)
            memories = tensors
            slotted = targets = [_Slotted(ring, chunk.offset) for chunk in chunks]

            def landed(part: RangePart) -> None:
                chunk = chunks[part.key]
                ring.move(slotted[part.key].slot, chunk, tensors[chunk.file])

        else:
            memories = arenas = [Arena(f) for f in files]
            targets = [Into.buffer(arenas[chunk.file].whole) for chunk in chunks]
        parts = [
            RangePart(source.url(files[c.file].name), c.offset, c.length, n, target)
            for n, (c, target) in enumerate(zip(chunks, targets, strict=True))
        ]
        try:
            progress = fetch_parts(
                client,
                parts,
                options=RangeOptions(connections=options.connections, on_done=landed),
            )
        finally:
            if ring:
                ring.drain()
        _check_etags(client, source, files)
    _hand_over(placer, files, memories)
    return {
        "mode": "ring" if ring else "in place",
        "connections": progress.connections,
        "parts": progress.parts,
        "retries": progress.retries,
        "hedges": progress.hedges,
        "fetched_bytes": progress.size_bytes,
    }


def _check_etags(client: Client, source: CheckpointSource, files: Sequence[File]) -> None:
    """No object may have been replaced while its parts were fetched."""

    def check(file: File) -> None:
        now = client.ask("HEAD", source.url(file.name)).headers.get("etag", "")
        if now != file.stamp:
            raise BadInput(
                f"{source.address(file.name)} was replaced while it was read",
                why="its parts would be of two versions; nothing was loaded",
                fix="load it again",
            )

    in_parallel(files, check, 16)

"""`labkit-streamer`: weights from storage to their final place at the speed of the hardware,
readable in one sitting.

    load(model, "/models/1b", "cpu")                       # or s3://lab/models/1b, or device="cuda"

Five steps, a module each: `plan` all reads from the headers · look what is in the page cache and
read the rest past it from several threads (`local`), or as parallel ranges of a bucket
(`labkit.net.ranges`: retries, hedged stragglers) · let bytes land in their final place, or in a
bounded ring that is moved on while the next reads run (`buffers`) · check that no file changed ·
make the tensors the model's parameters.

Files on a disk take one of two read paths to the host's memory, looked up file by file: *mapped*,
where the page cache holds them already or the kernel reads far enough ahead of one thread that
touches page after page, else *direct*. A GPU's bytes are always read into the ring.

Limit: bytes ÷ min(storage, memory or PCIe bandwidth). Peak memory beside the parameters: the ring.
Options: `threads`, `chunk_bytes`, `read_path` ("mapped" or "direct" whatever the files and the
disk are), `ring` (force the ring on a CPU), `slots`, `connections`. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from labkit.core.timeline import span
from labkit.errors import BadInput
from labkit.weights.loaders.placing import Placer
from labkit.weights.source import CheckpointSource, open_source
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

#: From this share in the page cache on, a file is mapped: pages that are there need not be copied,
#: the rest is read in.
MAP_FROM = 0.98
#: With 8 MiB parts enough for 500 MB/s at 50 MB/s and 30 ms a connection (lesson 05 computes it),
#: and for the shorter tail.
CONNECTIONS = 24
TAIL_BYTES = 2 << 20


def load(
    model: Any,
    source: str,
    device: str = "cpu",
    *,
    threads: int = 0,
    chunk_bytes: int = 0,
    read_path: str = "",
    ring: bool = False,
    slots: int = 0,
    connections: int = CONNECTIONS,
    **options: Any,
) -> dict[str, Any]:
    """Fill the model's parameters. Facts: tensors, size_bytes, mode, direct_bytes, cached_bytes,
    mapped_bytes, retries, hedges.

    Raises BadInput (forged, truncated or changed files), TransferError (storage or network gave
    up)."""
    read_path = options.pop("road", "") or read_path  # the option's old name, for one version
    if read_path not in ("", "mapped", "direct"):
        raise BadInput(
            f"no read path {read_path!r}",
            fix='read_path="mapped", "direct", or neither: the streamer looks',
        )
    opened = open_source(source)
    placer = Placer(model, device)
    with span("load.stream", loader="labkit-streamer") as facts:
        if opened.remote:
            facts |= _from_bucket(
                opened,
                placer,
                device,
                ring,
                chunk_bytes or PART_BYTES,
                connections,
                max(slots, connections + 4),
            )
        else:
            facts |= _from_files(
                opened,
                placer,
                device,
                ring,
                threads,
                chunk_bytes or (DEVICE_CHUNK_BYTES if device.startswith("cuda") else CHUNK_BYTES),
                slots,
                read_path,
                **options,
            )
    return placer.finish() | dict(facts)


def in_parallel(jobs: Sequence[Any], work: Callable[[Any], None], threads: int) -> None:
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


def _staged(
    placer: Placer, files: Sequence[File], device: str, slots: int, chunk_bytes: int
) -> tuple[Any, list[Any]]:
    """A ring, and the tensors it is emptied into: the model's own storage where it has some of the
    right dtype."""
    from labkit.weights.loaders.views import torch_dtype
    from labkit.weights.streamer.buffers import CudaCopies, Ring, Tensors

    into = []
    for file in files:
        own = {
            e.name: placer.slots[e.name]
            for e in file.layout.tensors
            if e.name in placer.slots
            and not placer.slots[e.name].is_meta
            and placer.slots[e.name].dtype == torch_dtype(e)
            and placer.slots[e.name].is_contiguous()
            and placer.slot(e.name, e.shape) is not None
        }
        into.append(Tensors(file, device, own))
    return Ring(slots, chunk_bytes, CudaCopies(device) if device.startswith("cuda") else None), into


def _hand_over(placer: Placer, files: Sequence[File], places: Sequence[Any]) -> None:
    for file, place in zip(files, places, strict=True):
        for entry in file.layout.tensors:
            placer.put(entry.name, place.tensor(entry))


def _in_place(file: File, here: Any, read_path: str, threads: int) -> Any:
    """The file's own pages where that is the faster read path, complete; else empty memory that
    its chunks are to be read into."""
    from labkit.core.disks import read_ahead_bytes
    from labkit.weights.streamer.buffers import POPULATE_BYTES, Arena, Mapped
    from labkit.weights.streamer.local import FAR_AHEAD_BYTES

    here_already = here.share >= MAP_FROM
    if read_path == "mapped" or (
        not read_path and (here_already or read_ahead_bytes(here.device) >= FAR_AHEAD_BYTES)
    ):
        mapped = Mapped(file, here.fd)
        # In order and by one thread the kernel reads ahead of it; scattered holes are asked for
        # side by side.
        if (
            mapped.read_in(here.missing(), threads)
            if here_already
            else mapped.read_in(cut(0, file.size_bytes, POPULATE_BYTES), 1)
        ):
            return mapped
    return Arena(file)


def _from_files(
    source: CheckpointSource,
    placer: Placer,
    device: str,
    ring: bool,
    threads: int,
    chunk_bytes: int,
    slots: int,
    read_path: str,
    **reading: Any,
) -> dict[str, Any]:
    from labkit.weights.streamer.buffers import Mapped, preferred
    from labkit.weights.streamer.local import LocalFile, facts_of

    files = open_files(source)
    threads = threads or preferred(files, device)
    opened: list[LocalFile] = []
    mapped_bytes, overlapped = 0, 0
    try:
        opened += [LocalFile(source.path(f.name), f, **reading) for f in files]
        staging = ring or device != "cpu" or any(not p.is_meta for p in placer.slots.values())
        if staging:
            made, places = _staged(
                placer,
                files,
                device,
                slots or (2 * threads if device == "cpu" else threads + max(2, threads // 2)),
                chunk_bytes,
            )

            def work(chunk: Chunk) -> None:
                slot = made.take()
                try:
                    opened[chunk.file].read(chunk, made.memory(slot))
                except BaseException:
                    made.give(slot)
                    raise
                made.move(slot, chunk, places[chunk.file])

        else:
            made = None
            places = [
                _in_place(f, here, read_path, threads)
                for f, here in zip(files, opened, strict=True)
            ]
            mapped_bytes = sum(p.file.size_bytes for p in places if isinstance(p, Mapped))

            def work(chunk: Chunk) -> None:
                opened[chunk.file].read(chunk, places[chunk.file].memory(chunk))

        chunks = [
            c for c in plan_chunks(files, chunk_bytes) if not isinstance(places[c.file], Mapped)
        ]
        try:
            in_parallel(chunks, work, threads)
        finally:
            if made:
                made.drain()
                overlapped = made.overlapped
        for here in opened:
            here.check_unchanged()
        _hand_over(placer, files, places)
        return {
            "mode": "ring" if made else "in place",
            "mapped_bytes": mapped_bytes,
            "threads": threads,
            "chunks": len(chunks),
            "overlapped_copies": overlapped,
            **facts_of(opened),
        }
    finally:
        for here in opened:
            here.close()


class _Slotted:
    """A ring's slot as the target of one fetched part: taken when its first byte is about to
    arrive."""

    def __init__(self, ring: Any, part_start: int):
        self.ring, self.shift, self.fd, self.slot = ring, -part_start, -1, -1
        self._lock = threading.Lock()

    @property
    def view(self) -> memoryview:
        with self._lock:
            if self.slot < 0:
                self.slot = self.ring.take()
        return self.ring.memory(self.slot)


def _from_bucket(
    source: CheckpointSource,
    placer: Placer,
    device: str,
    ring: bool,
    chunk_bytes: int,
    connections: int,
    slots: int,
) -> dict[str, Any]:
    from labkit.net.client import Client
    from labkit.net.ranges import Into, RangeOptions, RangePart, fetch_parts
    from labkit.weights.streamer.buffers import Arena

    with Client(authorize=source.authorize) as client:
        files = open_files(source, client)
        chunks = plan_chunks(files, chunk_bytes, TAIL_BYTES)
        staging = ring or device != "cpu" or any(not p.is_meta for p in placer.slots.values())
        if staging:
            made, places = _staged(placer, files, device, slots, chunk_bytes)
            parts = [
                RangePart(
                    source.url(files[c.file].name), c.offset, c.length, c, _Slotted(made, c.offset)
                )
                for c in chunks
            ]
            try:
                progress = fetch_parts(
                    client,
                    parts,
                    options=RangeOptions(
                        connections=connections,
                        on_done=lambda p: made.move(p.into.slot, p.key, places[p.key.file]),
                    ),
                )
            finally:
                made.drain()
        else:
            places = [Arena(f) for f in files]
            parts = [
                RangePart(
                    source.url(files[c.file].name),
                    c.offset,
                    c.length,
                    c,
                    Into.buffer(places[c.file].whole),
                )
                for c in chunks
            ]
            progress = fetch_parts(client, parts, options=RangeOptions(connections=connections))
        _check_etags(client, source, files)
    _hand_over(placer, files, places)
    return {
        "mode": "ring" if staging else "in place",
        "connections": progress.connections,
        "parts": progress.parts,
        "retries": progress.retries,
        "hedges": progress.hedges,
        "fetched_bytes": progress.size_bytes,
    }


def _check_etags(client: Any, source: CheckpointSource, files: Sequence[File]) -> None:
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

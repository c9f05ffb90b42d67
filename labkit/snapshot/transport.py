"""A published snapshot on its way to a node: parallel ranges, as it is or in zstd frames that are
unpacked in parallel (`labkit.snapshot.packing`).

    Step("pull.begin", "labkit.snapshot.transport:start", {"url": "s3://lab/snapshots/x"})
    …                                                   # the container's OCI image comes beside it
    Step("pull", "labkit.snapshot.transport:wait")                           # and the model
        beside the restore

Limit: (compressed) bytes ÷ link rate, and ~1 GB/s a core for unpacking. A Python heap shrinks
3–4 ×; weights do by a third, byte plane by byte plane (labkit.weights.packed). Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from labkit.core import timeline
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.plan import StepContext
from labkit.net.parts import Into, RangePart, plan
from labkit.net.ranges import RangeOptions, fetch_parts, fetch_processed
from labkit.objects.client import Bucket, open_bucket
from labkit.snapshot import criu_images, store
from labkit.snapshot.explain import SnapshotRefused
from labkit.snapshot.packing import FRAME_BYTES, INDEX, parse_index, unframed
from labkit.weights import packed

#: Compressed frames in memory at once: at most 256 MB.
BATCH = 64


class SnapshotDownload:
    """A snapshot on its way to this node, in a thread. Each of the three raises what ended the
    fetch.

    manifest     after a round trip: what the process will touch of its OCI image can be asked for
    restorable   the CRIU images are here, the model's files have their size: a process can be
                 restored and held
    facts        all is here: it can be let run
    """

    def __init__(self, fetch: Callable[[SnapshotDownload], JsonObject]):
        self.manifest: Future[store.Manifest] = Future()
        self.restorable: Future[JsonObject] = Future()
        self.facts: Future[JsonObject] = Future()
        threading.Thread(target=self._run, args=(fetch,), name="snapshot", daemon=True).start()

    def _run(self, fetch: Callable[[SnapshotDownload], JsonObject]) -> None:
        try:
            self.facts.set_result(fetch(self))
        except BaseException as error:
            for waited_for in (self.manifest, self.restorable, self.facts):
                if not waited_for.done():
                    waited_for.set_exception(error)


def start(
    ctx: StepContext,
    url: str,
    model_url: str = "",
    packed_model: bool = False,
    connections: int = 8,
) -> JsonObject:
    """Start to bring snapshot and mapped model files to the node's disk; the steps up to the
    restore go on beside it."""
    ctx.state.hand_on(
        SnapshotDownload(
            lambda download: fetch(ctx, url, model_url, packed_model, connections, download)
        )
    )
    return {}


def know_libraries(ctx: StepContext, **_: Any) -> None:
    packed.know_libraries()


def wait(ctx: StepContext) -> JsonObject:
    """Wait until the process can be restored. The model's files may still be on their way:
    `wait_for_model`."""
    facts: JsonObject = ctx.state.handed(SnapshotDownload).restorable.result()
    return facts


def wait_for_model(ctx: StepContext) -> int:
    """Bytes of the model that crossed the link (0: nothing was on its way). Raises what ended the
    fetch."""
    download = ctx.state.withdraw(SnapshotDownload)
    return int(download.facts.result()["model_bytes_fetched"]) if download else 0


def fetch(
    ctx: StepContext,
    url: str,
    model_url: str,
    packed_model: bool,
    connections: int,
    download: SnapshotDownload,
) -> JsonObject:
    """Snapshot and mapped model files side by side, ranges in parallel. Leaves state `snapshot_dir`
    and `moved` (model files).

    Facts have names of their own: an OCI image may have been pulled in the same phase."""
    target, began, env = ctx.node / "snapshot", timeline.now_s(), {**os.environ, **ctx.server_env}
    model: list[_Model] = []

    def on_manifest(manifest: store.Manifest) -> None:
        if model_url:
            model.append(_Model(ctx, model_url, manifest.mapped, packed_model, connections, env))
        download.manifest.set_result(manifest)

    with open_bucket(url, env) as bucket:
        done = pull(bucket, target, connections, on_manifest)
    timeline.write(
        "pull.snapshot",
        began,
        timeline.now_s(),
        source="agent",
        path=str(ctx.timeline_path),
        bytes=done["bytes_fetched"],
    )
    facts = {
        "snapshot_bytes_fetched": done["bytes_fetched"],
        "compression": done["compression"],
        "connections": done["connections"],
    }
    ctx.state.snapshot_dir = str(target)
    if model:
        ctx.state.moved = {
            **ctx.state.moved,
            **model[0].paths_here(criu_images.file_modes(target / "images")),
        }
    download.restorable.set_result(facts)
    return {**facts, "model_bytes_fetched": model[0].whole.result() if model else 0}


class _Model:
    """The files that a snapshot maps, on their way beside it. `whole`: the bytes that crossed the
    link, when all are here."""

    def __init__(
        self,
        ctx: StepContext,
        url: str,
        mapped: Mapping[str, int],
        packed_model: bool,
        connections: int,
        env: Mapping[str, str],
    ):
        self.ctx, self.url, self.env = ctx, url, env
        self.mapped, self.packed, self.connections = dict(mapped), packed_model, connections
        self.folder = ctx.node / "model"
        self.folder.mkdir(exist_ok=True)
        self.whole: Future[int] = Future()
        self._opened = {
            path: os.open(self.folder / Path(path).name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
            for path in self.mapped
        }
        for path, size in self.mapped.items():
            if size:
                os.posix_fallocate(self._opened[path], 0, size)
        threading.Thread(target=self._run, name="model", daemon=True).start()

    def paths_here(self, modes: Mapping[str, int]) -> dict[str, str]:
        """Path at the dump -> path here. The files have their sizes, and now the permissions of the
        dump: CRIU maps none whose mode differs."""
        moved = {path: str(self.folder / Path(path).name) for path in self.mapped}
        for path, here in moved.items():
            os.chmod(here, modes.get(path, 0o644))
        return moved

    def _run(self) -> None:
        began = timeline.now_s()
        try:
            with open_bucket(self.url, self.env) as bucket:
                size = self._unpacked(bucket) if self.packed else self._as_it_is(bucket)
            timeline.write(
                "pull.model",
                began,
                timeline.now_s(),
                source="agent",
                path=str(self.ctx.timeline_path),
                bytes=size,
            )
            self.whole.set_result(size)
        except BaseException as error:
            self.whole.set_exception(error)
        finally:
            for fd in self._opened.values():
                os.close(fd)

    def _as_it_is(self, bucket: Bucket) -> int:
        parts: list[RangePart] = []
        for path, size in self.mapped.items():
            into = Into.file(self._opened[path])
            parts += plan(bucket.url(Path(path).name), size, FRAME_BYTES, into)
        return fetch_parts(
            bucket.client, parts, options=RangeOptions(connections=self.connections)
        ).size_bytes

    def _unpacked(self, bucket: Bucket) -> int:
        index, files = packed.parse_index(bucket.get(packed.INDEX).body), {}
        for path, size in self.mapped.items():
            about = index.get(Path(path).name)
            if about is None or about.size_bytes != size:
                raise SnapshotRefused(
                    f"the packed model has no {Path(path).name} of {size} bytes",
                    "another model, or a mixed-up upload",
                    "publish it again",
                )
            files[Path(path).name] = (about, self._opened[path])
        return packed.fetch(bucket.client, bucket.url, files, self.connections)


def pull(
    bucket: Bucket,
    target: Path,
    connections: int = 8,
    on_manifest: Callable[[store.Manifest], None] = lambda _: None,
) -> JsonObject:
    """One published snapshot into `target`; every byte is checked at the restore. Raises
    TransferError, SnapshotRefused."""
    store.refuse_stranger(target)
    (target / "images").mkdir(mode=0o700, parents=True, exist_ok=True)
    target.chmod(0o700)
    packed_index, manifest = bucket.get(INDEX).body, bucket.get("manifest.json").body
    index = parse_index(packed_index, manifest)
    files: JsonMapping = index["files"]
    on_manifest(store.parse_manifest(manifest, target))
    opened: dict[str, int] = {}
    parts: list[RangePart] = []
    frames: list[tuple[str, list[int]]] = []
    try:
        for name, about in files.items():
            fd = opened[name] = os.open(
                target / "images" / name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600
            )
            frames += [(name, row) for row in about["frames"]]
            if not about["frames"]:
                url, size = bucket.url(f"images/{name}"), about["stored_bytes"]
                parts += plan(url, size, FRAME_BYTES, Into.file(fd))
        fetch_parts(bucket.client, parts, options=RangeOptions(connections=connections))
        _fetch_frames(bucket, frames, opened, connections)
    finally:
        for fd in opened.values():
            os.close(fd)
    (target / "manifest.json").write_bytes(manifest)
    (target / "manifest.json").chmod(0o600)
    return {
        "bytes_fetched": sum(p.size_bytes for p in parts) + sum(row[1] for _, row in frames),
        "compression": index["compression"],
        "connections": connections,
    }


def _fetch_frames(
    bucket: Bucket,
    frames: Sequence[tuple[str, list[int]]],
    opened: Mapping[str, int],
    connections: int,
) -> None:
    """Frames are unpacked while others still come, a batch at a time: what is in memory stays below
    BATCH frames."""

    def part_of(name: str, row: list[int]) -> RangePart:
        buffer = bytearray(row[1])
        return RangePart(
            bucket.url(f"images/{name}"),
            row[0],
            row[1],
            key=(name, row, buffer),
            into=Into.buffer(buffer, -row[0]),
        )

    def unpack(part: RangePart) -> None:
        name, row, data = part.key
        os.pwrite(opened[name], unframed(name, row, data), row[2])

    parts = (part_of(*frame) for frame in frames)
    fetch_processed(bucket.client, parts, unpack, batch=BATCH, connections=connections)

"""A snapshot as it is published: CRIU image files as they are or in zstd frames, with an index of
the frames.

    pack(snapshot, Path("/srv/packed"), "zstd")              # beside the store, off the clock
    index = parse_index(raw_index, raw_manifest)

Frames hold 4 MB each, so any of them can be unpacked as soon as it is here. Limit: ~1 GB/s a core
for unpacking. A Python heap shrinks 3–4 ×. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit.core import timeline
from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.snapshot import store
from labkit.snapshot.explain import SnapshotRefused

COMPRESSIONS = ("none", "zstd")
FRAME_BYTES = 4 << 20
INDEX = "transport.json"


def pack(
    snapshot: store.Snapshot, into: Path, compression: str = "none", level: int = 3
) -> JsonObject:
    """A directory to publish: CRIU images (hard links or zstd frames), manifest, index. Returns
    sizes and the cost."""
    if compression not in COMPRESSIONS:
        raise BadInput(f"no compression {compression!r}", fix="one of: " + ", ".join(COMPRESSIONS))
    began = timeline.now_s()
    (into / "images").mkdir(mode=0o700, parents=True, exist_ok=True)
    into.chmod(0o700)
    index: JsonObject = {}
    for name, about in snapshot.manifest.files.items():
        source, target = snapshot.criu_images / name, into / "images" / name
        target.unlink(missing_ok=True)
        if compression == "none" or about["size_bytes"] < FRAME_BYTES:
            os.link(source, target)
            index[name] = {"stored_bytes": about["size_bytes"], "frames": []}
        else:
            index[name] = {"stored_bytes": 0, "frames": _frames(source, target, level)}
            index[name]["stored_bytes"] = target.stat().st_size
    (into / "manifest.json").write_bytes((snapshot.path / "manifest.json").read_bytes())
    (into / INDEX).write_text(json.dumps({"compression": compression, "files": index}))
    for name in ("manifest.json", INDEX):
        (into / name).chmod(0o600)
    return {
        "compression": compression,
        "stored_bytes": sum(f["stored_bytes"] for f in index.values()),
        "raw_bytes": snapshot.manifest.size_bytes,
        "pack_s": timeline.now_s() - began,
    }


def _frames(source: Path, target: Path, level: int) -> list[list[int]]:
    """[stored offset, stored size, raw offset, raw size] of each frame; compressed by two threads,
    written in order."""
    import zstandard

    rows: list[list[int]] = []
    at = 0
    with (
        open(source, "rb") as file,
        open(target, "wb", opener=lambda p, f: os.open(p, f, 0o600)) as out,
        ThreadPoolExecutor(os.cpu_count()) as pool,
    ):
        size = os.path.getsize(source)

        def one(offset: int) -> bytes:
            return zstandard.ZstdCompressor(level=level).compress(
                os.pread(file.fileno(), FRAME_BYTES, offset)
            )

        for offset, frame in zip(
            range(0, size, FRAME_BYTES), pool.map(one, range(0, size, FRAME_BYTES)), strict=True
        ):
            rows.append([at, len(frame), offset, min(FRAME_BYTES, size - offset)])
            out.write(frame)
            at += len(frame)
    return rows


def publish(
    snapshot: store.Snapshot, root: Path, key: str, *, compression: str = "none"
) -> JsonObject:
    """Into the embedded store's directory, as an upload that took no time. Returns what `pack` did:
    the store has hard links of it."""
    from labkit.objects.publish import publish_model

    root.mkdir(parents=True, exist_ok=True)
    with scratch(".packed-", root) as packed:
        facts = pack(snapshot, packed, compression)
        publish_model(root, packed, key)
    return facts


def parse_index(raw: bytes, manifest: bytes) -> JsonObject:
    """Raises SnapshotRefused unless the index is one, and of this manifest's files."""
    try:
        index: JsonObject = json.loads(raw)
        files = index["files"]
        if set(files) != set(json.loads(manifest)["files"]) or any(
            "/" in n or n.startswith(".") for n in files
        ):
            raise ValueError
        for about in files.values():
            if (
                not all(
                    len(row) == 4 and all(isinstance(n, int) and n >= 0 for n in row)
                    for row in about["frames"]
                )
                or about["stored_bytes"] < 0
            ):
                raise ValueError
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise SnapshotRefused(
            "the packed snapshot's index and manifest name different files",
            "a mixed-up or forged upload",
            "publish it again",
        ) from None
    return index


def unframed(name: str, row: Sequence[int], data: bytes | bytearray) -> bytes:
    """One frame's own bytes. Raises SnapshotRefused for a damaged one."""
    import zstandard

    try:
        raw: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=FRAME_BYTES)
    except zstandard.ZstdError as error:
        raise SnapshotRefused(
            f"a frame of {name} is damaged",
            str(error),
            "publish it again, or labkit snapshot dump makes a new one",
        ) from None
    if len(raw) != row[3]:
        raise SnapshotRefused(
            f"a frame of {name} is damaged",
            "it unpacks to another size",
            "publish it again, or labkit snapshot dump makes a new one",
        )
    return raw

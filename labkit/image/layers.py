"""Entries become an image layer's blob: sorted, times zeroed, owned by root, gzip on every core –
the same inputs give the same digest.

The gzip stream is one member made of blocks that were deflated side by side, each primed with the
32 KiB before it (as pigz does): stock clients cannot tell it from `gzip -6`. Limit: zlib-ng level 6
does 50–85 MB/s a core on machine code, where zlib does 23–35; its output is 2 % larger.

    entries = {
        "etc/hostname": LayerEntry(data=b"lab\\n"),
        "usr/bin/python": LayerEntry(source=Path("/usr/bin/python3.11"), mode=0o755),
    }
    layer = write_layer(layout, entries)        # WrittenLayer(descriptor, diff_id, plain_bytes)

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import os
import struct
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from zlib_ng import zlib_ng

from labkit.image import oci
from labkit.image.codecs import GZIP_HEADER, Hashed
from labkit.image.oci_layout import Layout
from labkit.image.platforms import architecture

BLOCK_BYTES = 1 << 20
STOCK_LEVEL = 6  # what `gzip`, `docker build` and containerd use by default


@dataclass(frozen=True)
class LayerEntry:
    """A file (`data`, `source`, or both: `data` in place of the source's first `skip` bytes), a
    directory (neither), a symlink or a hard link."""

    data: bytes | None = None
    source: Path | None = None
    skip: int = 0
    symlink: str = ""
    hardlink: str = ""
    mode: int = 0o644


@dataclass(frozen=True)
class WrittenLayer:
    descriptor: oci.Descriptor
    diff_id: str
    plain_bytes: int


def with_parents(entries: Mapping[str, LayerEntry]) -> dict[str, LayerEntry]:
    """The entries and a directory entry for each parent that has none, sorted so that parents come
    first."""
    whole = dict(entries)
    for name in entries:
        at = name.rfind("/")
        while at > 0:
            whole.setdefault(name[:at], LayerEntry(mode=0o755))
            at = name.rfind("/", 0, at)
    # a hard link comes after what it links to
    return dict(sorted(whole.items(), key=lambda item: (bool(item[1].hardlink), item[0])))


def tar_chunks(entries: Mapping[str, LayerEntry]) -> Iterator[bytes]:
    """The layer's plain tar. PAX, whose records carry nothing that varies: no access or change
    times."""
    for name, entry in with_parents(entries).items():
        head = tarfile.TarInfo(name)
        head.mode, head.mtime = entry.mode, 0
        size = 0
        if entry.symlink:
            head.type, head.linkname, head.mode = tarfile.SYMTYPE, entry.symlink, 0o777
        elif entry.hardlink:
            head.type, head.linkname = tarfile.LNKTYPE, entry.hardlink
        elif entry.data is not None or entry.source is not None:
            size = len(entry.data or b"") + (
                entry.source.stat().st_size - entry.skip if entry.source else 0
            )
        else:
            head.type = tarfile.DIRTYPE
        head.size = size
        yield head.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
        if entry.data is not None:
            yield entry.data
        if entry.source is not None:
            yield from _exactly(entry.source, entry.skip, size - len(entry.data or b""))
        if size % 512:
            yield bytes(-size % 512)
    yield bytes(1024)


def _exactly(path: Path, skip: int, size: int) -> Iterator[bytes]:
    left = size
    with path.open("rb", buffering=0) as file:
        file.seek(skip)
        while left:
            chunk = file.read(min(left, 1 << 20))
            if not chunk:
                raise OSError(f"{path} shrank while it was read")
            left -= len(chunk)
            yield chunk


def _blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """Regroup into blocks of exactly BLOCK_BYTES (the last may be shorter): block borders must not
    depend on reads."""
    held, size = [], 0
    for chunk in chunks:
        held.append(chunk)
        size += len(chunk)
        if size >= BLOCK_BYTES:
            joined = b"".join(held)
            whole = len(joined) // BLOCK_BYTES * BLOCK_BYTES
            for at in range(0, whole, BLOCK_BYTES):
                yield joined[at : at + BLOCK_BYTES]
            held, size = [joined[whole:]], len(joined) - whole
    if size:
        yield b"".join(held)


def _deflate(block: bytes, before: bytes, level: int) -> bytes:
    if before:
        engine = zlib_ng.compressobj(level, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, before)
    else:
        engine = zlib_ng.compressobj(level, zlib.DEFLATED, -15, 9)
    return engine.compress(block) + engine.flush(zlib.Z_SYNC_FLUSH)


def gzip_chunks(
    chunks: Iterable[bytes], level: int = STOCK_LEVEL, threads: int = 0
) -> Iterator[bytes]:
    """One gzip member, deflated on every core (zlib-ng frees the interpreter's lock). Memory: a few
    blocks a thread."""
    threads = threads or len(os.sched_getaffinity(0))
    crc = size = 0
    before = b""
    yield GZIP_HEADER
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[Future[bytes]] = []
        for block in _blocks(chunks):
            waiting.append(pool.submit(_deflate, block, before, level))
            crc, size, before = zlib.crc32(block, crc), size + len(block), block[-(1 << 15) :]
            if len(waiting) > 2 * threads:
                yield waiting.pop(0).result()
        for one in waiting:
            yield one.result()
    yield b"\x03\x00"  # an empty final block ends the deflate stream
    yield struct.pack("<II", crc, size & 0xFFFFFFFF)


def write_layer(
    layout: Layout,
    entries: Mapping[str, LayerEntry],
    *,
    level: int = STOCK_LEVEL,
    **annotations: str,
) -> WrittenLayer:
    """A gzip layer into the layout."""
    plain = Hashed(tar_chunks(entries))
    digest, size_bytes = layout.write_blob_from(gzip_chunks(plain, level))
    notes = {oci.UNPACKED_BYTES: str(plain.size_bytes)}
    notes |= {key.replace("__", "."): value for key, value in annotations.items()}
    return WrittenLayer(
        oci.Descriptor(oci.LAYER_GZIP, digest, size_bytes, notes), plain.digest, plain.size_bytes
    )


def write_image(
    layout: Layout, layers: list[tuple[str, WrittenLayer]], run: Mapping[str, object], name: str
) -> oci.Manifest:
    """Config and manifest over written layers (title, layer); listed in the layout's index as
    `name`. `run`: Env, Cmd …"""
    epoch = "1970-01-01T00:00:00Z"
    config = {
        "architecture": architecture(),
        "os": "linux",
        "created": epoch,
        "config": dict(run),
        "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for _, layer in layers]},
        "history": [
            {"created": epoch, "created_by": f"labkit image build ({title})"} for title, _ in layers
        ],
    }
    described = layout.write_blob(oci.canonical(config), oci.CONFIG)
    manifest = oci.Manifest(described, tuple(layer.descriptor for _, layer in layers))
    layout.add(manifest, name)
    return manifest


def add_file(entries: dict[str, LayerEntry], name: str, source: Path) -> None:
    """A host file at `name`: content followed through links, mode reduced to 0644/0755."""
    entries[name] = LayerEntry(source=source, mode=0o755 if os.access(source, os.X_OK) else 0o644)

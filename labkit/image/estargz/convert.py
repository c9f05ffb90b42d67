"""An OCI layout in, the same image as eStargz layers out; optimised by an access record where one
is given.

    record = access_record.read("start.jsonl")
    converted = convert(Layout(src), "lab/subject:latest", Layout.create(out), record=record)
    converted.layers[0].size_bytes, converted.convert_s

Config, manifest and order of layers stay; diff ids, digests, sizes and tables of contents are those
of the new blobs. A layer is converted when its digest and diff id were right. Touched
byte ranges of a record become a layer annotation, so that a mount of ours prefetches the touched
chunks of a library, not all of it. Layers that were converted before and still fit are linked
(`cached`). Limit: the codec, 100 MB/s a core. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.image import oci
from labkit.image.access_record import Access, merged, of_layer
from labkit.image.estargz import layer_cache, layout, reader, toc, writer
from labkit.image.estargz.source import spool
from labkit.image.oci_layout import Layout
from labkit.objects.hardlink import link_or_copy

GAP_BYTES = 256 << 10  # touched ranges nearer than this become one request


@dataclass(frozen=True)
class Converted:
    manifest: oci.Descriptor
    layers: tuple[writer.Written, ...]
    convert_s: float
    source_bytes: int
    options: layer_cache.Options
    orders: tuple[tuple[Access, ...], ...]  # for each layer, the accesses its files are ordered by
    facts: JsonObject = field(default_factory=dict)

    @property
    def size_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)


def convert(
    source: Layout,
    name: str,
    target: Layout,
    *,
    record: Sequence[Access] = (),
    target_name: str = "",
    options: layer_cache.Options = layer_cache.Options(),
    threads: int | None = None,
    cached: layer_cache.Search | None = None,
) -> Converted:
    """`cached`: finds layers that were converted before. Raises BadInput for a layout or layer that
    is not sound."""
    started = time.monotonic()
    manifest = source.manifest_with_layers(name)
    config = source.config(manifest)
    ids = config["rootfs"]["diff_ids"]
    written: list[writer.Written] = []
    descriptors: list[oci.Descriptor] = []
    orders: list[tuple[Access, ...]] = []
    linked = 0
    with target.adding() as part:
        for index, (layer, diff_id) in enumerate(zip(manifest.layers, ids, strict=True)):
            accesses = of_layer(record, index, manifest.digest)
            had = cached(layer.digest, options, accesses) if cached else None
            if had is not None and had.is_sound():
                link_or_copy(had.blob, part.blob_path(had.written.digest))
                one = replace(had.written, missing=had.missing(accesses))
                annotations = had.descriptor.annotations
                orders.append(had.order)
                linked += 1
            else:
                one, annotations = _layer(source, layer, diff_id, part, accesses, options, threads)
                orders.append(tuple(accesses))
            written.append(one)
            descriptors.append(
                layer.as_other_bytes(
                    one.digest,
                    one.size_bytes,
                    media_type=oci.layer_type("gzip", layer.media_type),
                    annotations=annotations,
                )
            )
        config["rootfs"]["diff_ids"] = [one.diff_id for one in written]
        new = part.write_blob(oci.canonical(config), oci.CONFIG)
    new_config = manifest.config.as_other_bytes(new.digest, new.size_bytes)
    entry = target.add(manifest.with_blobs(new_config, descriptors), target_name or name)
    files = {a.path for a in record}
    missing = files.intersection(*(set(w.missing) for w in written)) if written else set()
    return Converted(
        entry,
        tuple(written),
        time.monotonic() - started,
        manifest.layers_bytes,
        options,
        tuple(orders),
        {
            "files_recorded": len(files),
            "files_not_in_image": sorted(missing)[:20],
            "layers_kept": linked,
        },
    )


def _layer(
    source: Layout,
    layer: oci.Descriptor,
    diff_id: str,
    target: Layout,
    accesses: Sequence[Access],
    options: layer_cache.Options,
    threads: int | None,
) -> tuple[writer.Written, dict[str, str]]:
    """One image layer converted into a blob of `target`, and what its descriptor is to say."""
    blob = target.path / "converted"
    with ExitStack() as spools:
        with source.plain_layer(layer, diff_id) as plain:
            spooled = spools.enter_context(spool(plain, target.path))
        # the whole layer was read and is what the config says
        written = writer.write(
            spooled,
            blob,
            prioritised=[a.path for a in accesses],
            chunk_bytes=options.chunk_bytes,
            level=options.level,
            threads=threads,
        )
    annotations = {
        layout.TOC_DIGEST: written.toc_digest,
        layout.UNCOMPRESSED_SIZE: str(written.uncompressed_bytes),
    }
    if any(a.ranges for a in accesses):
        annotations[layout.TOUCHED_RANGES] = layout.format_ranges(
            touched_ranges(blob, written, accesses)
        )
    os.chmod(blob, 0o644)
    os.replace(blob, target.blob_path(written.digest))
    return written, annotations


def touched_ranges(
    blob: Path, written: writer.Written, accesses: Sequence[Access]
) -> list[tuple[int, int]]:
    """Ranges of the blob that hold the chunks a recorded start touched, merged over gaps below 256
    KiB."""
    entries = reader.read_toc_of_file(blob, written.toc_digest).entries
    files = {entry.name: entry for entry in entries}
    spans: list[tuple[int, int]] = []
    for access in accesses:
        entry: toc.TOCEntry | None = files.get(access.path)
        if entry is not None and entry.kind == "hardlink":
            entry = files.get(entry.link)
        for chunk in entry.chunks if entry is not None else ():
            end = chunk.file_offset + chunk.size
            if not access.ranges or any(
                a < end and b > chunk.file_offset for a, b in access.ranges
            ):
                spans.append((chunk.start, chunk.end))
    return merged(spans, GAP_BYTES)

"""An image in a bucket instead of a registry, and in another codec than it was built with.

A bucket needs no API of images: the manifest under its tag, every blob under its digest, and any
client that can read ranges can pull it. Layout below the prefix, the same for the embedded store
and a real bucket:

    NAME/manifests/TAG            the manifest itself: one round trip until the layers are known
    blobs/sha256/HEX              config and layers, once

    labkit image recompress LAYOUT --codec zstd --out OUT
    labkit image push OUT --to s3://lab/images          # AWS_ENDPOINT_URL decides which S3

Recompressing changes digests of layers, never their content: diff ids, and so the unpacked files,
stay. Limit: zstd -3 packs 300-500 MB/s a core, gzip -6 30-60. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image import oci
from labkit.image.codecs import Hashed, codec_of
from labkit.image.layers import STOCK_LEVEL, gzip_chunks
from labkit.image.oci_layout import Layout
from labkit.objects.access import BUCKET
from labkit.objects.client import Bucket
from labkit.objects.disk import Disk
from labkit.objects.hardlink import link_or_copy

CODECS = {"gzip": oci.LAYER_GZIP, "zstd": oci.LAYER_ZSTD, "none": oci.LAYER}
ZSTD_LEVEL = 3


def compress(chunks: Iterable[bytes], codec: str, level: int | None = None) -> Iterator[bytes]:
    """A layer's plain tar, packed. The same input gives the same bytes whatever the number of cores
    (gzip)."""
    if codec == "none":
        yield from chunks
    elif codec == "gzip":
        yield from gzip_chunks(chunks, STOCK_LEVEL if level is None else level)
    elif codec == "zstd":
        import zstandard

        engine = zstandard.ZstdCompressor(
            level=ZSTD_LEVEL if level is None else level, threads=-1
        ).compressobj()
        for chunk in chunks:
            if out := engine.compress(chunk):
                yield out
        yield engine.flush()
    else:
        raise BadInput(f"no codec called {codec!r}", fix="one of " + ", ".join(CODECS))


def recompress(
    source: Layout,
    name: str,
    target: Layout,
    codec: str,
    *,
    level: int | None = None,
) -> oci.Manifest:
    """The same image with its layers in another codec, listed in `target` under the same name.
    Layers in that codec are linked."""
    if codec not in CODECS:
        raise BadInput(f"no codec called {codec!r}", fix="one of " + ", ".join(CODECS))
    manifest = source.manifest_with_layers(name)
    ids = source.config(manifest)["rootfs"]["diff_ids"]
    layers = [
        _layer(source, target, layer, diff_id, codec, level)
        for layer, diff_id in zip(manifest.layers, ids, strict=True)
    ]
    config = target.write_blob(source.read_blob(manifest.config), manifest.config.media_type)
    recompressed = oci.Manifest(config, tuple(layers), manifest.annotations)
    target.add(recompressed, name)
    return recompressed


def _layer(
    source: Layout,
    target: Layout,
    layer: oci.Descriptor,
    diff_id: str,
    codec: str,
    level: int | None,
) -> oci.Descriptor:
    if codec_of(layer.media_type) == codec and level is None:
        link_or_copy(source.blob_path(layer.digest), target.blob_path(layer.digest))
        return replace(layer, media_type=CODECS[codec])
    plain = Hashed(source.plain_layer(layer))

    def packed() -> Iterator[bytes]:
        yield from compress(plain, codec, level)
        if plain.digest != diff_id:
            raise BadInput(
                f"layer {layer.digest} unpacks to {plain.digest}, the config says {diff_id}",
                why="the image is damaged",
                fix="build or fetch it again",
            )

    digest, size = target.write_blob_from(packed())
    # A table of contents (eStargz) describes the old bytes: its annotations do not survive.
    notes = {k: v for k, v in layer.annotations.items() if k == oci.UNPACKED_BYTES} | {
        oci.UNPACKED_BYTES: str(plain.size_bytes)
    }
    return oci.Descriptor(CODECS[codec], digest, size, notes)


def manifest_key(name: str, tag: str) -> str:
    return f"{name}/manifests/{tag}"


def blob_key(digest: str) -> str:
    return f"blobs/sha256/{oci.check_digest(digest)[7:]}"


def push(layout: Layout, name: str, bucket: Bucket) -> JsonObject:
    """Upload what the bucket lacks; the manifest last, so that a tag never names what is not there.
    Returns facts."""
    reference = oci.parse_reference(name)
    manifest = layout.manifest(name)
    facts: JsonObject = {
        "reference": str(reference),
        "digest": oci.digest_of(manifest.as_bytes()),
        "sent_blobs": 0,
        "sent_bytes": 0,
        "there": 0,
    }
    for blob in layout.blobs(manifest):
        there = bucket.head(blob_key(blob.digest))
        if there is not None and there.size_bytes == blob.size_bytes:
            facts["there"] += 1
            continue
        bucket.put_file(blob_key(blob.digest), layout.blob_path(blob.digest))
        facts["sent_blobs"] += 1
        facts["sent_bytes"] += blob.size_bytes
    bucket.put(
        manifest_key(reference.name, reference.target),
        layout.read_blob(layout.manifest_descriptor(name)),
        manifest.media_type,
    )
    return facts


def publish_objects(
    root: str | os.PathLike[str],
    layout: Layout,
    name: str,
    *,
    prefix: str = "images",
) -> JsonObject:
    """The same into the embedded store's folder, by hard link, without a server. Returns the URL of
    the prefix and counts."""
    reference, disk = oci.parse_reference(name), Disk(root)
    disk.make_bucket(BUCKET)
    manifest = layout.manifest(name)
    for blob in layout.blobs(manifest):
        link_or_copy(
            layout.blob_path(blob.digest), disk.path(BUCKET, f"{prefix}/{blob_key(blob.digest)}")
        )
    link_or_copy(
        layout.blob_path(layout.manifest_descriptor(name).digest),
        disk.path(BUCKET, f"{prefix}/{manifest_key(reference.name, reference.target)}"),
    )
    return {
        "url": f"s3://{BUCKET}/{prefix}",
        "reference": str(reference),
        "layers": len(manifest.layers),
        "size_bytes": manifest.layers_bytes,
    }

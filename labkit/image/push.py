"""An image in a bucket instead of a registry, and in another codec than it was built with.

A bucket needs no API of images: the manifest under its tag, every blob under its digest, and any
client that can read ranges can pull it. Layout below the prefix, the same for the embedded store
and a real bucket:

    NAME/manifests/TAG            the manifest itself: one round trip until the layers are known
    blobs/sha256/HEX              config, layers and manifest, once

    labkit image recompress LAYOUT --codec zstd --out OUT
    labkit image push OUT --to s3://lab/images          # AWS_ENDPOINT_URL decides which S3

Recompressing changes digests of layers, never their content: diff ids, and so the unpacked files,
stay, as does all that the documents say besides. No blob is read unchecked. Limit: zstd -3 packs
300-500 MB/s a core, gzip -6 30-60. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image import oci
from labkit.image.codecs import codec_of
from labkit.image.layers import STOCK_LEVEL, gzip_chunks
from labkit.image.oci_layout import Layout
from labkit.image.reference import parse_reference
from labkit.objects.access import BUCKET
from labkit.objects.client import Bucket
from labkit.objects.disk import Disk
from labkit.objects.hardlink import link_or_copy

CODECS = ("gzip", "zstd", "none")
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
    with target.adding() as part:
        layers = [
            _layer(source, part, layer, diff_id, codec, level)
            for layer, diff_id in zip(manifest.layers, ids, strict=True)
        ]
        part.write_blob(source.read_blob(manifest.config), manifest.config.media_type)
    recompressed = manifest.with_blobs(manifest.config, layers)
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
    media_type = oci.layer_type(codec, layer.media_type)
    if codec_of(layer.media_type) == codec and level is None:
        link_or_copy(source.check_blob(layer), target.blob_path(layer.digest))
        return replace(layer, media_type=media_type)
    with source.plain_layer(layer, diff_id) as plain:
        digest, size = target.write_blob_from(compress(plain, codec, level))
    return layer.as_other_bytes(
        digest,
        size,
        media_type=media_type,
        annotations={oci.UNPACKED_BYTES: str(plain.size_bytes)},
    )


def manifest_key(name: str, tag: str) -> str:
    return f"{name}/manifests/{tag}"


def blob_key(digest: str) -> str:
    return f"blobs/sha256/{oci.check_digest(digest)[7:]}"


def _image(layout: Layout, name: str) -> tuple[oci.Manifest, list[str]]:
    """The image of this name, and the keys that its manifest gets: its digest, and the tag where
    the name has one. Raises BadInput for a name that a bucket cannot list an image under."""
    if not name:
        raise BadInput(
            "the layout's image has no name",
            why="a bucket lists images by NAME:TAG",
            fix="skopeo copy oci:LAYOUT oci:OTHER:lab/subject:latest gives it one",
        )
    reference, manifest = parse_reference(name), layout.manifest(name)
    if reference.digest not in ("", manifest.digest):
        raise BadInput(
            f"{reference.digest} is an index, its image for this machine is {manifest.digest}",
            why="a bucket holds the images of one machine",
            fix="name it by its own digest, or by a tag",
        )
    keys = [blob_key(manifest.digest)]
    return manifest, keys + ([manifest_key(reference.name, reference.tag)] if reference.tag else [])


def push(layout: Layout, name: str, bucket: Bucket) -> JsonObject:
    """Upload what the bucket lacks, each blob checked before; the manifest last, so that a tag
    never names what is not there. Returns facts."""
    manifest, keys = _image(layout, name)
    facts: JsonObject = {
        "reference": str(parse_reference(name)),
        "digest": manifest.digest,
        "sent_blobs": 0,
        "sent_bytes": 0,
        "there": 0,
    }
    for blob in layout.blobs(manifest):
        there = bucket.head(blob_key(blob.digest))
        if there is not None and there.size_bytes == blob.size_bytes:
            facts["there"] += 1
            continue
        bucket.put_file(blob_key(blob.digest), layout.check_blob(blob))
        facts["sent_blobs"] += 1
        facts["sent_bytes"] += blob.size_bytes
    for key in keys:
        bucket.put(key, manifest.as_bytes(), manifest.media_type)
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
    (manifest, keys), disk = _image(layout, name), Disk(root)
    disk.make_bucket(BUCKET)
    for blob in layout.blobs(manifest):
        link_or_copy(
            layout.check_blob(blob), disk.path(BUCKET, f"{prefix}/{blob_key(blob.digest)}")
        )
    for key in keys:
        link_or_copy(layout.blob_path(manifest.digest), disk.path(BUCKET, f"{prefix}/{key}"))
    return {
        "url": f"s3://{BUCKET}/{prefix}",
        "reference": str(parse_reference(name)),
        "layers": len(manifest.layers),
        "size_bytes": manifest.layers_bytes,
    }

"""`full-pull`: the whole image over the wire, then unpacked – what a node does by default, and the
article's starting point.

Stock parts at their defaults, never slowed: three image layers at a time (Docker's and the CRI
plug-in's default), one stream each, digest-checked while it streams to disk; then, as `ctr images
pull` does, the layers are unpacked one after the other, each through one thread of zlib's gunzip,
and checked against its diff id. Limits: link ÷ bytes (one slow stream can hold a layer), then
gunzip at 200–350 MB/s, then the disk's writes.

    reference = "http://127.0.0.1:5000/lab/subject:latest"
    Step("pull", "labkit.image.pull:full_pull", {"reference": reference})
    Step("unpack", "labkit.image.pull:unpack")          # state: rootfs, image_config

Faults (429, 503 with Retry-After, resets, truncation) are retried with back-off and resumed by
range; a wrong digest never gets its name on disk. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from labkit.core.beside import one_at_a_time
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.errors import BadInput, TransferError
from labkit.image import oci
from labkit.image.distribution import RemoteImage
from labkit.image.oci_layout import Layout
from labkit.image.reference import parse_reference
from labkit.image.unpack import unpack_image
from labkit.net.client import Client
from labkit.net.fetch import fetch_file

STREAMS = 3


def pull_into(
    layout: Layout, reference: str, *, streams: int = STREAMS, client: Client | None = None
) -> tuple[oci.Manifest, JsonObject]:
    """Fetch an image into a layout (blobs that are there are not fetched again); returns its
    manifest and facts. Raises TransferError, BadInput."""
    where = parse_reference(reference)
    if not where.base:
        raise BadInput(
            f"{reference} names no registry", fix="http://HOST:PORT/NAME:TAG, or https://…"
        )
    target = Layout.create(layout.path)
    with client or Client() as fetching:
        image = RemoteImage(fetching, where)
        manifest = image.manifest()
        wanted = {d.digest: d for d in target.blobs(manifest)}  # an image layer is fetched once

        def fetch(blob: oci.Descriptor) -> int:
            path = target.blob_path(blob.digest)
            with contextlib.suppress(BadInput):  # what is missing or damaged is fetched
                target.check_blob(blob)
                return 0
            return _fetch(fetching, [image.blob_url(blob.digest), *blob.urls], blob, path)

        with ThreadPoolExecutor(max(1, streams), thread_name_prefix="layer") as pool:
            fetched = sum(pool.map(fetch, wanted.values()))
        if where.digest in ("", manifest.digest):
            target.add(manifest, where.local)
        else:
            # an index was named: its other machines' images stay where they are
            index = image.document(where.digest)
            target.write_blob(manifest.as_bytes(), manifest.media_type)
            kind = oci.parse_document(index, "index").get("mediaType") or oci.INDEX
            target.add_document(index, kind, where.local)
        return manifest, {
            "bytes_fetched": fetched,
            "layers": len(manifest.layers),
            "streams": streams,
            **fetching.facts(),
        }


def _fetch(client: Client, urls: list[str], blob: oci.Descriptor, path: Path) -> int:
    """From the first of these that has it: a layer that must not be distributed may be at its
    owner's only. Bytes fetched. Raises the registry's TransferError."""
    refused: TransferError | None = None
    for url in urls:
        try:
            got = fetch_file(client, url, path, size_bytes=blob.size_bytes, digest=blob.digest)
            return got.size_bytes
        except TransferError as error:
            refused = refused or error
    assert refused is not None
    raise refused


@dataclass(frozen=True)
class _Pulled:
    """What the step `pull` leaves for the step `unpack`."""

    layout: Layout
    manifest: oci.Manifest


def full_pull(ctx: StepContext, reference: str = "") -> JsonObject:
    """Step `pull`: manifest, config and layers into the node's content store. `reference` defaults
    to the plan's own."""
    layout = Layout(ctx.node / "content")
    manifest, facts = pull_into(
        layout, reference or f"{ctx.state.registry}/{ctx.state.image_reference}"
    )
    ctx.state.hand_on(_Pulled(layout, manifest))
    return facts


def unpack(ctx: StepContext) -> JsonObject:
    """Step `unpack`: the pulled layers as a root directory on the node."""
    pulled = ctx.state.handed(_Pulled)
    layout, manifest = pulled.layout, pulled.manifest
    rootfs = ctx.node / "rootfs"
    facts = unpack_image(layout, manifest, rootfs, fetched=True)
    ctx.state.rootfs, ctx.state.image_config = str(rootfs), layout.config(manifest)
    return facts


def ensure_rootfs(
    layout_path: str | os.PathLike[str], name: str, into: Path
) -> tuple[Path, JsonObject]:
    """The image of a local layout unpacked below `into`, once for each manifest digest. Returns
    (rootfs, image config)."""
    layout = Layout(layout_path)
    manifest = layout.manifest(name)
    into.mkdir(parents=True, exist_ok=True)
    rootfs = into / f"rootfs-{manifest.digest[7:19]}"
    with one_at_a_time(rootfs):
        if not rootfs.exists():
            unpack_image(layout, manifest, rootfs, fast=True)
    return rootfs, layout.config(manifest)

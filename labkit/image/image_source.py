"""Where an image is pulled from, a bucket or a registry: its manifest, and a URL for each blob.

    with source_of("s3://lab/images#lab/subject:latest", env) as source:
        source.client.ask("GET", source.url_of(source.manifest.config.digest))

Limit: one round trip until the layers are known. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from labkit.errors import BadInput
from labkit.image import oci
from labkit.image.distribution import RemoteImage
from labkit.image.push import blob_key, manifest_key
from labkit.net.client import Client
from labkit.objects.client import open_bucket


@dataclass(frozen=True)
class ImageSource:
    """Where an image comes from: its manifest, and a URL for each blob."""

    client: Client
    manifest: oci.Manifest
    url_of: Callable[[str], str]  # digest -> URL
    reference: str


@contextmanager
def source_of(reference: str, env: Mapping[str, str] | None = None) -> Iterator[ImageSource]:
    """`s3://BUCKET/PREFIX#NAME:TAG`, `gs://…#…`, or a registry's `http://HOST:PORT/NAME:TAG`.
    Raises TransferError, BadInput."""
    if not reference.startswith(("s3://", "gs://")):
        with Client() as client:
            image = RemoteImage(client, oci.parse_reference(reference))
            yield ImageSource(client, image.manifest(), image.blob_url, reference)
        return
    url, mark, name = reference.partition("#")
    if not mark:
        raise BadInput(
            f"{reference!r} names a bucket but no image",
            fix="s3://lab/images#lab/subject:latest",
        )
    wanted = oci.parse_reference(name)
    with open_bucket(url, env) as bucket:
        raw = bucket.get(manifest_key(wanted.name, wanted.target), oci.DOCUMENT_LIMIT_BYTES).body
        yield ImageSource(
            bucket.client,
            oci.parse_manifest(raw),
            lambda digest: bucket.url(blob_key(digest)),
            reference,
        )

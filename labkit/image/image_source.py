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
from labkit.image.distribution import RemoteImage, WrongDigest, fetch_config
from labkit.image.platforms import find_manifest
from labkit.image.push import blob_key, manifest_key
from labkit.image.reference import parse_reference
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
            image = RemoteImage(client, parse_reference(reference))
            yield ImageSource(client, image.manifest(), image.blob_url, reference)
        return
    url, mark, name = reference.partition("#")
    if not mark:
        raise BadInput(
            f"{reference!r} names a bucket but no image",
            fix="s3://lab/images#lab/subject:latest",
        )
    wanted = parse_reference(name)
    with open_bucket(url, env) as bucket:

        def read(target: str) -> bytes:
            by_digest = target.startswith("sha256:")
            key = blob_key(target) if by_digest else manifest_key(wanted.name, target)
            raw = bucket.get(key, oci.DOCUMENT_LIMIT_BYTES).body
            if by_digest and oci.digest_of(raw) != target:
                raise WrongDigest(
                    f"{reference}: the manifest has another digest, {oci.digest_of(raw)}",
                    why="corrupted in the bucket",
                    fix="labkit image push it again",
                )
            return raw

        def url_of(digest: str) -> str:
            return bucket.url(blob_key(digest))

        manifest = find_manifest(
            read,
            wanted.target,
            reference,
            lambda m: fetch_config(bucket.client, url_of(m.config.digest), m),
        )
        yield ImageSource(bucket.client, manifest, url_of, reference)

"""Manifest and config of an image, fetched and verified: the reading half of the OCI distribution
API, for everyone who pulls or mounts.

    image = RemoteImage(client, parse_reference("http://127.0.0.1:5000/lab/subject:latest"))
    manifest = image.manifest()                  # for this machine, through an index
    config = image.config(manifest)
    image.blob_url(manifest.layers[0].digest)

What is named by a digest is believed only when its bytes have that digest. Limit: a round trip a
document. Source: OCI distribution-spec 1.1. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput, TransferError
from labkit.image import oci
from labkit.image.platforms import find_manifest
from labkit.image.reference import Reference
from labkit.net.client import Client


class WrongDigest(TransferError):
    """Bytes that are not what their name says. Worth one more fetch."""


def fetch_config(client: Client, url: str, manifest: oci.Manifest) -> JsonObject:
    """The image's config from its blob's URL. Raises BadInput, TransferError."""
    raw = client.ask("GET", url, limit_bytes=oci.DOCUMENT_LIMIT_BYTES).body
    if oci.digest_of(raw) != manifest.config.digest:
        raise WrongDigest(
            f"{url}: the config is not the one that the manifest names",
            why="corrupted on the way",
            fix="pull again",
        )
    return oci.parse_config(raw, len(manifest.layers))


@dataclass(frozen=True)
class RemoteImage:
    """An image in a registry. Raises BadInput for a reference that names none."""

    client: Client
    reference: Reference

    def __post_init__(self) -> None:
        if not self.reference.base:
            raise BadInput(
                f"{self.reference} names no registry",
                fix="write it like http://127.0.0.1:5000/lab/subject:latest",
            )

    @property
    def url(self) -> str:
        return f"{self.reference.base}/v2/{self.reference.name}"

    def blob_url(self, digest: str) -> str:
        return f"{self.url}/blobs/{digest}"

    def manifest(self) -> oci.Manifest:
        return find_manifest(self.document, self.reference.target, str(self.reference), self.config)

    def document(self, target: str) -> bytes:
        """A manifest or index by its tag or digest. Raises TransferError."""
        raw = self.client.ask(
            "GET",
            f"{self.url}/manifests/{target}",
            {"Accept": oci.ACCEPT},
            limit_bytes=oci.DOCUMENT_LIMIT_BYTES,
        ).body
        if target.startswith("sha256:") and oci.digest_of(raw) != target:
            raise WrongDigest(
                f"{self.reference}: the manifest has the digest {oci.digest_of(raw)[:23]}…, not"
                f" {target[:23]}…",
                why="the registry sent something else than was requested",
                fix="pull again",
            )
        return raw

    def config(self, manifest: oci.Manifest) -> JsonObject:
        return fetch_config(self.client, self.blob_url(manifest.config.digest), manifest)

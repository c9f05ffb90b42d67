"""A registry's content on disk: readable by hand, shareable by hard link with any OCI image layout.

    blobs/sha256/HEX, blobs/sha512/HEX        every blob and manifest, once
    repositories/NAME/blobs/HEX               an empty file: NAME may serve this blob
    repositories/NAME/manifests/HEX           its media type
    repositories/NAME/tags/TAG                the digest it points to
    uploads/UUID                              what has arrived of an upload

    disk = RegistryDisk("/srv/registry")
    disk.note_manifest("lab/subject", hex_digest, media_type, tag="latest")

A file appears in one step: a reader sees the old bytes or the new ones. Limit: one directory entry
a blob. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from labkit.core.beside import replacing
from labkit.core.json_types import JsonObject


def digest_of_hex(hex_digest: str) -> str:
    """`sha256:…` or `sha512:…`: a file is called by the hex part alone."""
    return f"{'sha512' if len(hex_digest) == 128 else 'sha256'}:{hex_digest}"


class RegistryDisk:
    """The files below `root`. Names, tags and digests are the caller's to check: they are paths
    here."""

    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        for folder in ("blobs/sha256", "blobs/sha512", "repositories", "uploads"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)

    def blob(self, hex_digest: str) -> Path:
        return self.root / "blobs" / digest_of_hex(hex_digest)[:6] / hex_digest

    def repository(self, name: str) -> Path:
        return self.root / "repositories" / name

    def blob_mark(self, name: str, hex_digest: str) -> Path:
        """Exists where the repository may serve the blob."""
        return self.repository(name) / "blobs" / hex_digest

    def manifest_mark(self, name: str, hex_digest: str) -> Path:
        """Holds the media type of a manifest of the repository."""
        return self.repository(name) / "manifests" / hex_digest

    def tag(self, name: str, tag: str) -> Path:
        return self.repository(name) / "tags" / tag

    def upload(self, upload: str) -> Path:
        return self.root / "uploads" / upload

    def repositories(self) -> list[str]:
        top = self.root / "repositories"
        return sorted(str(p.parent.relative_to(top)) for p in top.rglob("manifests") if p.is_dir())

    def tags(self, name: str) -> list[str]:
        """Raises FileNotFoundError for a repository that is not there."""
        os.stat(self.repository(name) / "manifests")
        return _names(self.repository(name) / "tags")

    def referrers(self, name: str, subject: str) -> list[JsonObject]:
        """Descriptors of the repository's manifests whose subject has this digest."""
        found = []
        for hex_digest in _names(self.repository(name) / "manifests"):
            # the folder may come from anywhere: what is no manifest refers to nothing
            with contextlib.suppress(OSError, ValueError, AttributeError):
                raw = self.blob(hex_digest).read_bytes()
                doc = json.loads(raw)
                if (doc.get("subject") or {}).get("digest") == digest_of_hex(subject):
                    kind = self.manifest_mark(name, hex_digest).read_text()
                    found.append(_referrer(doc, kind, hex_digest, len(raw)))
        return found

    def note_blob(self, name: str, hex_digest: str) -> None:
        mark = self.blob_mark(name, hex_digest)
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    def note_manifest(
        self, name: str, hex_digest: str, media_type: str, tags: Iterable[str]
    ) -> None:
        _write(self.manifest_mark(name, hex_digest), media_type.encode())
        for tag in tags:
            _write(self.tag(name, tag), digest_of_hex(hex_digest).encode())

    def put_manifest(
        self, name: str, hex_digest: str, raw: bytes, media_type: str, tags: Iterable[str]
    ) -> None:
        _write(self.blob(hex_digest), raw)
        self.note_manifest(name, hex_digest, media_type, tags)

    def remove_manifest(self, name: str, hex_digest: str) -> None:
        """And every tag that points to it. Raises FileNotFoundError where it is not there."""
        self.manifest_mark(name, hex_digest).unlink()
        for tag in self.tags(name):
            if self.tag(name, tag).read_text() == digest_of_hex(hex_digest):
                self.tag(name, tag).unlink(missing_ok=True)


def _referrer(doc: JsonObject, kind: str, hex_digest: str, size_bytes: int) -> JsonObject:
    """A manifest as the list of referrers has it."""
    descriptor = {"mediaType": kind, "digest": digest_of_hex(hex_digest), "size": size_bytes}
    # an index has no config, and then no type that could be inferred
    if inferred := doc.get("artifactType") or (doc.get("config") or {}).get("mediaType"):
        descriptor["artifactType"] = inferred
    if doc.get("annotations"):
        descriptor["annotations"] = doc["annotations"]
    return descriptor


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def _write(path: Path, raw: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(raw)
        os.chmod(temporary, 0o644)

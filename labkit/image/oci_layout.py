"""OCI image layouts: images on this disk, as a directory of blobs and an index.

    layout = Layout(Path("~/images/subject"))
    manifest = layout.manifest("lab/subject:latest")
    layout.blob_path(manifest.layers[0].digest)

Blobs appear under their name complete, or not at all. Limit: the disk. Format:
opencontainers/image-spec v1, image-layout. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.core.beside import file_in, replacing
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.codecs import Hashed, codec_of, decompress, file_chunks
from labkit.image.oci import (
    DOCUMENT_LIMIT_BYTES,
    INDEX,
    INDEX_TYPES,
    REF_NAME,
    Descriptor,
    Manifest,
    architecture,
    canonical,
    check_digest,
    choose,
    digest_of,
    parse_config,
    parse_index,
    parse_manifest,
)


class Layout:
    """An OCI image layout on disk: oci-layout, index.json, blobs/sha256/."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Layout:
        layout = cls(path)
        top, mark = layout.path, layout.path / "oci-layout"
        if os.path.lexists(top) and not top.is_dir():
            raise BadInput(
                f"{top} is not a directory",
                why="an image layout is one",
                fix="give another path",
            )
        if top.is_dir() and not mark.exists() and not {p.name for p in top.iterdir()} <= {"blobs"}:
            raise BadInput(
                f"{top} holds something else",
                why="a layout's files would lie among others, and over an index.json",
                fix="give a new directory",
            )
        (top / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        mark.write_bytes(canonical({"imageLayoutVersion": "1.0.0"}))
        return layout

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / "sha256" / check_digest(digest)[7:]

    def read_blob(self, descriptor: Descriptor) -> bytes:
        """A small blob, verified."""
        if descriptor.size_bytes > DOCUMENT_LIMIT_BYTES:
            raise BadInput(
                f"blob {descriptor.digest} of {descriptor.size_bytes} bytes",
                why="too large for a document",
            )
        try:
            raw = self.blob_path(descriptor.digest).read_bytes()
        except OSError as error:
            raise BadInput(
                f"{self.path}: blob {descriptor.digest} is missing",
                why=str(error),
                fix="build or fetch the image again",
            ) from None
        if digest_of(raw) != descriptor.digest:
            raise BadInput(
                f"{self.path}: blob {descriptor.digest} is damaged",
                why="its bytes have another digest",
                fix="remove the layout and build or fetch the image again",
            )
        return raw

    def write_blob(self, data: bytes, media_type: str, **annotations: str) -> Descriptor:
        digest = digest_of(data)
        target = self.blob_path(digest)
        if not target.exists():
            with replacing(target) as part:
                part.write_bytes(data)
                os.chmod(part, 0o644)
        return Descriptor(media_type, digest, len(data), annotations)

    def write_blob_from(self, chunks: Iterable[bytes]) -> tuple[str, int]:
        """A large blob; its digest and size. Nothing of it stays when the chunks raise."""
        hashed = Hashed(chunks)
        with file_in(self.path / "blobs" / "sha256") as part:
            with open(part, "wb") as out:
                out.writelines(hashed)
            os.chmod(part, 0o644)
            os.replace(part, self.blob_path(hashed.digest))
        return hashed.digest, hashed.size_bytes

    def plain_layer(self, layer: Descriptor, *, fast: bool = True) -> Iterator[bytes]:
        """Chunks of a layer's uncompressed tar. Raises BadInput."""
        chunks = file_chunks(self.blob_path(layer.digest))
        return decompress(chunks, codec_of(layer.media_type), fast=fast)

    def index(self) -> tuple[Descriptor, ...]:
        try:
            raw = (self.path / "index.json").read_bytes()
        except OSError:
            raise BadInput(
                f"{self.path} is not an OCI image layout",
                why="it has no index.json",
                fix="labkit image build --out DIR",
            ) from None
        return parse_index(raw)

    def manifest_descriptor(self, name: str = "") -> Descriptor:
        chosen = choose(self.index(), name)
        for _ in range(3):
            if chosen.media_type not in INDEX_TYPES:
                return chosen
            chosen = choose(parse_index(self.read_blob(chosen)))
        raise BadInput(f"{self.path}: indexes nested too deep")

    def manifest(self, name: str = "") -> Manifest:
        return parse_manifest(self.read_blob(self.manifest_descriptor(name)))

    def manifest_with_layers(self, name: str = "") -> Manifest:
        """The same; raises BadInput for an image of no layer, where a conversion or a pull would do
        nothing and call it done."""
        manifest = self.manifest(name)
        if not manifest.layers:
            raise BadInput(
                f"{self.path}: {name or 'its image'} has no layer",
                why="there is nothing in it to convert, pull or measure",
                fix="labkit image inspect LAYOUT, then --name of another image",
            )
        return manifest

    def first_name(self) -> str:
        """Of the first image listed. Raises BadInput for a layout of none."""
        listed = self.index()
        if not listed:
            raise BadInput(
                f"{self.path} holds no image",
                why="there is nothing to take from it",
                fix=f"labkit image build --out {self.path}",
            )
        return listed[0].annotations.get(REF_NAME, "")

    def config(self, manifest: Manifest) -> JsonObject:
        return parse_config(self.read_blob(manifest.config), len(manifest.layers))

    def add(self, manifest: Manifest, name: str) -> Descriptor:
        """Write the manifest and list it in the index under `name` (replacing what had that
        name)."""
        written = self.write_blob(manifest.as_bytes(), manifest.media_type)
        entry = Descriptor(
            written.media_type,
            written.digest,
            written.size_bytes,
            {REF_NAME: name},
            {"architecture": architecture(), "os": "linux"},
        )
        old = (
            [d for d in self.index() if d.annotations.get(REF_NAME) != name]
            if (self.path / "index.json").exists()
            else []
        )
        doc = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [d.as_json() for d in [*old, entry]],
        }
        with replacing(self.path / "index.json") as part:
            part.write_bytes(canonical(doc))
        return entry

    def blobs(self, manifest: Manifest) -> Iterator[Descriptor]:
        yield manifest.config
        yield from manifest.layers

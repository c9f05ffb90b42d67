"""OCI image layouts: images on this disk, as a directory of blobs and an index.

    layout = Layout(Path("~/images/subject"))
    manifest = layout.manifest("lab/subject:latest")
    layout.blob_path(manifest.layers[0].digest)

Blobs appear under their name complete, or not at all, and are read only to be checked: a blob
against its digest, a layer that is unpacked against its diff id as well. Limit: the disk. Format:
opencontainers/image-spec v1, image-layout. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from labkit.core.beside import file_in, replacing, scratch
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image import platforms
from labkit.image.codecs import Hashed, codec_of, decompress, file_chunks, verified
from labkit.image.oci import (
    DOCUMENT_LIMIT_BYTES,
    INDEX,
    REF_NAME,
    Descriptor,
    Manifest,
    canonical,
    check_digest,
    digest_of,
    index_from,
    parse_config,
    parse_document,
)

#: Where containerd and BuildKit write an image's whole name; `REF_NAME` holds the tag alone then.
_CONTAINERD_NAME = "io.containerd.image.name"


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
        return b"".join(self.blob_chunks(descriptor))

    def blob_chunks(self, blob: Descriptor) -> Iterator[bytes]:
        """A blob of any size. Raises BadInput where it is missing, and after the last chunk where
        its bytes are not those that it is named by."""
        path = self.blob_path(blob.digest)
        try:
            size = path.stat().st_size
        except OSError as error:
            raise BadInput(
                f"{self.path}: blob {blob.digest} is missing",
                why=(
                    "a layer that must not be distributed: its owner serves it at "
                    + " ".join(blob.urls)[:300]
                    if blob.urls
                    else str(error)
                ),
                fix="build or fetch the image again",
            ) from None

        def damaged(actual: str) -> BadInput:
            return BadInput(
                f"{self.path}: blob {blob.digest} is damaged",
                why=f"its bytes have another digest, {actual}",
                fix="remove the layout and build or fetch the image again",
            )

        if size != blob.size_bytes:
            raise BadInput(
                f"{self.path}: blob {blob.digest} is damaged",
                why=f"it has {size} bytes, its descriptor says {blob.size_bytes}",
                fix="remove the layout and build or fetch the image again",
            )
        yield from verified(file_chunks(path), blob.digest, damaged)

    def check_blob(self, blob: Descriptor) -> Path:
        """Read it to its end; its path. Raises BadInput as `blob_chunks` does."""
        for _ in self.blob_chunks(blob):
            pass
        return self.blob_path(blob.digest)

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

    @contextlib.contextmanager
    def plain_layer(
        self, layer: Descriptor, diff_id: str, *, fast: bool = True, fetched: bool = False
    ) -> Iterator[Hashed]:
        """Chunks of a layer's uncompressed tar. What the block makes of them is sound when it ends:
        the rest of the layer is read, and BadInput raised unless its digest and diff id are right.
        `fetched`: its digest was checked as it arrived."""
        codec_of(layer.media_type)
        packed = file_chunks(self.blob_path(layer.digest)) if fetched else self.blob_chunks(layer)
        plain = Hashed(decompress(packed, fast=fast, name=f"layer {layer.digest}"))
        try:
            yield plain
            for _ in plain:  # what lies behind the end of the archive
                pass
        except Exception as error:
            self.check_blob(layer)  # damage shows in many ways, and has one name
            if isinstance(error, BadInput) and layer.digest not in error.what:
                error.what = f"layer {layer.digest}: {error.what}"
            raise
        if plain.digest != diff_id:
            self.check_blob(layer)
            raise BadInput(
                f"layer {layer.digest} unpacks to {plain.digest}, the config says {diff_id}",
                why="the image was put together wrongly, or forged; nothing of it was kept",
                fix="build it again, or fetch another one",
            )

    @contextlib.contextmanager
    def adding(self) -> Iterator[Layout]:
        """A layout to write blobs into. They are this one's when the block ends well; where it does
        not, nothing of them stays."""
        with scratch(".adding-", self.path) as folder:
            part = Layout.create(folder / "layout")
            yield part
            for blob in sorted((part.path / "blobs" / "sha256").iterdir()):
                os.replace(blob, self.blob_path(f"sha256:{blob.name}"))

    def _index(self) -> JsonObject:
        try:
            raw = (self.path / "index.json").read_bytes()
        except OSError:
            raise BadInput(
                f"{self.path} is not an OCI image layout",
                why="it has no index.json",
                fix="labkit image build --out DIR",
            ) from None
        return parse_document(raw, f"{self.path}/index.json")

    def index(self) -> tuple[Descriptor, ...]:
        return index_from(self._index())

    def named(self, name: str = "") -> list[Descriptor]:
        """What the index lists under this name, all where none is given or listed. Raises BadInput.

        skopeo lists an image by its tag, containerd by both, the lab by NAME:TAG; a digest names it
        whatever its name."""
        listed = list(self.index())
        _, at, digest = name.rpartition("@")
        if found := [d for d in listed if d.digest == digest]:
            return found[:1]
        if at:
            raise BadInput(
                f"{self.path} lists no image of the digest {digest}",
                fix="one of: " + ", ".join(d.digest for d in listed[:20]),
            )
        tag = name.rpartition(":")[2]
        for key, wanted in ((REF_NAME, name), (_CONTAINERD_NAME, name), (REF_NAME, tag)):
            if found := [d for d in listed if wanted and d.annotations.get(key) == wanted]:
                return found
        if name and any(REF_NAME in d.annotations for d in listed):
            raise BadInput(
                f"no image called {name!r} in the layout",
                why=f"looked for in {self.path}",
                fix="one of: "
                + ", ".join(d.annotations.get(REF_NAME, d.digest) for d in listed[:20]),
            )
        return listed

    def _read(self, digest: str) -> bytes:
        """A document that an index names, verified."""
        path = self.blob_path(digest)
        size = path.stat().st_size if path.is_file() else 0
        return self.read_blob(Descriptor("", digest, size))

    def manifest(self, name: str = "") -> Manifest:
        """For this machine; where the layout has one image of the name, that one."""
        listed, shown = self.named(name), f"{self.path}: {name or 'its image'}"
        if len(listed) == 1:
            return platforms.find_manifest(self._read, listed[0].digest, shown, self.config)
        return platforms.among(listed, self._read, shown, self.config)

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
        """Raises BadInput for what is no image."""
        return parse_config(self.read_blob(manifest.config), len(manifest.layers))

    def add(self, manifest: Manifest, name: str) -> Descriptor:
        """Write the manifest and list it in the index under `name` (replacing what had that
        name)."""
        platform: JsonObject = {}
        with contextlib.suppress(BadInput):  # an artifact: its config is none
            platform = platforms.of_config(
                parse_document(self.read_blob(manifest.config), "image config")
            )
        return self.add_document(manifest.as_bytes(), manifest.media_type, name, platform)

    def add_document(
        self, raw: bytes, media_type: str, name: str, platform: JsonObject | None = None
    ) -> Descriptor:
        """The same for a manifest or an index as its bytes."""
        written = self.write_blob(raw, media_type)
        notes = {REF_NAME: name} if name else {}
        entry = Descriptor(media_type, written.digest, written.size_bytes, notes, platform or {})
        doc: JsonObject = {"schemaVersion": 2, "mediaType": INDEX}
        if (self.path / "index.json").exists():
            doc |= self._index()
            old = index_from(doc)
        else:
            old = ()
        kept = [d.as_json() for d in old if d.annotations.get(REF_NAME, "") != name]
        with replacing(self.path / "index.json") as part:
            part.write_bytes(canonical({**doc, "manifests": [*kept, entry.as_json()]}))
        return entry

    def blobs(self, manifest: Manifest) -> Iterator[Descriptor]:
        yield manifest.config
        yield from manifest.layers

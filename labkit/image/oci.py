"""OCI image documents: references, descriptors, manifests, configs and layouts, read as hostile
input.

An image is a small Merkle tree: index → manifest → config + layers, each named by the sha256 of its
bytes. Nothing here trusts a length, a media type or a path before it was checked; documents over 4
MiB are refused unread.

    layout = Layout(Path("~/images/subject"))
    manifest = layout.manifest("lab/subject:latest")
    for layer in manifest.layers: print(layer.digest, layer.size_bytes,
        layout.blob_path(layer.digest))

Format: opencontainers/image-spec v1. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.core.beside import replacing
from labkit.errors import BadInput

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_LAYER_GZIP = "application/vnd.docker.image.rootfs.diff.tar.gzip"
MANIFEST_TYPES = (MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (INDEX, DOCKER_INDEX)
ACCEPT = ", ".join(MANIFEST_TYPES + INDEX_TYPES)

REF_NAME = "org.opencontainers.image.ref.name"
# layer annotation of the lab's own builder; a hint, never trusted
UNPACKED_BYTES = "org.coldstartlab.unpacked-bytes"

DOCUMENT_LIMIT_BYTES = 4 << 20  # what registries and containerd accept
LAYERS_LIMIT = 512
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(text: Any) -> str:
    """The digest itself, when it is one. It becomes a file name and a URL: nothing else may
    pass."""
    if not isinstance(text, str) or not _DIGEST.match(text):
        raise BadInput(
            f"not a sha256 digest: {str(text)[:90]!r}",
            why="content is addressed by sha256:<64 hex digits> only",
        )
    return text


@dataclass(frozen=True)
class Reference:
    """Where an image is: `base` (scheme://host:port of a registry or "" for a local name),
    repository name, tag or digest."""

    base: str
    name: str
    target: str  # tag or sha256:…

    def __str__(self) -> str:
        return (
            (self.base + "/" if self.base else "")
            + self.name
            + ("@" if self.target.startswith("sha256:") else ":")
            + self.target
        )

    @property
    def host(self) -> str:
        return self.base.partition("://")[2]


def parse_reference(text: str) -> Reference:
    """`http://127.0.0.1:5000/lab/subject:latest`, `lab/subject`, `lab/subject@sha256:…`. The tag
    defaults to `latest`."""
    base, rest = "", text
    if "://" in text:
        scheme, _, after = text.partition("://")
        host, slash, rest = after.partition("/")
        if scheme not in ("http", "https") or not host or not slash:
            raise BadInput(
                f"not an image reference: {text!r}",
                fix="write it like http://127.0.0.1:5000/lab/subject:latest",
            )
        base = f"{scheme}://{host}"
    name, at, digest = rest.partition("@")
    target = check_digest(digest) if at else "latest"
    if not at and ":" in name:
        name, _, target = name.rpartition(":")
    if not _NAME.match(name) or len(name) > 255 or not (at or _TAG.match(target)):
        raise BadInput(
            f"not an image reference: {text!r}",
            why="repository names are lower case, tags have no slash",
            fix="write it like http://127.0.0.1:5000/lab/subject:latest",
        )
    return Reference(base, name, target)


@dataclass(frozen=True)
class Descriptor:
    media_type: str
    digest: str
    size_bytes: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        doc: dict[str, Any] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
        }
        if self.platform:
            doc["platform"] = self.platform
        if self.annotations:
            doc["annotations"] = dict(sorted(self.annotations.items()))
        return doc


@dataclass(frozen=True)
class Manifest:
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)
    media_type: str = MANIFEST

    @property
    def layers_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)

    @property
    def unpacked_bytes(self) -> int:
        """What the builder says the layers hold; 0 when it did not say."""
        hints = [layer.annotations.get(UNPACKED_BYTES, "") for layer in self.layers]
        return sum(map(int, hints)) if all(h.isdigit() and len(h) < 16 for h in hints) else 0

    def as_bytes(self) -> bytes:
        doc: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.as_json(),
            "layers": [layer.as_json() for layer in self.layers],
        }
        if self.annotations:
            doc["annotations"] = dict(sorted(self.annotations.items()))
        return canonical(doc)


def canonical(doc: Any) -> bytes:
    """One spelling of a document, so that the same content has the same digest."""
    return json.dumps(doc, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def parse_document(raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object of at most 4 MiB. Raises BadInput."""
    if len(raw) > DOCUMENT_LIMIT_BYTES:
        raise BadInput(
            f"{what} of {len(raw)} bytes",
            why=f"no honest one exceeds {DOCUMENT_LIMIT_BYTES} bytes; it was not read",
        )
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{what} is not JSON: {error}", why="a truncated or forged document"
        ) from None
    if not isinstance(doc, dict):
        raise BadInput(f"{what} is a JSON {type(doc).__name__}, not an object")
    return doc


def _strings(doc: Any, what: str) -> dict[str, str]:
    if doc is None:
        return {}
    if not isinstance(doc, dict) or not all(isinstance(v, str) for v in doc.values()):
        raise BadInput(f"{what}: annotations must be strings")
    return dict(doc)


def parse_descriptor(doc: Any, what: str = "descriptor") -> Descriptor:
    if not isinstance(doc, dict):
        raise BadInput(f"{what} is not an object")
    size, kind = doc.get("size"), doc.get("mediaType")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 50:
        raise BadInput(
            f"{what}: size is {str(size)[:40]!r}",
            why="a length that cannot be believed; nothing was fetched",
        )
    if not isinstance(kind, str) or not kind or len(kind) > 255:
        raise BadInput(f"{what}: no media type")
    platform = doc.get("platform") or {}
    if not isinstance(platform, dict):
        raise BadInput(f"{what}: platform is not an object")
    return Descriptor(
        kind,
        check_digest(doc.get("digest")),
        size,
        _strings(doc.get("annotations"), what),
        platform,
    )


def parse_manifest(raw: bytes) -> Manifest:
    """Raises BadInput for anything that is not an image manifest of at most 512 layers."""
    return manifest_from(parse_document(raw, "manifest"))


def manifest_from(doc: dict[str, Any]) -> Manifest:
    if doc.get("schemaVersion") != 2:
        raise BadInput(
            f"manifest: schemaVersion {str(doc.get('schemaVersion'))[:20]!r}",
            why="only version 2 names its content by digest",
        )
    kind = doc.get("mediaType", MANIFEST)
    if kind not in MANIFEST_TYPES:
        raise BadInput(f"manifest: media type {str(kind)[:80]!r}", why="it is no image manifest")
    layers = doc.get("layers")
    if not isinstance(layers, list) or len(layers) > LAYERS_LIMIT:
        raise BadInput(
            (
                "manifest: layers are not a list"
                if not isinstance(layers, list)
                else f"manifest: {len(layers)} layers"
            ),
            why=f"an image has at most {LAYERS_LIMIT} layers",
        )
    return Manifest(
        parse_descriptor(doc.get("config"), "manifest's config"),
        tuple(parse_descriptor(layer, f"layer {i}") for i, layer in enumerate(layers)),
        _strings(doc.get("annotations"), "manifest"),
        kind,
    )


def parse_index(raw: bytes) -> tuple[Descriptor, ...]:
    return index_from(parse_document(raw, "index"))


def index_from(doc: dict[str, Any]) -> tuple[Descriptor, ...]:
    manifests = doc.get("manifests")
    if not isinstance(manifests, list) or len(manifests) > 4096:
        raise BadInput("index: no list of manifests")
    return tuple(parse_descriptor(m, f"manifest {i} of the index") for i, m in enumerate(manifests))


def parse_config(raw: bytes, layers: int | None = None) -> dict[str, Any]:
    """The image config, its used fields checked: rootfs.diff_ids (one a layer),
    config.{Env,Entrypoint,Cmd,WorkingDir}."""
    doc = parse_document(raw, "image config")
    rootfs = doc.get("rootfs")
    ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(ids, list):
        raise BadInput(
            "image config: no rootfs.diff_ids", why="unpacked layers could not be verified"
        )
    for one in ids:
        check_digest(one)
    if layers is not None and len(ids) != layers:
        raise BadInput(
            f"image config lists {len(ids)} layers, the manifest {layers}",
            why="one of the two is forged or stale",
        )
    run = doc.get("config") or {}
    if not isinstance(run, dict):
        raise BadInput("image config: config is not an object")
    for key in ("Env", "Entrypoint", "Cmd"):
        value = run.get(key)
        if value is not None and (
            not isinstance(value, list)
            or not all(isinstance(v, str) and "\0" not in v for v in value)
        ):
            raise BadInput(f"image config: {key} is not a list of strings")
    if not isinstance(run.get("WorkingDir") or "", str):
        raise BadInput("image config: WorkingDir is not a string")
    return doc


def environment(config: dict[str, Any]) -> dict[str, str]:
    """Env of an image config as a dict."""
    pairs = (e.partition("=") for e in (config.get("config") or {}).get("Env") or [])
    return {key: value for key, equals, value in pairs if equals and key}


def choose(manifests: Iterable[Descriptor], name: str = "") -> Descriptor:
    """The manifest of an index for this machine (and of this name, where entries carry names)."""
    import platform

    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    entries = list(manifests)
    named = [m for m in entries if m.annotations.get(REF_NAME) == name]
    if name and not named and any(REF_NAME in m.annotations for m in entries):
        raise BadInput(
            f"no image called {name!r} in the layout",
            fix="one of: " + ", ".join(m.annotations.get(REF_NAME, m.digest) for m in entries[:20]),
        )
    fits = [
        m
        for m in named or entries
        if m.platform.get("architecture", arch) == arch and m.platform.get("os", "linux") == "linux"
    ]
    if not fits:
        raise BadInput(
            f"the image is not for linux/{arch}", why="its index lists no manifest of this machine"
        )
    return fits[0]


class Layout:
    """An OCI image layout on disk: oci-layout, index.json, blobs/sha256/. Blobs appear under their
    name complete, or not at all."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> Layout:
        made = cls(path)
        if os.path.lexists(made.path) and not made.path.is_dir():
            raise BadInput(
                f"{made.path} is not a directory",
                why="an image layout is one",
                fix="give another path",
            )
        if (
            made.path.is_dir()
            and not (made.path / "oci-layout").exists()
            and not {p.name for p in made.path.iterdir()} <= {"blobs"}
        ):
            raise BadInput(
                f"{made.path} holds something else",
                why="a layout's files would lie among others, and over an index.json",
                fix="give a new directory",
            )
        (made.path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)
        (made.path / "oci-layout").write_bytes(canonical({"imageLayoutVersion": "1.0.0"}))
        return made

    def blob_path(self, digest: str) -> Path:
        return self.path / "blobs" / "sha256" / check_digest(digest)[7:]

    def read_blob(self, descriptor: Descriptor, limit_bytes: int = DOCUMENT_LIMIT_BYTES) -> bytes:
        """A small blob, verified."""
        if descriptor.size_bytes > limit_bytes:
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
        made = self.manifest(name)
        if not made.layers:
            raise BadInput(
                f"{self.path}: {name or 'its image'} has no layer",
                why="there is nothing in it to convert, pull or measure",
                fix="labkit image inspect LAYOUT, then --name of another image",
            )
        return made

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

    def config(self, manifest: Manifest) -> dict[str, Any]:
        return parse_config(self.read_blob(manifest.config), len(manifest.layers))

    def add(self, manifest: Manifest, name: str) -> Descriptor:
        """Write the manifest and list it in the index under `name` (replacing what had that
        name)."""
        import platform

        arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
        written = self.write_blob(manifest.as_bytes(), manifest.media_type)
        entry = Descriptor(
            written.media_type,
            written.digest,
            written.size_bytes,
            {REF_NAME: name},
            {"architecture": arch, "os": "linux"},
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

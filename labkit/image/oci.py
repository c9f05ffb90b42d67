"""OCI image documents: references, descriptors, manifests, indexes and configs, read as hostile
input.

An image is a small Merkle tree: index → manifest → config + layers, each named by the sha256 of its
bytes. Nothing here trusts a length, a media type or a path before it was checked; documents over 4
MiB are refused unread.

    manifest = parse_manifest(raw)
    for layer in manifest.layers: print(layer.digest, layer.size_bytes)

Format: opencontainers/image-spec v1. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (INDEX, DOCKER_INDEX)
ACCEPT = ", ".join(MANIFEST_TYPES + INDEX_TYPES)

REF_NAME = "org.opencontainers.image.ref.name"
# layer annotation of the lab's own builder; a hint, never trusted
UNPACKED_BYTES = "org.coldstartlab.unpacked-bytes"

DOCUMENT_LIMIT_BYTES = 4 << 20  # what registries and containerd accept
LAYERS_LIMIT = 512
#: Members of a layer that hide what is below: one name, or all of a directory.
WHITEOUT, OPAQUE = ".wh.", ".wh..wh..opq"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}\Z")
_NAME = re.compile(r"[a-z0-9]+(?:[._-]+[a-z0-9]+)*(?:/[a-z0-9]+(?:[._-]+[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def check_digest(text: object) -> str:
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
    platform: JsonObject = field(default_factory=dict)

    def as_json(self) -> JsonObject:
        doc: JsonObject = {
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
        doc: JsonObject = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.as_json(),
            "layers": [layer.as_json() for layer in self.layers],
        }
        if self.annotations:
            doc["annotations"] = dict(sorted(self.annotations.items()))
        return canonical(doc)


def canonical(doc: object) -> bytes:
    """One spelling of a document, so that the same content has the same digest."""
    return json.dumps(doc, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


def parse_document(raw: bytes, name: str) -> JsonObject:
    """A JSON object of at most 4 MiB. Raises BadInput."""
    if len(raw) > DOCUMENT_LIMIT_BYTES:
        raise BadInput(
            f"{name} of {len(raw)} bytes",
            why=f"no honest one exceeds {DOCUMENT_LIMIT_BYTES} bytes; it was not read",
        )
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"{name} is not JSON: {error}", why="a truncated or forged document"
        ) from None
    if not isinstance(doc, dict):
        raise BadInput(f"{name} is a JSON {type(doc).__name__}, not an object")
    return doc


def _strings(doc: object, name: str) -> dict[str, str]:
    if doc is None:
        return {}
    if not isinstance(doc, dict) or not all(isinstance(v, str) for v in doc.values()):
        raise BadInput(f"{name}: annotations must be strings")
    return dict(doc)


def parse_descriptor(doc: object, name: str = "descriptor") -> Descriptor:
    if not isinstance(doc, dict):
        raise BadInput(f"{name} is not an object")
    size, kind = doc.get("size"), doc.get("mediaType")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 50:
        raise BadInput(
            f"{name}: size is {str(size)[:40]!r}",
            why="a length that cannot be believed; nothing was fetched",
        )
    if not isinstance(kind, str) or not kind or len(kind) > 255:
        raise BadInput(f"{name}: no media type")
    platform = doc.get("platform") or {}
    if not isinstance(platform, dict):
        raise BadInput(f"{name}: platform is not an object")
    return Descriptor(
        kind,
        check_digest(doc.get("digest")),
        size,
        _strings(doc.get("annotations"), name),
        platform,
    )


def parse_manifest(raw: bytes) -> Manifest:
    """Raises BadInput for anything that is not an image manifest of at most 512 layers."""
    return manifest_from(parse_document(raw, "manifest"))


def manifest_from(doc: JsonObject) -> Manifest:
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


def index_from(doc: JsonObject) -> tuple[Descriptor, ...]:
    manifests = doc.get("manifests")
    if not isinstance(manifests, list) or len(manifests) > 4096:
        raise BadInput("index: no list of manifests")
    return tuple(parse_descriptor(m, f"manifest {i} of the index") for i, m in enumerate(manifests))


def parse_config(raw: bytes, layers: int | None = None) -> JsonObject:
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


def environment(config: JsonObject) -> dict[str, str]:
    """Env of an image config as a dict."""
    pairs = (e.partition("=") for e in (config.get("config") or {}).get("Env") or [])
    return {key: value for key, equals, value in pairs if equals and key}


def architecture() -> str:
    """This machine, in Go's words."""
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def choose(manifests: Iterable[Descriptor], name: str = "") -> Descriptor:
    """The manifest of an index for this machine (and of this name, where entries carry names)."""
    arch = architecture()
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

"""OCI image documents: descriptors, manifests, indexes and configs, read as hostile input.

An image is a small Merkle tree: index → manifest → config + layers, each named by the sha256 of its
bytes. Nothing here trusts a length, a media type or a path before it was checked; documents over 4
MiB are refused unread. Nothing that was read is lost, either: a document keeps its bytes, and the
fields that are not modelled come along when one is written again.

    manifest = parse_manifest(raw)
    for layer in manifest.layers: print(layer.digest, layer.size_bytes)

Format: opencontainers/image-spec v1. Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = LAYER + "+gzip"
LAYER_ZSTD = LAYER + "+zstd"
NONDISTRIBUTABLE = "application/vnd.oci.image.layer.nondistributable.v1.tar"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
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
#: Annotations that describe the bytes of a layer and not its content: tables of contents, the
#: digest and size of the tar that was compressed.
_OF_BYTES = (
    "containerd.io/snapshot/",
    "containerd.io/uncompressed",
    "io.containers.estargz.",
    "io.github.containers.zstd-chunked.",
    "org.coldstartlab.estargz.",
)


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
class Descriptor:
    """A blob's name, and what a document says of it. `other`: fields that are not modelled, kept
    for when the document is written again."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: dict[str, str] = field(default_factory=dict)
    platform: JsonObject = field(default_factory=dict)
    other: JsonObject = field(default_factory=dict)

    @property
    def urls(self) -> tuple[str, ...]:
        """Where else it may be: of a layer that must not be distributed."""
        urls = self.other.get("urls")
        if not isinstance(urls, list):
            return ()
        return tuple(
            u for u in urls if isinstance(u, str) and u.startswith(("http://", "https://"))
        )

    def as_json(self) -> JsonObject:
        doc: JsonObject = {
            **self.other,
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size_bytes,
        }
        if self.platform:
            doc["platform"] = self.platform
        if self.annotations:
            doc["annotations"] = dict(sorted(self.annotations.items()))
        return doc

    def as_other_bytes(
        self,
        digest: str,
        size_bytes: int,
        *,
        media_type: str = "",
        annotations: Mapping[str, str] = MappingProxyType({}),
    ) -> Descriptor:
        """The same thing in other bytes. What describes the old ones goes: tables of contents, the
        bytes themselves in the document, where else they are."""
        kept = {k: v for k, v in self.annotations.items() if not k.startswith(_OF_BYTES)}
        return Descriptor(
            media_type or self.media_type,
            digest,
            size_bytes,
            {**kept, **annotations},
            self.platform,
            {k: v for k, v in self.other.items() if k not in ("data", "urls")},
        )


def layer_type(codec: str, like: str = "") -> str:
    """OCI's media type of a layer in this codec. One that must not be distributed stays so."""
    bound = ".nondistributable." in like or ".foreign." in like
    suffix = "" if codec == "none" else f"+{codec}"
    return (NONDISTRIBUTABLE if bound else LAYER) + suffix


@dataclass(frozen=True)
class Manifest:
    """`document`, `raw`: as it was read, so that it keeps its digest, and the fields that are not
    modelled."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: dict[str, str] = field(default_factory=dict)
    media_type: str = MANIFEST
    document: JsonObject = field(default_factory=dict, compare=False, repr=False)
    raw: bytes = field(default=b"", compare=False, repr=False)

    @property
    def digest(self) -> str:
        return digest_of(self.as_bytes())

    @property
    def layers_bytes(self) -> int:
        return sum(layer.size_bytes for layer in self.layers)

    @property
    def unpacked_bytes(self) -> int:
        """What the builder says the layers hold; 0 when it did not say."""
        hints = [layer.annotations.get(UNPACKED_BYTES, "") for layer in self.layers]
        return sum(map(int, hints)) if all(h.isdigit() and len(h) < 16 for h in hints) else 0

    def with_blobs(self, config: Descriptor, layers: Iterable[Descriptor]) -> Manifest:
        """The same image of other blobs, in OCI's media types: those of one family stand together,
        and only it has all codecs. Every other field stays, and an unchanged manifest its bytes."""
        if config.media_type == DOCKER_CONFIG:
            config = replace(config, media_type=CONFIG)
        own = (config, tuple(layers), self.annotations, MANIFEST)
        if own == (self.config, self.layers, self.annotations, self.media_type):
            return self
        return Manifest(*own, document=self.document)

    def as_bytes(self) -> bytes:
        if self.raw:
            return self.raw
        doc: JsonObject = {
            **self.document,
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
    if not isinstance(doc, dict) or not all(isinstance(v, str | None) for v in doc.values()):
        raise BadInput(f"{name}: annotations must be strings")
    return {key: value or "" for key, value in doc.items()}  # null is Go's empty string


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
    modelled = ("mediaType", "digest", "size", "annotations", "platform")
    return Descriptor(
        kind,
        check_digest(doc.get("digest")),
        size,
        _strings(doc.get("annotations"), name),
        platform,
        {key: value for key, value in doc.items() if key not in modelled},
    )


def parse_manifest(raw: bytes) -> Manifest:
    """Raises BadInput for anything that is not an image manifest of at most 512 layers."""
    return manifest_from(parse_document(raw, "manifest"), raw)


def is_index(doc: JsonObject) -> bool:
    """Whether a document is an index. Raises BadInput for one that is both, which two readers take
    for two images."""
    kind = doc.get("mediaType")
    index = kind in INDEX_TYPES or (kind not in MANIFEST_TYPES and "manifests" in doc)
    if doc.get("config" if index else "manifests") or (index and doc.get("layers")):
        raise BadInput(
            "a manifest that is an index, too",
            why="what it names depends on who reads it",
            fix="build or push the image again",
        )
    return index


def manifest_from(doc: JsonObject, raw: bytes = b"") -> Manifest:
    if doc.get("schemaVersion") != 2:
        raise BadInput(
            f"manifest: schemaVersion {str(doc.get('schemaVersion'))[:20]!r}",
            why="only version 2 names its content by digest",
        )
    kind = doc.get("mediaType") or MANIFEST
    if kind not in MANIFEST_TYPES:
        raise BadInput(f"manifest: media type {str(kind)[:80]!r}", why="it is no image manifest")
    layers = doc["layers"] if doc.get("layers") is not None else []  # null is Go's empty list
    if "layers" not in doc or not isinstance(layers, list) or len(layers) > LAYERS_LIMIT:
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
        doc,
        raw,
    )


def parse_index(raw: bytes) -> tuple[Descriptor, ...]:
    return index_from(parse_document(raw, "index"))


def index_from(doc: JsonObject) -> tuple[Descriptor, ...]:
    manifests = doc["manifests"] if doc.get("manifests") is not None else []
    if "manifests" not in doc or not isinstance(manifests, list) or len(manifests) > 4096:
        raise BadInput("index: no list of manifests")
    return tuple(parse_descriptor(m, f"manifest {i} of the index") for i, m in enumerate(manifests))


def parse_config(raw: bytes, layers: int | None = None) -> JsonObject:
    """The image config, its used fields checked: rootfs.diff_ids (one a layer),
    config.{Env,Entrypoint,Cmd,WorkingDir}."""
    doc = parse_document(raw, "image config")
    rootfs = doc.get("rootfs")
    ids = rootfs.get("diff_ids", ()) if isinstance(rootfs, dict) else ()
    ids = [] if ids is None else ids
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

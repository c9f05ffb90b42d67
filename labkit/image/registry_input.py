"""What clients name in a registry's API, judged before any of it becomes a path or a header: names,
tags, digests, and what a pushed manifest is made of.

    hex_of("sha256:…") ; storable("lab/subject") ; tag_of("v1")
    manifest = PushedManifest.parse(raw, content_type)      # .blobs and .manifests must be here

Anything else is a RegistryError, which holds its answer. Limit: none. Source: OCI
distribution-spec 1.1. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from labkit.image.oci import INDEX, MANIFEST
from labkit.image.reference import NAME_LIMIT, TAG
from labkit.net.message import text

#: What a repository's folder holds beside the repositories below it.
RESERVED = frozenset(("blobs", "manifests", "tags", "uploads", "referrers"))
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})|sha512:([0-9a-f]{128})")
#: What a manifest may say it is: it becomes the Content-Type of every answer that holds it.
_MEDIA_TYPE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}"
)


class RegistryError(Exception):
    """An answer of the API's error kind."""

    def __init__(self, status: int, code: str, message: str, **headers: str):
        super().__init__(message)
        self.response = text(
            status,
            json.dumps({"errors": [{"code": code, "message": message}]}),
            "application/json",
            **headers,
        )


def hex_of(digest: object) -> str:
    """The hex part of a `sha256:…` or `sha512:…` digest; refuses anything else, so that no digest
    is ever a path of its own making."""
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not match:
        raise RegistryError(
            400, "DIGEST_INVALID", f"not a sha256 or sha512 digest: {str(digest)[:100]!r}"
        )
    return match[1] or match[2]


def storable(name: str) -> str:
    if len(name) > NAME_LIMIT or RESERVED & set(name.split("/")):
        raise RegistryError(
            400, "NAME_INVALID", f"no repository of this registry can be called {name[:100]!r}"
        )
    return name


def tag_of(name: str) -> str:
    if not TAG.fullmatch(name):
        raise RegistryError(400, "MANIFEST_INVALID", f"not a tag: {name[:100]!r}")
    return name


@dataclass(frozen=True)
class PushedManifest:
    """A manifest or index: its media type, and the hex of the digests that it names. `blobs` and
    `manifests` must have been pushed before; a layer that its owner serves (`urls`), and the
    subject, need not."""

    media_type: str
    blobs: tuple[str, ...]
    manifests: tuple[str, ...]
    subject: str = ""

    @classmethod
    def parse(cls, raw: bytes, content_type: str) -> PushedManifest:
        try:
            doc = json.loads(raw)
            own = doc.get("mediaType")
            usual = INDEX if "manifests" in doc else MANIFEST
            media_type = content_type.partition(";")[0].strip() or own or usual
            if not _MEDIA_TYPE.fullmatch(media_type) or (own is not None and own != media_type):
                raise ValueError
            blobs = [*(doc.get("layers") or []), *([doc["config"]] if doc.get("config") else [])]
            return cls(
                media_type,
                tuple(hex_of(one["digest"]) for one in blobs if not one.get("urls")),
                tuple(hex_of(one["digest"]) for one in doc.get("manifests") or []),
                hex_of(doc["subject"]["digest"]) if doc.get("subject") else "",
            )
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise RegistryError(
                400,
                "MANIFEST_INVALID",
                "not an image manifest or index, or not of its Content-Type",
            ) from None

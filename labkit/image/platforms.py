"""Which image of an index is for this machine.

One tag names an image for several machines, and beside them what is no image at all: attestations,
signatures, notes. The rule is containerd's (`platforms.Default`, `images.Manifest`): operating
system and architecture fit, variants in the order of how well they do, and what lists no platform
comes last, where its config says what it is for.

    manifest = find_manifest(read, "sha256:…", "lab/subject:latest", config_of)

Limit: one read a level of indexes. Source: opencontainers/image-spec, image-index. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.oci import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Manifest,
    index_from,
    is_index,
    manifest_from,
    parse_document,
)

_NESTED = 3
_ARCHITECTURES = {
    "x86_64": "amd64",
    "x86-64": "amd64",
    "aarch64": "arm64",
    "i386": "386",
    "armhf": "arm",
    "armel": "arm",
}
_VARIANTS = {"amd64": ("v1", "1"), "arm64": ("v8", "8", "v8.0"), "arm": ()}
#: Beside a machine's own images: what else it runs, the best first.
_ALSO_RUNS = {
    "amd64": (("386", ""),),
    "arm64": (("arm", "v8"), ("arm", "v7"), ("arm", "v6"), ("arm", "v5")),
}


def architecture() -> str:
    """This machine, in Go's words."""
    machine = os.uname().machine
    return _ARCHITECTURES.get(machine, machine)


def of_config(config: JsonObject) -> JsonObject:
    """The platform that an image's config names, as a descriptor has it; {} where it names none."""
    names = ("architecture", "os", "variant", "os.version")
    found = {key: config[key] for key in names if isinstance(config.get(key), str) and config[key]}
    return found if {"architecture", "os"} <= found.keys() else {}


def rank(platform: JsonObject) -> int | None:
    """How well it fits this machine: 0 is its own, None is not for it."""
    names = [str(platform.get(key) or "").lower() for key in ("os", "architecture", "variant")]
    system, machine = names[0] or "linux", _ARCHITECTURES.get(names[1], names[1])
    variant = "" if names[2] in _VARIANTS.get(machine, ()) else names[2]
    if machine == "arm":
        variant = {"armhf": "v7", "armel": "v6"}.get(names[1], variant or "v7")
        variant = variant if variant.startswith("v") else f"v{variant}"
    mine = architecture()
    runs = ((mine, ""), *_ALSO_RUNS.get(mine, ()))
    if system != "linux" or (machine, variant) not in runs:
        return None
    return runs.index((machine, variant))


def candidates(entries: Iterable[Descriptor]) -> list[Descriptor]:
    """What may be for this machine, the best first; last what does not say."""
    ranked: list[tuple[int, Descriptor]] = []
    for entry in entries:
        fit = rank(entry.platform) if entry.platform else 99
        if fit is not None and entry.media_type in MANIFEST_TYPES + INDEX_TYPES:
            ranked.append((fit, entry))
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def find_manifest(
    read: Callable[[str], bytes],
    target: str,
    name: str,
    config_of: Callable[[Manifest], JsonObject],
) -> Manifest:
    """The manifest for this machine, through indexes. `read`: a tag or digest to the document's
    bytes, checked; `config_of`: a manifest's config, read only where an index lists no platform.
    Raises BadInput and what these raise."""
    raw = read(target)
    doc = parse_document(raw, "manifest")
    if not is_index(doc):
        return manifest_from(doc, raw)
    return among(index_from(doc), read, name, config_of)


def among(
    entries: Iterable[Descriptor],
    read: Callable[[str], bytes],
    name: str,
    config_of: Callable[[Manifest], JsonObject],
) -> Manifest:
    """The same for an index that was read."""
    listed = list(entries)
    found = _search(listed, read, name, config_of, _NESTED)
    if found is None:
        shown = [
            "/".join(
                str(e.platform.get(k)) for k in ("os", "architecture", "variant") if k in e.platform
            )
            or e.media_type
            for e in listed[:12]
        ]
        raise BadInput(
            f"{name}: the image is not for linux/{architecture()}",
            why="its index lists " + (", ".join(shown) or "nothing"),
            fix="name another image, or the digest of the one that is meant",
        )
    return found


def _search(
    entries: list[Descriptor],
    read: Callable[[str], bytes],
    name: str,
    config_of: Callable[[Manifest], JsonObject],
    levels: int,
) -> Manifest | None:
    if not levels:
        raise BadInput(f"{name}: indexes nested too deep")
    for entry in candidates(entries):
        raw = read(entry.digest)
        doc = parse_document(raw, "manifest")
        if is_index(doc):
            found = _search(list(index_from(doc)), read, name, config_of, levels - 1)
            if found is not None:
                return found
            continue
        manifest = manifest_from(doc, raw)
        if entry.platform or rank(of_config(config_of(manifest))) is not None:
            return manifest
    return None

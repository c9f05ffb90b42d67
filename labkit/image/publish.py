"""An OCI image layout into a registry's root, by hard link where the file system can: no byte
passes a socket.

    publish_image("/srv/registry", "/tmp/image", "lab/subject:latest")    # also while it serves

Blobs first, the tag last, so that a client sees the old image or the whole new one. Limit: one
directory entry a blob. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.oci import MANIFEST, REF_NAME
from labkit.image.registry import NAME, TAG, hex_of
from labkit.image.registry_disk import RegistryDisk
from labkit.objects.hardlink import link_or_copy


def reachable(layout: Path, descriptor: JsonObject) -> Iterator[tuple[str, JsonObject]]:
    """Everything a descriptor of an OCI layout leads to, children first: ("blob"|"manifest",
    descriptor)."""
    doc = json.loads(
        (layout / "blobs" / "sha256" / descriptor["digest"].removeprefix("sha256:")).read_bytes()
    )
    for child in doc.get("manifests", []):
        yield from reachable(layout, child)
    for child in [*doc.get("layers", []), *([doc["config"]] if "config" in doc else [])]:
        yield "blob", child
    yield "manifest", descriptor


def pick(layout: Path, *names: str) -> JsonObject:
    """The descriptor in a layout's index that carries one of these names (or the only one). Raises
    BadInput.

    skopeo lists an image by its tag, the lab by its whole reference."""
    try:
        listed = json.loads((layout / "index.json").read_text())["manifests"]
    except (OSError, ValueError, KeyError):
        raise BadInput(
            f"{layout} is not an OCI image layout", fix="labkit image build makes one"
        ) from None
    named = {m.get("annotations", {}).get(REF_NAME): m for m in listed}
    for name in names:
        if name in named:
            return named[name]
    if len(listed) == 1:
        return listed[0]
    raise BadInput(
        f"{layout} holds {len(listed)} images, none called {names[0] if names else ''!r}",
        fix="one of " + ", ".join(map(str, named)),
    )


def publish_image(
    root: str | os.PathLike[str], layout: str | os.PathLike[str], reference: str
) -> JsonObject:
    """Put an OCI image layout into a registry's root as `name:tag`, by hard link where possible.
    Returns digest and counts.

    Works while the registry is serving: blobs first, the tag last."""
    layout, disk = Path(layout), RegistryDisk(root)
    name, _, tag = (
        reference.rpartition(":")
        if ":" in reference.rsplit("/", 1)[-1]
        else (reference, "", "latest")
    )
    if not NAME.fullmatch(name) or not TAG.fullmatch(tag):
        raise BadInput(
            f"not an image name: {reference!r}", fix="lower case, like lab/subject:latest"
        )
    descriptor = pick(layout, f"{name}:{tag}", tag)
    facts: JsonObject = {
        "digest": descriptor["digest"],
        "name": name,
        "tag": tag,
        "blobs": 0,
        "size_bytes": 0,
    }
    for kind, one in reachable(layout, descriptor):
        hex_digest = hex_of(one["digest"])
        source = layout / "blobs" / "sha256" / hex_digest
        target = disk.blob(hex_digest)
        how = "kept" if target.exists() else link_or_copy(source, target)
        facts[how] = facts.get(how, 0) + 1
        if kind == "blob":
            disk.note_blob(name, hex_digest)
            facts["blobs"] += 1
            facts["size_bytes"] += one["size"]
        else:
            disk.note_manifest(
                name,
                hex_digest,
                one.get("mediaType", MANIFEST),
                tag if one is descriptor else None,
            )
    return facts

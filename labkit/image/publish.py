"""An OCI image layout into a registry's root, by hard link where the file system can: no byte
passes a socket.

    publish_image("/srv/registry", "/tmp/image", "lab/subject:latest")    # also while it serves

Blobs first, the tag last, so that a client sees the old image or the whole new one. Limit: one
directory entry a blob. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os
from collections.abc import Iterator

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image import platforms
from labkit.image.oci import Descriptor, parse_descriptor, parse_document
from labkit.image.oci_layout import Layout
from labkit.image.reference import parse_reference
from labkit.image.registry_disk import RegistryDisk
from labkit.image.registry_input import hex_of
from labkit.objects.hardlink import link_or_copy

_NESTED = 8  # indexes in indexes


def reachable(
    layout: Layout, top: Descriptor, levels: int = _NESTED
) -> Iterator[tuple[str, Descriptor]]:
    """Everything that a descriptor of the layout leads to, children first: ("blob"|"manifest",
    descriptor). What an index names and the layout lacks is left out ("absent"), as skopeo and
    regclient write indexes of one machine's image; so is a layer that must not be distributed.
    Raises BadInput."""
    if not levels:
        raise BadInput(f"{layout.path}: indexes nested too deep")
    doc = parse_document(layout.read_blob(top), f"blob {top.digest}")
    for listed in _descriptors(doc, "manifests"):
        if layout.blob_path(listed.digest).exists():
            yield from reachable(layout, listed, levels - 1)
        else:
            yield "absent", listed
    for blob in _descriptors(doc, "layers", "config", "blobs"):
        missing = blob.urls and not layout.blob_path(blob.digest).exists()
        yield "absent" if missing else "blob", blob
    yield "manifest", top


def _descriptors(doc: JsonObject, *fields: str) -> Iterator[Descriptor]:
    for name in fields:
        value = doc.get(name) or []
        for at, one in enumerate(value if isinstance(value, list) else [value]):
            yield parse_descriptor(one, f"{name} {at}")


def pick(layout: Layout, name: str) -> Descriptor:
    """The descriptor in the layout's index that has this name or digest; the only one whatever its
    name. Raises BadInput."""
    listed = layout.index()
    if len(listed) != 1 or "@" in name:
        listed = tuple(layout.named(name))
    if not listed:
        raise BadInput(f"{layout.path} holds no image", fix="labkit image build makes one")
    return (platforms.candidates(listed) or listed)[0]


def publish_image(
    root: str | os.PathLike[str], layout: str | os.PathLike[str], reference: str
) -> JsonObject:
    """Put an OCI image layout into a registry's root as `name:tag` (or `name@digest`, without a
    tag), by hard link where possible.
    Returns digest and counts. Raises BadInput.

    Works while the registry is serving: blobs first, each checked, the tag last."""
    held, disk, wanted = Layout(layout), RegistryDisk(root), parse_reference(reference)
    if wanted.base:
        raise BadInput(
            f"not an image name: {reference!r}", fix="lower case, like lab/subject:latest"
        )
    top = pick(held, str(wanted))
    facts: JsonObject = {
        "digest": top.digest,
        "name": wanted.name,
        "tag": wanted.tag,
        "blobs": 0,
        "size_bytes": 0,
    }
    for kind, one in reachable(held, top):
        if kind == "absent":
            facts["absent"] = facts.get("absent", 0) + 1
            continue
        hex_digest = hex_of(one.digest)
        target = disk.blob(hex_digest)
        source = held.check_blob(one) if kind == "blob" else held.blob_path(one.digest)
        how = "kept" if target.exists() else link_or_copy(source, target)
        facts[how] = facts.get(how, 0) + 1
        if kind == "blob":
            disk.note_blob(wanted.name, hex_digest)
            facts["blobs"] += 1
            facts["size_bytes"] += one.size_bytes
        else:
            tags = [wanted.tag] if one is top and wanted.tag else []
            disk.note_manifest(wanted.name, hex_digest, one.media_type, tags)
    return facts

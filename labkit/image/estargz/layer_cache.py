"""Image layers that were converted before, found again by the digest of their source.

An edit of the app changes the image's last layer; the gigabyte below it would be converted again
only because the manifest's digest changed. A layout has a note of what each of its layers was
converted from and in which order, and the next conversion links those that still fit: same source,
same options, and a recorded start that touches what they were ordered for.

    cached = search(artifacts.glob("estargz-*"))
    converted = convert(source, name, target, record=record, cached=cached)
    note(target, source.manifest(name), converted)          # layers.json, for the next one

Limit: linking costs nothing, converting 100 MB/s a core. Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import BadInput, LabError
from labkit.image import oci
from labkit.image.access_record import Access
from labkit.image.estargz.codec import LEVEL
from labkit.image.estargz.layout import CHUNK_BYTES
from labkit.image.estargz.writer import Written
from labkit.image.oci_layout import Layout

if TYPE_CHECKING:
    from labkit.image.estargz.convert import Converted

NOTE = "layers.json"
# of the writer's output: raise it when the same input and options shall give another blob
FORMAT = 2
FITS = (
    0.98  # of the chunks a new record touches must be among those the cached layer was ordered for
)


@dataclass(frozen=True)
class Options:
    """What a layer's bytes depend on besides its source and its order."""

    chunk_bytes: int = CHUNK_BYTES
    level: int = LEVEL
    format: int = FORMAT


@dataclass(frozen=True)
class CachedLayer:
    """A converted layer on this disk. `order`: the accesses its files were ordered by."""

    layout: Layout
    descriptor: oci.Descriptor
    written: Written
    options: Options
    order: tuple[Access, ...]

    def fits(self, options: Options, accesses: Sequence[Access] | None) -> bool:
        """Whether it was converted with these options, and a start that touches `accesses` finds
        nearly all of it in front. None: in whatever order, at whatever level."""
        if accesses is None:
            return replace(self.options, level=options.level) == options
        now = touched_chunks(accesses, options.chunk_bytes)
        return self.options == options and len(
            now & touched_chunks(self.order, options.chunk_bytes)
        ) >= FITS * len(now)

    def is_sound(self) -> bool:
        """Whether its bytes are still those that it is named by."""
        with contextlib.suppress(BadInput):
            self.layout.check_blob(self.descriptor)
            return True
        return False

    @property
    def blob(self) -> Path:
        return self.layout.blob_path(self.descriptor.digest)

    def missing(self, accesses: Sequence[Access]) -> tuple[str, ...]:
        """Paths of `accesses` that the layer does not hold, as far as its order can tell."""
        held = {a.path for a in self.order} - set(self.written.missing)
        return tuple(a.path for a in accesses if a.path not in held)


#: (digest of a source layer, options, accesses) -> a layer on this disk that fits
Search = Callable[[str, Options, Sequence[Access]], CachedLayer | None]


def search(folders: Iterable[Path], *, any_order: bool = False) -> Search:
    """Look in the layouts that `note` was called for, the newest first. `any_order`: a layer serves
    in whatever order and at whatever level it is."""
    found: dict[str, list[CachedLayer]] = {}
    for folder in sorted(folders, key=_noted_s, reverse=True):
        for source, layer in _read(folder):
            found.setdefault(source, []).append(layer)

    def look(source: str, options: Options, accesses: Sequence[Access]) -> CachedLayer | None:
        wanted = None if any_order else accesses
        return next((c for c in found.get(source, ()) if c.fits(options, wanted)), None)

    return look


def touched_chunks(accesses: Iterable[Access], chunk_bytes: int) -> frozenset[tuple[str, int]]:
    """(path, index of the chunk in the file); index -1 stands for a whole file of unknown size."""
    touched: set[tuple[str, int]] = set()
    for access in accesses:
        if not access.ranges:
            touched.add((access.path, -1))
        for start, end in access.ranges:
            indexes = range(start // chunk_bytes, (end - 1) // chunk_bytes + 1)
            touched.update((access.path, index) for index in indexes)
    return frozenset(touched)


def note(target: Layout, source: oci.Manifest, converted: Converted) -> None:
    """Write down what each layer of a converted layout comes from, and how."""
    rows = [
        {"source": one.digest, "written": asdict(written), "order": [a.as_json() for a in order]}
        for one, written, order in zip(
            source.layers, converted.layers, converted.orders, strict=True
        )
    ]
    (target.path / NOTE).write_text(
        json.dumps({"options": asdict(converted.options), "layers": rows})
    )


def _noted_s(folder: Path) -> float:
    try:
        return os.stat(folder / NOTE).st_mtime
    except OSError:
        return 0.0


def _read(folder: Path) -> list[tuple[str, CachedLayer]]:
    """[] for a folder that keeps nothing usable: keeping is a saving, never a reason to fail."""
    try:
        doc = json.loads((folder / NOTE).read_text())
        options, layout, found = Options(**doc["options"]), Layout(folder), []
        for row, descriptor in zip(doc["layers"], layout.manifest().layers, strict=True):
            written = Written(**{**row["written"], "missing": tuple(row["written"]["missing"])})
            size_bytes = layout.blob_path(descriptor.digest).stat().st_size
            if written.digest == descriptor.digest and size_bytes == written.size_bytes:
                order = tuple(Access.from_json(a) for a in row["order"])
                layer = CachedLayer(layout, descriptor, written, options, order)
                found.append((row["source"], layer))
        return found
    except (OSError, ValueError, KeyError, TypeError, LabError):
        return []

"""Access records: which files a start touched, in the order in which it first touched them.

One JSON object a line, the format of `ctr-remote images optimize --record-out` ({"path",
"manifestDigest", "layerIndex"}), so that each tool reads the other's. Ours adds what a lazy mount
knows: `at_s` (seconds after the mount) and `ranges` (bytes of the file, [[start, end], …]).

    record = read("start.jsonl"); [a.path for a in record][:3]
    write("start.jsonl", [Access("usr/bin/python3.11", ranges=((0, 131072),))])

A record holds file names of the image, nothing else of the host. Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from labkit.core.beside import replacing
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.image.changeset import clean

LIMIT_BYTES = 256 << 20


@dataclass(frozen=True)
class Access:
    """`layer`: index of the image layer the file came from (None: the topmost that has it). No
    `ranges`: the whole file."""

    path: str
    layer: int | None = None
    manifest_digest: str = ""
    at_s: float | None = None
    ranges: tuple[tuple[int, int], ...] = ()

    def as_json(self) -> JsonObject:
        doc: JsonObject = {"path": self.path}
        if self.manifest_digest:
            doc["manifestDigest"] = self.manifest_digest
        if self.layer is not None:
            doc["layerIndex"] = self.layer
        if self.at_s is not None:
            doc["at_s"] = round(self.at_s, 4)
        if self.ranges:
            doc["ranges"] = [list(r) for r in self.ranges]
        return doc

    @staticmethod
    def from_json(doc: JsonObject) -> Access:
        """Raises BadInput, KeyError, TypeError, ValueError or AttributeError for what is none."""
        layer = doc.get("layerIndex")
        ranges = tuple((int(a), int(b)) for a, b in doc.get("ranges", ()))
        if (layer is not None and type(layer) is not int) or any(not 0 <= a < b for a, b in ranges):
            raise ValueError("layerIndex or ranges")
        manifest_digest = str(doc.get("manifestDigest", ""))
        return Access(clean(doc["path"]), layer, manifest_digest, doc.get("at_s"), ranges)


def read(path: str | os.PathLike[str]) -> list[Access]:
    """First touch of each file of each layer. Raises BadInput."""
    try:
        if os.stat(path).st_size > LIMIT_BYTES:
            raise BadInput(f"{path} is too large for an access record")
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise BadInput(
            f"no access record at {path}",
            why=str(error),
            fix="labkit image mount REF DIR --record FILE writes one",
        ) from None
    first: dict[tuple[str, int | None], Access] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            access = Access.from_json(json.loads(line))
        except (BadInput, ValueError, KeyError, TypeError, AttributeError, RecursionError) as bad:
            raise BadInput(
                f"{path}, line {number} is no access: {getattr(bad, 'what', bad)}",
                fix='a line is {"path": "usr/bin/python3", "layerIndex": 0}',
            ) from None
        first.setdefault((access.path, access.layer), access)
    return list(first.values())


def merged(ranges: Iterable[tuple[int, int]], gap_bytes: int = 0) -> list[tuple[int, int]]:
    """Sorted, and one where at most `gap_bytes` lie between two."""
    spans: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if spans and start - spans[-1][1] <= gap_bytes:
            spans[-1] = (spans[-1][0], max(spans[-1][1], end))
        else:
            spans.append((start, end))
    return spans


def refuse_stranger(path: str | os.PathLike[str]) -> None:
    """Raises BadInput where a record would take the place of what is none. Asked before the mount,
    as the record is written at its end."""
    from labkit.core import outputs

    outputs.refuse_stranger(
        path,
        lambda head: (
            not head.strip()
            or (head.lstrip().startswith(b"{") and b'"path"' in head.split(b"\n")[0])
        ),
        "an access record",
        "--record",
    )


def write(path: str | os.PathLike[str], accesses: Iterable[Access]) -> Path:
    """Replace the file in one step."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as part:
        part.write_text(
            "".join(
                json.dumps(access.as_json(), separators=(",", ":")) + "\n" for access in accesses
            )
        )
        os.chmod(part, 0o644)
    return target


def of_layer(record: Iterable[Access], layer: int, manifest_digest: str = "") -> list[Access]:
    """The accesses that concern one layer: those recorded in it, and those that name no layer.

    A record of several images (the reference tool writes the manifest's digest) counts only where
    the digest fits."""
    return [
        a
        for a in record
        if a.layer in (None, layer)
        and (not a.manifest_digest or not manifest_digest or a.manifest_digest == manifest_digest)
    ]

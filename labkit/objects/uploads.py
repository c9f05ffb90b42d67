"""Uploads in parts, on the store's disk: a folder each, a file for each part.

    upload = start(disk, "lab", "key", about)
    keep_part(disk, find(disk, "lab", "key", upload), 1, body, "md5 in hex", {"crc32c": "…"})

A part sent again replaces the one before; the last to arrive whole stays. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from dataclasses import dataclass
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.objects.disk import GONE, Disk, Missing


@dataclass(frozen=True)
class Upload:
    """One under way. `about`: what its start said of the object."""

    bucket: str
    key: str
    upload_id: str
    started_s: float
    about: JsonObject
    folder: Path


@dataclass(frozen=True)
class Part:
    number: int
    md5: str
    size_bytes: int
    modified_s: float
    checksums: dict[str, str]
    path: Path


def start(disk: Disk, bucket: str, key: str, about: JsonObject) -> str:
    disk.path(bucket, key)
    upload_id = uuid.uuid4().hex
    folder = disk.uploads / upload_id
    folder.mkdir()
    doc = {"bucket": bucket, "key": key, "about": about}
    (folder / "about.json").write_text(json.dumps(doc))
    return upload_id


def _read(folder: Path) -> Upload | None:
    with contextlib.suppress(*GONE, ValueError):  # completed or aborted meanwhile
        path = folder / "about.json"
        doc, started_s = json.loads(path.read_text()), path.stat().st_mtime
        return Upload(doc["bucket"], doc["key"], folder.name, started_s, doc["about"], folder)
    return None


def find(disk: Disk, bucket: str, key: str, upload_id: str) -> Upload:
    """Raises Missing."""
    disk.bucket(bucket)
    if re.fullmatch(r"[0-9a-f]{32}", upload_id):
        found = _read(disk.uploads / upload_id)
        if found and (found.bucket, found.key) == (bucket, key):
            return found
    raise Missing("NoSuchUpload", "no such upload; it may have been completed or aborted")


def of_bucket(disk: Disk, bucket: str) -> list[Upload]:
    """In the order of keys, then of ids."""
    found = (_read(about.parent) for about in disk.uploads.glob("*/about.json"))
    return sorted(
        (u for u in found if u and u.bucket == bucket),
        key=lambda u: (u.key.encode("utf-8", "surrogateescape"), u.upload_id),
    )


def keep_part(
    disk: Disk, upload: Upload, number: int, body: Path, md5: str, checksums: dict[str, str]
) -> None:
    note = upload.folder / f"note-{number:05d}-{md5}"
    with disk.naming:
        note.write_text(json.dumps(checksums))
        for old in upload.folder.glob(f"part-{number:05d}-*"):
            old.unlink(missing_ok=True)
        os.replace(body, upload.folder / f"part-{number:05d}-{md5}")


def parts(upload: Upload) -> list[Part]:
    """In the order of their numbers."""
    found = []
    for path in sorted(upload.folder.glob("part-*")):
        with contextlib.suppress(*GONE):  # replaced meanwhile
            status = path.stat()
            note = path.with_name(path.name.replace("part-", "note-", 1))
            found.append(
                Part(
                    int(path.name[5:10]),
                    path.name[11:],
                    status.st_size,
                    status.st_mtime,
                    json.loads(note.read_text()),
                    path,
                )
            )
    return found

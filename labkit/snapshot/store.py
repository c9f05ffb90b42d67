"""A snapshot on disk: CRIU image files, a manifest that says where it fits, and no half of either.

    SNAPSHOT/manifest.json      kernel, CPU, CRIU, every file with size, SHA-256 and CRC-32,
        secrets, mapped files
    SNAPSHOT/images/            CRIU's image files, 0600 (they hold the process's memory: keys,
        prompts, tokens)

It is written under a temporary name, its files are synced, and it is renamed when it is whole: what
a killed dump leaves is never restorable, because it is never there. Before a restore the manifest
is held against this host – the code in memory was chosen for one CPU, the vDSO for one kernel – and
every byte against its checksum. SHA-256 when a snapshot arrives or is listed; the CRC of the pages
is taken while they are read ahead, so that checking costs no second read.

    snapshot = open_snapshot(path); snapshot.refuse_if_foreign(); snapshot.verify()

Limit: bytes ÷ read rate. Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from labkit.core import secrets
from labkit.core.beside import becoming, scratch
from labkit.core.json_types import JsonObject
from labkit.core.proc import read_text
from labkit.snapshot.explain import SnapshotRefused

SCHEMA = 2  # 2: permissions
CHUNK_BYTES = 2 << 20


def secrets_in(environment: Mapping[str, str]) -> list[str]:
    """Names of variables that would be in the snapshot and look like secrets. Never their
    values."""
    return secrets.names_in(environment)


def scrubbed(environment: Mapping[str, str]) -> dict[str, str]:
    gone = set(secrets_in(environment))
    return {k: v for k, v in environment.items() if k not in gone}


def host_fingerprint() -> dict[str, str]:
    """What a snapshot is tied to on this host: kernel, CPU model and features."""
    model, flags = platform.processor() or platform.machine(), ""
    for line in read_text("/proc/cpuinfo").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "CPU part") and value.strip():
            model = value.strip()
        elif key.strip() in ("flags", "Features"):
            flags = " ".join(sorted(value.split()))
            break
    return {
        "kernel": platform.release(),
        "machine": platform.machine(),
        "cpu": model,
        "cpu_features": hashlib.sha256(flags.encode()).hexdigest()[:16],
    }


@dataclass(frozen=True)
class Manifest:
    technique: str
    place: dict[str, str]
    criu: str
    created: str
    # name in images/ -> size_bytes, sha256, crc32 (list, one a chunk, of pages-*)
    files: dict[str, JsonObject]
    port: int = 0
    pid: int = 0
    nonce: str = ""
    tokens: tuple[int, ...] = ()
    request: JsonObject = field(default_factory=dict)
    secrets: tuple[str, ...] = ()  # names of environment variables inside
    # path -> size: model files that stay outside of the CRIU image
    mapped: dict[str, int] = field(default_factory=dict)
    # path -> [offset, length]…: read before the first token
    working_set: dict[str, list[list[int]]] = field(default_factory=dict)
    # path -> [size, mtime in ns] of what else it maps, of the host's
    libraries: dict[str, list[int]] = field(default_factory=dict)
    container: JsonObject = field(default_factory=dict)
    # process id inside -> mask of CPU state it was granted (labkit.snapshot.xstate)
    permissions: dict[str, int] = field(default_factory=dict)
    facts: JsonObject = field(default_factory=dict)
    schema: int = SCHEMA

    @property
    def size_bytes(self) -> int:
        return sum(f["size_bytes"] for f in self.files.values())


@dataclass(frozen=True)
class Snapshot:
    path: Path
    manifest: Manifest

    @property
    def criu_images(self) -> Path:
        return self.path / "images"

    def refuse_if_foreign(self, here: Mapping[str, str] | None = None, criu: str = "") -> None:
        """Raise SnapshotRefused, naming every difference, unless this host is the kind it was
        dumped on."""
        now = dict(here or host_fingerprint())
        names = {
            "kernel": "kernel",
            "machine": "architecture",
            "cpu": "CPU",
            "cpu_features": "CPU features",
        }
        different = [
            f"{title} {self.manifest.place.get(key)} there, {now.get(key)} here"
            for key, title in names.items()
            if self.manifest.place.get(key) != now.get(key)
        ]
        if criu and criu.split(".")[0] != self.manifest.criu.split(".")[0]:
            different.append(f"CRIU {self.manifest.criu} there, {criu} here")
        if different:
            raise SnapshotRefused(
                f"the snapshot {self.path.name} belongs to another host: " + "; ".join(different),
                "the code in its memory was chosen for that CPU, and its vDSO belongs to that"
                " kernel",
                "labkit snapshot dump makes one here",
            )

    def missing_files(self) -> list[str]:
        """Files that are absent or of another size. Cheap: no byte is read."""
        wrong = [
            n
            for n, f in self.manifest.files.items()
            if _size(self.criu_images / n) != f["size_bytes"]
        ]
        return wrong + [
            p
            for p, size in self.manifest.mapped.items()
            if not self.manifest.container and _size(Path(p)) != size
        ]

    def verify(self, *, pages: bool = True) -> None:
        """Every CRIU image file against its SHA-256 (without `pages`: all but the pages, a few
        hundred kB). Raises SnapshotRefused."""
        missing = [
            n
            for n, f in self.manifest.files.items()
            if _size(self.criu_images / n) != f["size_bytes"]
        ]
        damaged = missing or [
            n
            for n, f in self.manifest.files.items()
            if (pages or not is_pages(n)) and sha256(self.criu_images / n) != f["sha256"]
        ]
        if damaged:
            raise SnapshotRefused(
                f"the snapshot {self.path.name} is damaged: {', '.join(sorted(damaged)[:4])}",
                "missing, cut short or changed since the dump; nothing was started",
                "labkit snapshot dump makes a new one",
            )


def is_pages(name: str) -> bool:
    return name.startswith("pages-")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def sha256(path: Path) -> str:
    """Hexadecimal, of a file. Raises OSError."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def crc32() -> Callable[[bytes | memoryview], int]:
    """The fastest CRC-32 here: isal's (carry-less multiplication, ~10 GB/s) or zlib's (~1–3 GB/s).
    Same numbers."""
    try:
        from isal.isal_zlib import crc32
    except ImportError:
        return zlib.crc32
    return crc32


def crcs(path: Path) -> list[int]:
    """Of each CHUNK_BYTES of a file, in order."""
    function = crc32()
    with open(path, "rb", buffering=0) as file:
        return [function(block) for block in iter(lambda: file.read(CHUNK_BYTES), b"")]


def describe(criu_images: Path) -> dict[str, JsonObject]:
    """`files` of the manifest. Logs are not part of a snapshot."""
    found = {}
    for path in sorted(criu_images.iterdir()):
        if path.suffix == ".img" or path.name in ("descriptors.json",):
            found[path.name] = {"size_bytes": path.stat().st_size, "sha256": sha256(path)}
            if is_pages(path.name):
                found[path.name]["crc32"] = crcs(path)
    return found


def refuse_stranger(target: Path) -> None:
    """Raises SnapshotRefused where a snapshot would take the place of anything but a snapshot: that
    would be removed."""
    if os.path.lexists(target):
        names = (
            {p.name for p in target.iterdir()}
            if target.is_dir() and not target.is_symlink()
            else {""}
        )
        if not ({"manifest.json", "images"} <= names or names <= {"images"}):
            raise SnapshotRefused(
                f"{target} exists, and it is not a snapshot",
                "it would be lost",
                "give another name, or move it away",
            )


@contextmanager
def writing(target: Path) -> Iterator[Path]:
    """A directory beside `target` (0700) that takes its name when the block ends well, and is
    removed when it does not.

    `seal` writes the manifest into it; without one it is not renamed."""
    refuse_stranger(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    with scratch(".before-", target.parent) as old, becoming(target, mode=0o700) as part:
        (part / "images").mkdir(mode=0o700)
        yield part
        if not (part / "manifest.json").exists():
            raise SnapshotRefused(
                f"{target.name} was not sealed", "a snapshot without a manifest is not one"
            )
        if target.exists():
            os.rename(target, old / "snapshot")


def seal(part: Path, manifest: Manifest) -> None:
    """Files 0600 and synced, then the manifest, synced as well."""
    for path in (part / "images").iterdir():
        path.chmod(0o600)
    sync_images(part)
    temporary = part / ".manifest.json"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as out:
        json.dump(asdict(manifest), out)
        out.flush()
        os.fsync(out.fileno())
    os.replace(temporary, part / "manifest.json")


def sync_images(part: Path) -> None:
    """The CRIU images of a snapshot that is being made are on the disk: only then can they be
    evicted from memory."""
    for path in (part / "images").iterdir():
        with open(path, "rb") as file:
            os.fsync(file.fileno())


def open_snapshot(path: str | os.PathLike[str]) -> Snapshot:
    """Raises SnapshotRefused for anything that is not a whole snapshot of a schema this lab
    reads."""
    where = Path(path)
    if where.name.endswith(".part"):
        raise SnapshotRefused(
            f"{where} is half a snapshot", "its dump did not end", "labkit snapshot dump"
        )
    return Snapshot(where, open_manifest(where))


def open_manifest(where: Path) -> Manifest:
    try:
        return parse_manifest((where / "manifest.json").read_bytes(), where)
    except FileNotFoundError:
        raise SnapshotRefused(
            f"no snapshot at {where}", "a dump that did not end leaves none", "labkit snapshot list"
        ) from None


def parse_manifest(raw: bytes, where: Path) -> Manifest:
    """`where`: what an error calls it."""
    try:
        doc = json.loads(raw)
        known = {k: v for k, v in doc.items() if k in Manifest.__dataclass_fields__}
        for key in ("tokens", "secrets"):
            known[key] = tuple(known.get(key, ()))
        manifest = Manifest(**known)
        if manifest.schema > SCHEMA:
            raise SnapshotRefused(
                f"{where.name} has schema {manifest.schema}, this labkit reads up to {SCHEMA}",
                fix="upgrade labkit",
            )
        if any("/" in n or n.startswith(".") for n in manifest.files):
            raise SnapshotRefused(
                f"{where.name}: its manifest names files outside of it",
                "a forged manifest",
                "dump again",
            )
    except (ValueError, TypeError, AttributeError, KeyError) as error:
        raise SnapshotRefused(
            f"{where}: its manifest is damaged ({error})", fix="labkit snapshot dump"
        ) from None
    return manifest

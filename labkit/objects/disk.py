"""Buckets and objects as plain files: `root/BUCKET/KEY`, so that a model directory becomes a prefix
by hard link.

Beside them, under `root/.labkit/`: what a file cannot say of itself (content type, MD5, the
client's own metadata; apart from it, since no read needs it, of which parts it was joined) and the
parts of uploads under way (`labkit.objects.uploads`). An object without such a note (put there
by hand or by hard link) gets an ETag made of its size, time and inode, in the form of a multipart
ETag, which no client takes for an MD5.

Limits, stated: a key cannot be both an object and the folder of another (as in MinIO), and its
parts between slashes are at most 255 bytes. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.core.beside import replacing
from labkit.core.json_types import JsonObject
from labkit.core.ledger import current

_LABEL = "[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
BUCKET = re.compile(rf"(?=.{{3,63}}$)(?![0-9]+\.[0-9]+\.[0-9]+\.[0-9]+$){_LABEL}(?:\.{_LABEL})*")
RESERVED = ("storage", "download", "upload", "resumable", "_labkit")
KEY_MAX = 1024
#: Errors that say "not there". Any other (no descriptors left, above all) must not be read as that.
GONE = (FileNotFoundError, NotADirectoryError)


class Missing(Exception):
    """No such bucket, key or upload. `code`: S3's."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


class Unstorable(Exception):
    """A name this store cannot hold. `code`: S3's."""

    def __init__(self, message: str, code: str = "InvalidArgument"):
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Object:
    bucket: str
    key: str
    size_bytes: int
    modified_s: float
    etag: str
    content_type: str = "application/octet-stream"
    metadata: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)
    checksum_type: str = "FULL_OBJECT"
    headers: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)


def encode_part(part: str) -> str:
    """One part of a key as a file name; inverse of `decode_part`. What a file system reads as
    something else gets a `%`."""
    try:
        raw = part.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise Unstorable("a part of the key is no text: half of a pair of surrogates") from None
    if part in ("", ".", "..") or part.startswith("%"):
        part = "%" + raw.hex()
    if len(part.encode("utf-8", "surrogateescape")) > 255 or "\0" in part:
        raise Unstorable("a part of the key is longer than 255 bytes, or holds NUL")
    return part


def decode_part(name: str) -> str:
    with contextlib.suppress(ValueError):  # a name of the folder's owner, not one of `encode_part`
        return (
            bytes.fromhex(name[1:]).decode("utf-8", "surrogateescape")
            if name.startswith("%")
            else name
        )
    return name


class Disk:
    def __init__(self, root: str | os.PathLike[str]):
        self.root = Path(root)
        own = self.root / ".labkit"
        self.notes, self.uploads = own / "notes", own / "uploads"
        self.naming = threading.Lock()
        for folder in (self.notes, self.uploads):
            folder.mkdir(parents=True, exist_ok=True)

    # -- buckets -----------------------------------------------------------------------------------

    def buckets(self) -> list[tuple[str, float]]:
        return sorted(
            (e.name, e.stat().st_ctime)
            for e in os.scandir(self.root)
            if e.is_dir() and BUCKET.fullmatch(e.name)
        )

    def make_bucket(self, bucket: str) -> bool:
        """False when it is there already."""
        if not BUCKET.fullmatch(bucket) or bucket in RESERVED:
            raise Unstorable(f"not a bucket name: {bucket[:80]!r}", "InvalidBucketName")
        try:
            (self.root / bucket).mkdir()
            return True
        except FileExistsError:
            return False

    def bucket(self, bucket: str) -> Path:
        path = self.root / bucket
        if not BUCKET.fullmatch(bucket) or not path.is_dir():
            raise Missing("NoSuchBucket", f"no bucket {bucket[:80]!r}")
        return path

    def remove_bucket(self, bucket: str) -> bool:
        """False when it is not empty."""
        path = self.bucket(bucket)
        if next(self.walk(bucket, ""), None):
            return False
        shutil.rmtree(path)
        shutil.rmtree(self.notes / bucket, ignore_errors=True)
        return True

    # -- objects -----------------------------------------------------------------------------------

    def path(self, bucket: str, key: str) -> Path:
        if not key or len(key.encode("utf-8", "surrogateescape")) > KEY_MAX:
            raise Unstorable("a key has 1 to 1024 bytes", "KeyTooLongError")
        return self.bucket(bucket).joinpath(*(encode_part(p) for p in key.split("/")))

    def _note(self, bucket: str, key: str) -> Path:
        # A digest, so that notes never meet the folder/object conflict that objects can have.
        return (
            self.notes / bucket / hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        )

    def open(self, bucket: str, key: str) -> tuple[int, Object]:
        """An open descriptor (the caller closes it) and what the object is. Raises Missing."""
        try:
            fd = os.open(self.path(bucket, key), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG):
                raise Missing("NoSuchKey", f"no object {key[:200]!r} in {bucket}") from None
            raise
        found = os.fstat(fd)
        if stat.S_ISDIR(found.st_mode):
            os.close(fd)
            raise Missing("NoSuchKey", f"no object {key[:200]!r} in {bucket}")
        return fd, self._describe(bucket, key, found)

    def _describe(self, bucket: str, key: str, stat: os.stat_result) -> Object:
        with contextlib.suppress(*GONE, ValueError, TypeError, KeyError):
            note = json.loads(self._note(bucket, key).read_text())
            if (note.pop("size"), note.pop("mtime_ns")) == (stat.st_size, stat.st_mtime_ns):
                return Object(bucket, key, stat.st_size, stat.st_mtime, **note)
        etag = hashlib.md5(
            f"{stat.st_size} {stat.st_mtime_ns} {stat.st_ino}".encode(), usedforsecurity=False
        ).hexdigest()
        return Object(bucket, key, stat.st_size, stat.st_mtime, f"{etag}-1")

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Path]:
        """A file for a body while it arrives, gone at the end of the block unless `keep` or
        `part_keep` took it."""
        path = self.uploads / f"put-{current().token}-{uuid.uuid4().hex}"
        entry = current().note("file", path)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)
            current().done(entry)

    def keep(
        self,
        bucket: str,
        key: str,
        body: Path,
        *,
        guard: Callable[[], None] = lambda: None,
        joined: JsonObject | None = None,
        **about: Any,
    ) -> Object:
        """Give the body its name, in one step. `about`: fields of `Object`, the ETag among them.
        `guard` raises where it must not get it: nobody else's write comes between the two.
        `joined`: the parts it was made of. Raises Unstorable for a key that collides with a
        folder."""
        path = self.path(bucket, key)
        status = body.stat()
        with self.naming:
            guard()
            self.bucket(bucket)
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                os.replace(body, path)
            except (NotADirectoryError, FileExistsError, IsADirectoryError):
                raise Unstorable(
                    "this key is the folder of another object, or lies below one"
                ) from None
            self._write_note(bucket, key, status, about)
            parts = self._parts_note(bucket, key)
            if joined is None:
                parts.unlink(missing_ok=True)
            else:
                with replacing(parts) as temporary:
                    temporary.write_text(json.dumps({"etag": about["etag"], **joined}))
        return self._describe(bucket, key, status)

    def _write_note(self, bucket: str, key: str, status: os.stat_result, about: JsonObject) -> None:
        said = {name: value for name, value in about.items() if value}
        target = self._note(bucket, key)
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as temporary:
            temporary.write_text(
                json.dumps({"size": status.st_size, "mtime_ns": status.st_mtime_ns, **said})
            )

    def tag(self, bucket: str, key: str, tags: dict[str, str]) -> None:
        """Other tags for an object that is there. Raises Missing."""
        with self.naming:
            fd, found = self.open(bucket, key)
            try:
                about = {**vars(found), "tags": tags}
                for name in ("bucket", "key", "size_bytes", "modified_s"):
                    del about[name]
                self._write_note(bucket, key, os.fstat(fd), about)
            finally:
                os.close(fd)

    def _parts_note(self, bucket: str, key: str) -> Path:
        note = self._note(bucket, key)
        return note.parent / f"{note.name}-parts"

    def joined(self, found: Object) -> JsonObject:
        """What `keep` was given as `joined`; empty for an object that came in one piece."""
        with contextlib.suppress(*GONE, ValueError):
            doc = json.loads(self._parts_note(found.bucket, found.key).read_text())
            if doc["etag"] == found.etag:
                return doc
        return {}

    def remove(self, bucket: str, key: str) -> None:
        """Absent is fine, as in S3."""
        path, top = self.path(bucket, key), self.bucket(bucket)
        with self.naming:
            with contextlib.suppress(*GONE, IsADirectoryError):
                path.unlink()
            self._note(bucket, key).unlink(missing_ok=True)
            self._parts_note(bucket, key).unlink(missing_ok=True)
        while (path := path.parent) != top:
            try:
                path.rmdir()
            except OSError:
                break

    def walk(self, bucket: str, prefix: str, after: str = "") -> Iterator[str]:
        """Keys that start with `prefix` and come after `after`, in the order of their UTF-8
        bytes."""
        top = self.bucket(bucket)
        folder = prefix.rpartition("/")[0]
        try:
            start = top.joinpath(*(encode_part(p) for p in folder.split("/"))) if folder else top
        except Unstorable:
            return
        keys: list[bytes] = []
        todo = [(start, folder + "/" if folder else "")]
        while todo:
            path, before = todo.pop()
            try:
                entries = list(os.scandir(path))
            except (*GONE, PermissionError):
                continue
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    continue
                raise
            for entry in entries:
                key = before + decode_part(entry.name)
                if entry.is_dir(follow_symlinks=False):
                    if key.startswith(prefix) or prefix.startswith(key):
                        todo.append((Path(entry.path), key + "/"))
                elif key.startswith(prefix):
                    keys.append(key.encode("utf-8", "surrogateescape"))
        floor = after.encode("utf-8", "surrogateescape")
        yield from (k.decode("utf-8", "surrogateescape") for k in sorted(keys) if k > floor)

    def listing(
        self,
        bucket: str,
        prefix: str,
        delimiter: str,
        after: str,
        limit: int,
        wanted: Callable[[str], bool] | None = None,
    ) -> tuple[list[Object], list[str], str]:
        """Objects, common prefixes, and the name to go on after ("" when that was all), of the keys
        that are `wanted`."""
        objects: list[Object] = []
        folders: list[str] = []
        last = after
        keys = self.walk(bucket, prefix, after)
        for key in filter(wanted, keys) if wanted else keys:
            if delimiter and (at := key.find(delimiter, len(prefix))) >= 0:
                folder = key[: at + len(delimiter)]
                if (folders and folders[-1] == folder) or folder == after:
                    continue
                if len(objects) + len(folders) >= limit:
                    return objects, folders, last
                folders.append(folder)
                last = folder
                continue
            if len(objects) + len(folders) >= limit:
                return objects, folders, last
            with contextlib.suppress(*GONE, PermissionError, Missing, Unstorable):
                objects.append(self._describe(bucket, key, os.stat(self.path(bucket, key))))
            last = key
        return objects, folders, ""

    def join(self, paths: Iterable[Path], target: Path) -> None:
        """Concatenate without the bytes passing through Python (copy_file_range; a clone where the
        file system can)."""
        with open(target, "wb") as out:
            for path in paths:
                with open(path, "rb") as part:
                    left = os.fstat(part.fileno()).st_size
                    while left:
                        try:
                            done = os.copy_file_range(part.fileno(), out.fileno(), left)
                        except OSError:
                            shutil.copyfileobj(part, out, 1 << 20)
                            out.flush()
                            break
                        if not done:
                            break
                        left -= done

"""The embedded registry: the OCI distribution API for pull and push, content-addressed on disk,
with an emulated link.

Physical limit: what `labkit.net.server` sends, about 2 GB/s on loopback here; a registry's own cost
per blob is one look-up. What it stores: labkit.image.registry_disk.

    labkit registry serve --root DIR --port 5000 --link 1gbit --fault 503:rate=0.01
    skopeo copy --dest-tls-verify=false oci:layout:latest docker://127.0.0.1:5000/lab/subject:latest

A digest that does not match what was pushed never gets a name under `blobs/`. Source: OCI
distribution-spec 1.1. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import uuid
from pathlib import Path

from labkit.core.digits import decimal
from labkit.image.oci import DOCUMENT_LIMIT_BYTES, INDEX, MANIFEST
from labkit.image.reference import NAME, NAME_LIMIT, TAG
from labkit.image.registry_disk import RegistryDisk
from labkit.net.message import Request, Response, file_response, text

#: What a repository's folder holds beside the repositories below it.
RESERVED = frozenset(("blobs", "manifests", "tags", "uploads", "referrers"))
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ROUTE = re.compile(rf"/v2/({NAME.pattern})/(manifests|blobs|tags|referrers)/(.+)")
_VERSION = {"Docker_Distribution_Api_Version": "registry/2.0"}
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?")
#: What a manifest may say it is: it becomes the Content-Type of every answer that holds it.
_MEDIA_TYPE = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}(?:["
    r" \t]*;[\x20-\x7e]{0,200})?"
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
    """The hex part of a `sha256:…` digest; refuses anything else, so that no digest is ever a path
    of its own making."""
    match = _DIGEST.fullmatch(digest) if isinstance(digest, str) else None
    if not match:
        raise RegistryError(400, "DIGEST_INVALID", f"not a sha256 digest: {str(digest)[:100]!r}")
    return match[1]


def _storable(name: str) -> str:
    if len(name) > NAME_LIMIT or RESERVED & set(name.split("/")):
        raise RegistryError(
            400, "NAME_INVALID", f"no repository of this registry can be called {name[:100]!r}"
        )
    return name


class Registry:
    """The application: `Server(Registry(root), link=…)`."""

    def __init__(self, root: str | os.PathLike[str], *, read_only: bool = False):
        self.disk, self.read_only = RegistryDisk(root), read_only
        # upload -> bytes hashed so far, state: no second read at the end
        self._hashes: dict[str, tuple[int, hashlib._Hash]] = {}
        self._lock = threading.Lock()

    def __call__(self, request: Request) -> Response:
        try:
            return self._answer(request)
        except RegistryError as refused:
            refused.response.headers["Docker-Distribution-Api-Version"] = "registry/2.0"
            return refused.response

    def _answer(self, request: Request) -> Response:
        path, method = request.path, request.method
        if path in ("/v2", "/v2/"):
            return text(200, "{}", "application/json", **_VERSION)
        if path == "/v2/_catalog":
            return self._page(request, "repositories", self.disk.repositories())
        match = _ROUTE.fullmatch(path)
        if not match:
            raise RegistryError(404, "NAME_INVALID", f"no such resource: {path[:200]}")
        name, kind, rest = match.groups()
        _storable(name)
        if method not in ("GET", "HEAD") and self.read_only:
            raise RegistryError(405, "UNSUPPORTED", "this registry is read-only")
        if kind == "tags" and rest == "list":
            return self._page(request, "tags", self._tags(name), name=name)
        if kind == "referrers":
            manifests = self.disk.referrers(name, hex_of(rest))
            doc = {"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}
            return text(200, json.dumps(doc), INDEX)
        if kind == "manifests":
            return self._manifest(request, name, rest)
        if kind == "blobs" and rest in ("uploads/", "uploads"):
            return self._upload_start(request, name)
        if kind == "blobs" and rest.startswith("uploads/"):
            return self._upload(request, name, rest.removeprefix("uploads/"))
        if kind == "blobs":
            return self._blob(request, name, hex_of(rest))
        raise RegistryError(404, "UNSUPPORTED", f"no such resource: {path[:200]}")

    def _tags(self, name: str) -> list[str]:
        try:
            return self.disk.tags(name)
        except FileNotFoundError:
            raise RegistryError(404, "NAME_UNKNOWN", f"no repository {name}") from None

    def _page(self, request: Request, key: str, names: list[str], **about: str) -> Response:
        last, headers = request.query.get("last"), {}
        if last:
            names = [n for n in names if n > last]
        try:
            count = decimal(request.query["n"]) if request.query.get("n") else len(names)
        except ValueError:
            raise RegistryError(400, "PAGINATION_NUMBER_INVALID", "n is not a number") from None
        if len(names) > count:
            names = names[:count]
            headers["Link"] = (
                f'<{request.path}?n={count}&last={names[-1] if names else ""}>; rel="next"'
            )
        return text(200, json.dumps({**about, key: names}), "application/json", **headers)

    # -- blobs and manifests -----------------------------------------------------------------------

    def _file(self, request: Request, name: str, mark: Path, code: str, kind: str = "") -> Response:
        """A blob or manifest (`mark`: its file in the repository), or 404 with this code."""
        self._read_method(request)
        digest = f"sha256:{mark.name}"
        try:
            media_type = kind or mark.read_text()
            mark.stat()
            fd = os.open(self.disk.blob(mark.name), os.O_RDONLY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            # no descriptors left is another matter: it is there
            raise RegistryError(404, code, f"{digest} is not in {name}") from None
        headers = {
            "Content-Type": media_type,
            "Docker-Content-Digest": digest,
            "ETag": f'"{digest}"',
        }
        return file_response(request, fd, os.fstat(fd).st_size, headers)

    def _blob(self, request: Request, name: str, hex_digest: str) -> Response:
        mark = self.disk.blob_mark(name, hex_digest)
        if request.method == "DELETE":
            if not mark.exists():
                raise RegistryError(404, "BLOB_UNKNOWN", f"sha256:{hex_digest} is not in {name}")
            mark.unlink()
            return Response(202)
        return self._file(request, name, mark, "BLOB_UNKNOWN", "application/octet-stream")

    def _read_method(self, request: Request) -> None:
        if request.method not in ("GET", "HEAD"):
            raise RegistryError(405, "UNSUPPORTED", f"{request.method} here means nothing")

    def resolve(self, name: str, reference: str) -> str:
        """A tag or digest to hex. Raises RegistryError."""
        if ":" in reference:
            return hex_of(reference)
        if not TAG.fullmatch(reference):
            raise RegistryError(400, "TAG_INVALID", f"not a tag: {reference[:100]!r}")
        try:
            return hex_of(self.disk.tag(name, reference).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise RegistryError(404, "MANIFEST_UNKNOWN", f"{name} has no tag {reference}") from None

    def _manifest(self, request: Request, name: str, reference: str) -> Response:
        if request.method == "PUT":
            return self._manifest_put(request, name, reference)
        hex_digest = self.resolve(name, reference)
        if request.method != "DELETE":
            mark = self.disk.manifest_mark(name, hex_digest)
            return self._file(request, name, mark, "MANIFEST_UNKNOWN")
        if ":" in reference:
            self._tags(name)
            self.disk.remove_manifest(name, hex_digest)
        else:
            self.disk.tag(name, reference).unlink(missing_ok=True)
        return Response(202)

    def _manifest_put(self, request: Request, name: str, reference: str) -> Response:
        raw = request.body.read(DOCUMENT_LIMIT_BYTES)
        hex_digest = hashlib.sha256(raw).hexdigest()
        if ":" in reference and hex_of(reference) != hex_digest:
            raise RegistryError(
                400, "DIGEST_INVALID", f"the manifest is sha256:{hex_digest}, not {reference}"
            )
        if ":" not in reference and not TAG.fullmatch(reference):
            raise RegistryError(400, "TAG_INVALID", f"not a tag: {reference[:100]!r}")
        try:
            doc = json.loads(raw)
            media_type = request.header("content-type") or doc.get("mediaType", MANIFEST)
            wanted = [
                d["digest"]
                for d in [*doc.get("layers", []), *([doc["config"]] if "config" in doc else [])]
                if not d.get("urls")
            ]
            children = [d["digest"] for d in doc.get("manifests", [])]
            subject = doc["subject"]["digest"] if doc.get("subject") else None
            if not _MEDIA_TYPE.fullmatch(media_type):
                raise ValueError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise RegistryError(400, "MANIFEST_INVALID", "not an image manifest or index") from None
        headers = {"OCI_Subject": f"sha256:{hex_of(subject)}"} if subject else {}
        marks = [(digest, self.disk.blob_mark(name, hex_of(digest))) for digest in wanted]
        marks += [(digest, self.disk.manifest_mark(name, hex_of(digest))) for digest in children]
        for digest, mark in marks:
            if not mark.exists():
                raise RegistryError(
                    400, "MANIFEST_BLOB_UNKNOWN", f"{digest} was not pushed to {name}"
                )
        tag = None if ":" in reference else reference
        self.disk.put_manifest(name, hex_digest, raw, media_type, tag)
        return _stored(name, "manifests", hex_digest, **headers)

    # -- uploads -----------------------------------------------------------------------------------

    def _upload_start(self, request: Request, name: str) -> Response:
        if request.method != "POST":
            raise RegistryError(405, "UNSUPPORTED", "an upload is started by POST")
        mount, source = request.query.get("mount"), request.query.get("from", "")
        if mount:
            hex_digest = hex_of(mount)
            if NAME.fullmatch(source) and self.disk.blob_mark(source, hex_digest).exists():
                self.disk.note_blob(name, hex_digest)
                return _stored(name, "blobs", hex_digest)
        if "digest" in request.query:
            hex_of(request.query["digest"])
        upload = uuid.uuid4().hex
        self.disk.upload(upload).touch()
        if "digest" in request.query:
            return self._upload_end(request, name, upload)
        return self._accepted(name, upload, 202)

    def _accepted(self, name: str, upload: str, status: int) -> Response:
        size = self.disk.upload(upload).stat().st_size
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{upload}",
            "Docker-Upload-UUID": upload,
            "Range": f"0-{max(0, size - 1)}",
            "OCI-Chunk-Min-Length": "0",
        }
        return Response(status, headers)

    def _upload(self, request: Request, name: str, upload: str) -> Response:
        path = self.disk.upload(upload)
        if not re.fullmatch(r"[0-9a-f]{32}", upload) or not path.exists():
            raise RegistryError(404, "BLOB_UPLOAD_UNKNOWN", f"no upload {upload[:64]!r}")
        if request.method == "PATCH":
            self._append(request, path, upload)
            return self._accepted(name, upload, 202)
        if request.method == "PUT":
            return self._upload_end(request, name, upload)
        if request.method == "GET":
            return self._accepted(name, upload, 204)
        if request.method == "DELETE":
            path.unlink(missing_ok=True)
            self._hashes.pop(upload, None)
            return Response(204)
        raise RegistryError(405, "UNSUPPORTED", f"{request.method} on an upload means nothing")

    def _append(self, request: Request, path: Path, upload: str) -> None:
        with open(path, "ab") as out:
            at = out.tell()
            wanted = request.header("content-range")
            if wanted:
                match = _CONTENT_RANGE.fullmatch(wanted)
                if not match or int(match[1]) != at:
                    raise RegistryError(
                        416,
                        "BLOB_UPLOAD_INVALID",
                        f"the upload is at byte {at}, not {wanted}",
                        Range=f"0-{max(0, at - 1)}",
                    )
            hashed, state = self._hashes.pop(upload, (0, hashlib.sha256()))
            for block in request.body:
                out.write(block)
                if hashed == at:
                    state.update(block)
                    hashed += len(block)
                at += len(block)
        with self._lock:
            if hashed == at:
                self._hashes[upload] = (hashed, state)

    def _upload_end(self, request: Request, name: str, upload: str) -> Response:
        path = self.disk.upload(upload)
        hex_digest = hex_of(request.query.get("digest", ""))
        self._append(request, path, upload)
        hashed, state = self._hashes.pop(upload, (0, hashlib.sha256()))
        if hashed != path.stat().st_size:
            state = hashlib.sha256()
            with open(path, "rb") as whole:
                while block := whole.read(1 << 20):
                    state.update(block)
        if state.hexdigest() != hex_digest:
            path.unlink(missing_ok=True)
            raise RegistryError(
                400,
                "DIGEST_INVALID",
                f"what arrived is sha256:{state.hexdigest()}, not sha256:{hex_digest}",
            )
        os.replace(path, self.disk.blob(hex_digest))
        self.disk.note_blob(name, hex_digest)
        return _stored(name, "blobs", hex_digest)


def _stored(name: str, kind: str, hex_digest: str, **headers: str) -> Response:
    digest = f"sha256:{hex_digest}"
    location = f"/v2/{name}/{kind}/{digest}"
    return text(201, b"", Location=location, Docker_Content_Digest=digest, **headers)

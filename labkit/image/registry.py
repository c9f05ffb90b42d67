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
from urllib.parse import parse_qsl

from labkit.core.digits import decimal
from labkit.image.oci import DOCUMENT_LIMIT_BYTES, INDEX
from labkit.image.reference import NAME
from labkit.image.registry_disk import RegistryDisk, digest_of_hex
from labkit.image.registry_input import PushedManifest, RegistryError, hex_of, storable, tag_of
from labkit.net.message import Request, Response, file_response, text

_ROUTE = re.compile(rf"/v2/({NAME.pattern})/(manifests|blobs|tags|referrers)/(.+)")
DROPPED_BYTES = 4 * DOCUMENT_LIMIT_BYTES
_VERSION = {"Docker_Distribution_Api_Version": "registry/2.0"}
_CONTENT_RANGE = re.compile(r"(?:bytes )?([0-9]{1,18})-([0-9]{1,18})(?:/.*)?")


def _document(request: Request) -> bytes:
    """A pushed manifest. One that is too large is read and dropped, within bounds: a client that
    still sends would see a reset in place of the answer."""
    parts, size = [], 0
    if (request.body.size_bytes or 0) <= DROPPED_BYTES:
        for block in request.body:
            size += len(block)
            if size > DROPPED_BYTES:
                break
            if size <= DOCUMENT_LIMIT_BYTES:
                parts.append(block)
    if size > DOCUMENT_LIMIT_BYTES or not parts:
        raise RegistryError(
            413 if size or request.body.size_bytes else 400,
            "SIZE_INVALID",
            f"a manifest has 1 to {DOCUMENT_LIMIT_BYTES} bytes",
        )
    return b"".join(parts)


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
        storable(name)
        if method not in ("GET", "HEAD") and self.read_only:
            raise RegistryError(405, "UNSUPPORTED", "this registry is read-only")
        if kind == "tags" and rest == "list":
            return self._page(request, "tags", self._tags(name), name=name)
        if kind == "referrers":
            return self._referrers(request, name, hex_of(rest))
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

    def _referrers(self, request: Request, name: str, subject: str) -> Response:
        self._read_method(request)
        found, headers = self.disk.referrers(name, subject), {}
        wanted = request.query.get("artifactType")
        if wanted is not None:
            found = [one for one in found if one.get("artifactType", "") == wanted]
            headers["OCI_Filters_Applied"] = "artifactType"
        doc = {"schemaVersion": 2, "mediaType": INDEX, "manifests": found}
        return text(200, json.dumps(doc), INDEX, **headers)

    def _page(self, request: Request, key: str, names: list[str], **about: str) -> Response:
        self._read_method(request)
        last, headers = request.query.get("last"), {}
        if last:
            names = [n for n in names if n > last]
        try:
            count = decimal(request.query["n"]) if request.query.get("n") else len(names)
        except ValueError:
            raise RegistryError(400, "UNSUPPORTED", "n is not a number") from None
        if len(names) > count:
            names = names[:count]
            if names:  # n=0 asks for nothing, and nothing follows
                headers["Link"] = f'<{request.path}?n={count}&last={names[-1]}>; rel="next"'
        return text(200, json.dumps({**about, key: names}), "application/json", **headers)

    # -- blobs and manifests -----------------------------------------------------------------------

    def _file(self, request: Request, name: str, mark: Path, code: str, kind: str = "") -> Response:
        """A blob or manifest (`mark`: its file in the repository), or 404 with this code."""
        self._read_method(request)
        digest = digest_of_hex(mark.name)
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
                raise RegistryError(
                    404, "BLOB_UNKNOWN", f"{digest_of_hex(hex_digest)} is not in {name}"
                )
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
        tag_of(reference)
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
            try:
                self.disk.remove_manifest(name, hex_digest)
            except FileNotFoundError:
                raise RegistryError(
                    404, "MANIFEST_UNKNOWN", f"{reference} is not in {name}"
                ) from None
        else:
            self.disk.tag(name, reference).unlink(missing_ok=True)
        return Response(202)

    def _manifest_put(self, request: Request, name: str, reference: str) -> Response:
        raw = _document(request)
        hex_digest = hashlib.sha256(raw).hexdigest()
        tags = [v for key, v in parse_qsl(request.raw_query) if key == "tag"]
        headers: dict[str, str] = {}
        if ":" in reference:
            wanted = hex_of(reference)
            if len(wanted) == 128:
                hex_digest = hashlib.sha512(raw).hexdigest()
            if wanted != hex_digest:
                raise RegistryError(
                    400,
                    "DIGEST_INVALID",
                    f"the manifest is {digest_of_hex(hex_digest)}, not {reference}",
                )
            if tags:
                headers["OCI_Tag"] = ", ".join(map(tag_of, tags))
        else:
            tags = [tag_of(reference)]
        pushed = PushedManifest.parse(raw, request.header("content-type"))
        if pushed.subject:
            headers["OCI_Subject"] = digest_of_hex(pushed.subject)
        marks = [self.disk.blob_mark(name, one) for one in pushed.blobs]
        marks += [self.disk.manifest_mark(name, one) for one in pushed.manifests]
        for mark in marks:
            if not mark.exists():
                raise RegistryError(
                    400,
                    "MANIFEST_BLOB_UNKNOWN",
                    f"{digest_of_hex(mark.name)} was not pushed to {name}",
                )
        self.disk.put_manifest(name, hex_digest, raw, pushed.media_type, tags)
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
        if hashed != path.stat().st_size or len(hex_digest) == 128:
            state = hashlib.new(digest_of_hex(hex_digest)[:6])
            with open(path, "rb") as whole:
                while block := whole.read(1 << 20):
                    state.update(block)
        if state.hexdigest() != hex_digest:
            path.unlink(missing_ok=True)
            raise RegistryError(
                400,
                "DIGEST_INVALID",
                f"what arrived is {digest_of_hex(state.hexdigest())}, not"
                f" {digest_of_hex(hex_digest)}",
            )
        os.replace(path, self.disk.blob(hex_digest))
        self.disk.note_blob(name, hex_digest)
        return _stored(name, "blobs", hex_digest)


def _stored(name: str, kind: str, hex_digest: str, **headers: str) -> Response:
    digest = digest_of_hex(hex_digest)
    location = f"/v2/{name}/{kind}/{digest}"
    return text(201, b"", Location=location, Docker_Content_Digest=digest, **headers)

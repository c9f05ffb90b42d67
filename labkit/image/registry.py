"""The embedded registry: the OCI distribution API for pull and push, content-addressed on disk,
with an emulated link.

Physical limit: what `labkit.net.server` sends, about 2 GB/s on loopback here; a registry's own cost
per blob is one look-up. Layout of the root, readable by hand and shareable by hard link with any
OCI image layout:

    blobs/sha256/HEX                          every blob and manifest, once
    repositories/NAME/blobs/HEX               an empty file: NAME may serve this blob
    repositories/NAME/manifests/HEX           its media type
    repositories/NAME/tags/TAG                the digest it points to
    uploads/UUID                              what has arrived of an upload

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
from typing import Any

from labkit.core.beside import replacing
from labkit.core.digits import decimal
from labkit.net.message import Request, Response, file_response, text

MANIFEST_MAX = 4 << 20
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"

_NAME = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
NAME = re.compile(_NAME)
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
NAME_MAX = 255
#: What a repository's folder holds beside the repositories below it.
RESERVED = frozenset(("blobs", "manifests", "tags", "uploads", "referrers"))
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_ROUTE = re.compile(rf"/v2/({_NAME})/(manifests|blobs|tags|referrers)/(.+)")
_UPLOADS = re.compile(rf"/v2/({_NAME})/blobs/uploads/?")
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
    if len(name) > NAME_MAX or RESERVED & set(name.split("/")):
        raise RegistryError(
            400, "NAME_INVALID", f"no repository of this registry can be called {name[:100]!r}"
        )
    return name


class Registry:
    """The application: `Server(Registry(root), link=…)`."""

    def __init__(self, root: str | os.PathLike[str], *, read_only: bool = False):
        self.root, self.read_only = Path(root), read_only
        for room in ("blobs/sha256", "repositories", "uploads"):
            (self.root / room).mkdir(parents=True, exist_ok=True)
        # upload -> bytes hashed so far, state: no second read at the end
        self._hashes: dict[str, tuple[int, Any]] = {}
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
            return text(
                200, "{}", "application/json", Docker_Distribution_Api_Version="registry/2.0"
            )
        if path == "/v2/_catalog":
            return self._page(
                request, self.repositories(), lambda names: {"repositories": names}, "/v2/_catalog"
            )
        match = _ROUTE.fullmatch(path)
        if not match:
            if start := _UPLOADS.fullmatch(path):
                return self._upload_start(request, _storable(start[1]))
            raise RegistryError(404, "NAME_INVALID", f"no such resource: {path[:200]}")
        name, kind, rest = match.groups()
        _storable(name)
        if method not in ("GET", "HEAD") and self.read_only:
            raise RegistryError(405, "UNSUPPORTED", "this registry is read-only")
        if kind == "tags" and rest == "list":
            return self._page(
                request, self.tags(name), lambda tags: {"name": name, "tags": tags}, path
            )
        if kind == "referrers":
            return text(
                200,
                json.dumps(
                    {
                        "schemaVersion": 2,
                        "mediaType": OCI_INDEX,
                        "manifests": self._referrers(name, hex_of(rest)),
                    }
                ),
                OCI_INDEX,
            )
        if kind == "manifests":
            return self._manifest(request, name, rest)
        if kind == "blobs" and (rest == "uploads/" or rest == "uploads"):
            return self._upload_start(request, name)
        if kind == "blobs" and rest.startswith("uploads/"):
            return self._upload(request, name, rest.removeprefix("uploads/"))
        if kind == "blobs":
            return self._blob(request, name, hex_of(rest))
        raise RegistryError(404, "UNSUPPORTED", f"no such resource: {path[:200]}")

    # -- what is there -----------------------------------------------------------------------------

    def blob_path(self, hex_digest: str) -> Path:
        return self.root / "blobs" / "sha256" / hex_digest

    def repository(self, name: str) -> Path:
        return self.root / "repositories" / name

    def repositories(self) -> list[str]:
        top = self.root / "repositories"
        return sorted(str(p.parent.relative_to(top)) for p in top.rglob("manifests") if p.is_dir())

    def tags(self, name: str) -> list[str]:
        if not (self.repository(name) / "manifests").is_dir():
            raise RegistryError(404, "NAME_UNKNOWN", f"no repository {name}")
        folder = self.repository(name) / "tags"
        return sorted(os.listdir(folder)) if folder.is_dir() else []

    def _page(self, request: Request, names: list[str], shape: Any, path: str) -> Response:
        last, headers = request.query.get("last"), {}
        if last:
            names = [n for n in names if n > last]
        try:
            count = decimal(request.query["n"]) if request.query.get("n") else len(names)
        except ValueError:
            raise RegistryError(400, "PAGINATION_NUMBER_INVALID", "n is not a number") from None
        if len(names) > count:
            names = names[:count]
            headers["Link"] = f'<{path}?n={count}&last={names[-1] if names else ""}>; rel="next"'
        return text(200, json.dumps(shape(names)), "application/json", **headers)

    def _referrers(self, name: str, subject: str) -> list[dict[str, Any]]:
        found, folder = [], self.repository(name) / "manifests"
        for one in sorted(os.listdir(folder)) if folder.is_dir() else []:
            raw = self.blob_path(one).read_bytes()
            doc = json.loads(raw)
            if (
                isinstance(doc.get("subject"), dict)
                and doc["subject"].get("digest") == f"sha256:{subject}"
            ):
                found.append(
                    {
                        "mediaType": (folder / one).read_text(),
                        "digest": f"sha256:{one}",
                        "size": len(raw),
                        "artifactType": doc.get(
                            "artifactType", doc.get("config", {}).get("mediaType", "")
                        ),
                        **({"annotations": doc["annotations"]} if "annotations" in doc else {}),
                    }
                )
        return found

    # -- blobs and manifests -----------------------------------------------------------------------

    def _open(self, hex_digest: str) -> tuple[int, int]:
        fd = os.open(self.blob_path(hex_digest), os.O_RDONLY | os.O_CLOEXEC)
        return fd, os.fstat(fd).st_size

    def _blob(self, request: Request, name: str, hex_digest: str) -> Response:
        mark = self.repository(name) / "blobs" / hex_digest
        if request.method == "DELETE":
            if not mark.exists():
                raise RegistryError(404, "BLOB_UNKNOWN", f"sha256:{hex_digest} is not in {name}")
            mark.unlink()
            return Response(202)
        self._read_method(request)
        try:
            if not mark.exists():
                raise FileNotFoundError
            fd, size = self._open(hex_digest)
        except (FileNotFoundError, NotADirectoryError):
            # no descriptors left is another matter: it is there
            raise RegistryError(
                404, "BLOB_UNKNOWN", f"sha256:{hex_digest} is not in {name}"
            ) from None
        return file_response(
            request,
            fd,
            size,
            {
                "Content-Type": "application/octet-stream",
                "Docker-Content-Digest": f"sha256:{hex_digest}",
                "ETag": f'"sha256:{hex_digest}"',
            },
        )

    def _read_method(self, request: Request) -> None:
        if request.method not in ("GET", "HEAD"):
            raise RegistryError(405, "UNSUPPORTED", f"{request.method} here means nothing")

    def resolve(self, name: str, reference: str) -> str:
        """A tag or digest to hex; raises Refused."""
        if ":" in reference:
            return hex_of(reference)
        if not TAG.fullmatch(reference):
            raise RegistryError(400, "TAG_INVALID", f"not a tag: {reference[:100]!r}")
        try:
            return hex_of((self.repository(name) / "tags" / reference).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise RegistryError(404, "MANIFEST_UNKNOWN", f"{name} has no tag {reference}") from None

    def _manifest(self, request: Request, name: str, reference: str) -> Response:
        if request.method == "PUT":
            return self._manifest_put(request, name, reference)
        hex_digest = self.resolve(name, reference)
        mark = self.repository(name) / "manifests" / hex_digest
        if request.method == "DELETE":
            if ":" in reference:
                mark.unlink(missing_ok=True)
                tags = self.repository(name) / "tags"
                for tag in self.tags(name):
                    if (tags / tag).read_text() == f"sha256:{hex_digest}":
                        (tags / tag).unlink(missing_ok=True)
            else:
                (self.repository(name) / "tags" / reference).unlink(missing_ok=True)
            return Response(202)
        self._read_method(request)
        try:
            media_type = mark.read_text()
            fd, size = self._open(hex_digest)
        except (FileNotFoundError, NotADirectoryError):
            raise RegistryError(
                404, "MANIFEST_UNKNOWN", f"sha256:{hex_digest} is not in {name}"
            ) from None
        return file_response(
            request,
            fd,
            size,
            {
                "Content-Type": media_type,
                "Docker-Content-Digest": f"sha256:{hex_digest}",
                "ETag": f'"sha256:{hex_digest}"',
            },
        )

    def _manifest_put(self, request: Request, name: str, reference: str) -> Response:
        raw = request.body.read(MANIFEST_MAX)
        hex_digest = hashlib.sha256(raw).hexdigest()
        if ":" in reference and hex_of(reference) != hex_digest:
            raise RegistryError(
                400, "DIGEST_INVALID", f"the manifest is sha256:{hex_digest}, not {reference}"
            )
        if ":" not in reference and not TAG.fullmatch(reference):
            raise RegistryError(400, "TAG_INVALID", f"not a tag: {reference[:100]!r}")
        try:
            doc = json.loads(raw)
            media_type = request.header("content-type") or doc.get("mediaType", OCI_MANIFEST)
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
        for digest in wanted:
            if not (self.repository(name) / "blobs" / hex_of(digest)).exists():
                raise RegistryError(
                    400, "MANIFEST_BLOB_UNKNOWN", f"{digest} was not pushed to {name}"
                )
        for digest in children:
            if not (self.repository(name) / "manifests" / hex_of(digest)).exists():
                raise RegistryError(
                    400, "MANIFEST_BLOB_UNKNOWN", f"{digest} was not pushed to {name}"
                )
        _write(self.blob_path(hex_digest), raw)
        self.note_manifest(name, hex_digest, media_type, None if ":" in reference else reference)
        return text(
            201,
            b"",
            Location=f"/v2/{name}/manifests/sha256:{hex_digest}",
            Docker_Content_Digest=f"sha256:{hex_digest}",
            **headers,
        )

    def note_manifest(self, name: str, hex_digest: str, media_type: str, tag: str | None) -> None:
        _write(self.repository(name) / "manifests" / hex_digest, media_type.encode())
        if tag:
            _write(self.repository(name) / "tags" / tag, f"sha256:{hex_digest}".encode())

    def note_blob(self, name: str, hex_digest: str) -> None:
        mark = self.repository(name) / "blobs" / hex_digest
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()

    # -- uploads -----------------------------------------------------------------------------------

    def _upload_start(self, request: Request, name: str) -> Response:
        if request.method != "POST":
            raise RegistryError(405, "UNSUPPORTED", "an upload is started by POST")
        if self.read_only:
            raise RegistryError(405, "UNSUPPORTED", "this registry is read-only")
        mount, source = request.query.get("mount"), request.query.get("from", "")
        if mount:
            hex_digest = hex_of(mount)
            if NAME.fullmatch(source) and (self.repository(source) / "blobs" / hex_digest).exists():
                self.note_blob(name, hex_digest)
                return self._created(name, hex_digest)
        if "digest" in request.query:
            hex_of(request.query["digest"])
        upload = uuid.uuid4().hex
        (self.root / "uploads" / upload).touch()
        if "digest" in request.query:
            return self._upload_end(request, name, upload)
        return self._accepted(name, upload, 202)

    def _accepted(self, name: str, upload: str, status: int) -> Response:
        size = (self.root / "uploads" / upload).stat().st_size
        headers = {
            "Location": f"/v2/{name}/blobs/uploads/{upload}",
            "Docker-Upload-UUID": upload,
            "Range": f"0-{max(0, size - 1)}",
            "OCI-Chunk-Min-Length": "0",
        }
        return Response(status, headers)

    def _created(self, name: str, hex_digest: str) -> Response:
        return text(
            201,
            b"",
            Location=f"/v2/{name}/blobs/sha256:{hex_digest}",
            Docker_Content_Digest=f"sha256:{hex_digest}",
        )

    def _upload(self, request: Request, name: str, upload: str) -> Response:
        path = self.root / "uploads" / upload
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
        path = self.root / "uploads" / upload
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
        os.replace(path, self.blob_path(hex_digest))
        self.note_blob(name, hex_digest)
        return self._created(name, hex_digest)


def _write(path: Path, raw: bytes) -> None:
    """In one step, so that a reader sees the old bytes or the new ones."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(raw)
        os.chmod(temporary, 0o644)

"""Where a mount's blobs come from: a registry over HTTP, or an OCI layout on this disk.

    # or "oci:/path/to/layout:lab/subject:esgz"
    source = open_source("http://127.0.0.1:5000/lab/subject:esgz")
    manifest = source.manifest()
    for piece in source.stream(digest, 0, 4096): …

Limit: the link; connections are kept open, as a new one costs a round trip. Lesson:
notebooks/03_lazy_pull."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from labkit.core.json_types import JsonObject
from labkit.errors import LabError, TransferError
from labkit.image import oci
from labkit.image.distribution import RemoteImage
from labkit.image.oci_layout import Layout
from labkit.image.reference import Reference, parse_reference
from labkit.net.client import Client, HTTPStatusError, fix_of, retry_after_s
from labkit.net.content_range import NoRanges, enclosed
from labkit.net.http import ConnectionLost

STEP_BYTES = 256 << 10
TIMEOUT_S = 10.0
RETRY_AFTER_MAX_S = 10.0


class Busy(TransferError):
    """The store asks to come back later (429, 503)."""

    def __init__(self, what: str, retry_after_s: float):
        super().__init__(what, why="the store limits its clients")
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[type[Busy], tuple[str, float]]:
        return (type(self), (self.what, self.retry_after_s))


class Refused(TransferError):
    """Asking again would be answered the same: the blob is not there or not to be read, or its
    store has no ranges."""


class LayerSource(Protocol):
    name: str

    def manifest(self) -> oci.Manifest: ...
    def config(self, manifest: oci.Manifest) -> JsonObject: ...
    def stream(self, digest: str, start: int, end: int) -> Iterator[memoryview]: ...
    def close(self) -> None: ...


def open_source(reference: str) -> LayerSource:
    """Raises BadInput for what is no reference."""
    if reference.startswith("oci:"):
        path, _, name = reference[4:].partition(":")
        return LayoutSource(Path(path), name)
    return RegistrySource(parse_reference(reference))


class LayoutSource:
    """A layout on disk: no network, the same code above it."""

    def __init__(self, path: Path, name: str = ""):
        self.layout, self.image, self.name = Layout(path), name, f"oci:{path}:{name}"

    def manifest(self) -> oci.Manifest:
        return self.layout.manifest(self.image)

    def config(self, manifest: oci.Manifest) -> JsonObject:
        return self.layout.config(manifest)

    def stream(self, digest: str, start: int, end: int) -> Iterator[memoryview]:
        try:
            with open(self.layout.blob_path(digest), "rb", buffering=0) as file:
                file.seek(start)
                while start < end:
                    data = file.read(min(STEP_BYTES, end - start))
                    if not data:
                        raise TransferError(
                            f"{digest} ends at {start}", why="the layout's blob is truncated"
                        )
                    start += len(data)
                    yield memoryview(data)
        except OSError as error:
            raise TransferError(f"{digest} cannot be read: {error}") from None

    def close(self) -> None:
        pass


class RegistrySource:
    """The distribution API's two GETs."""

    def __init__(self, reference: Reference, client: Client | None = None):
        self.name, self.client = str(reference), client or Client(timeout_s=TIMEOUT_S)
        self.image = RemoteImage(self.client, reference)

    def manifest(self) -> oci.Manifest:
        return self.image.manifest()

    def config(self, manifest: oci.Manifest) -> JsonObject:
        return self.image.config(manifest)

    def stream(self, digest: str, start: int, end: int) -> Iterator[memoryview]:
        """[start, end) of a blob in pieces of at most 256 KiB. One attempt, of several answers
        where a server sends less of a range than asked (RFC 9110 §15.3.7). Raises TransferError
        (Busy: with the time to wait; Refused: for good)."""
        at, url = start, self.image.blob_url(digest)
        view = memoryview(bytearray(STEP_BYTES))
        try:
            while at < end:
                wanted = {"Range": f"bytes={at}-{end - 1}"}
                with self.client.open("GET", url, wanted, ok=(206, 200)) as (answer, wire):
                    until = enclosed(url, answer, at, end)
                    while at < until:
                        size = wire.read_into(view[: min(STEP_BYTES, until - at)])
                        if not size:
                            raise ConnectionLost(f"the answer ended {until - at} bytes early")
                        at += size
                        yield view[:size]
        except HTTPStatusError as error:
            if error.again:
                after_s = retry_after_s(error.answer.headers.get("retry-after", ""))
                raise Busy(
                    f"{url}: {error}", 0.1 if after_s is None else min(RETRY_AFTER_MAX_S, after_s)
                ) from None
            raise Refused(f"{url}: {error}", fix=fix_of(error.answer.status)) from None
        except NoRanges:
            raise Refused(
                f"{url}: the registry ignores ranges",
                why="a lazy mount reads the middle of a layer",
                fix="pull the image whole (labkit image pull), or ask a registry that has ranges",
            ) from None
        except (ConnectionLost, OSError, ValueError) as error:
            raise TransferError(f"{digest[:19]}…: {error}") from None
        except LabError as error:
            raise Refused(error.what, error.why, error.fix) from None

    def close(self) -> None:
        self.client.close()

"""One request to the store, once it is known who asks for what."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.net.message import Request
from labkit.objects.disk import Disk
from labkit.objects.sigv4 import Signed


@dataclass(frozen=True)
class Call:
    """What every operation gets. `key` is empty for a bucket, `bucket` too for the service."""

    disk: Disk
    request: Request
    bucket: str = ""
    key: str = ""
    signed: Signed | None = None

    @property
    def query(self) -> dict[str, str]:
        return self.request.query

    def header(self, name: str) -> str:
        return self.request.headers.get(name, "")

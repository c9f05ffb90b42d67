"""Where a request goes, out of a URL: the one reading that the connection, the Host header and a
signature share.

    place, target = split("HTTP://Bucket.Example:80/a b?c")
    place.netloc                      # "bucket.example": lower case, without the scheme's port
    target                            # "/a%20b?c"

Source: RFC 9110 §4.2 and §7.2, RFC 6874. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

DEFAULT_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[A-Za-z0-9._-]{1,253}|[0-9A-Fa-f:.]{2,45}(?:%[A-Za-z0-9._-]{1,16})?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
#: Everything a target may hold as it is; the rest is escaped, as browsers do.
_AS_IT_IS = "/?:@!$&'()*+,;=-._~%[]|^`{}<>\\\"#"


@dataclass(frozen=True)
class Place:
    """Where a connection goes."""

    scheme: str
    host: str
    port: int

    @property
    def netloc(self) -> str:
        """Host, with its port where it is not the scheme's own: what the Host header says."""
        # the zone of a link-local address means something on this host only
        host = f"[{self.host.partition('%')[0]}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def host_port(self) -> str:
        """With the port always: what CONNECT asks for."""
        netloc = self.netloc
        return f"{netloc}:{self.port}" if self.port == DEFAULT_PORTS[self.scheme] else netloc


def split(url: str) -> tuple[Place, str]:
    """A URL to where and what. Raises ValueError for anything but http and https, and for what no
    request line may hold."""
    if _CONTROL.search(url):  # urlsplit drops them in silence
        raise ValueError(f"control characters in a URL: {_shown(url)}")
    parts = urlsplit(url)
    if (
        parts.scheme not in DEFAULT_PORTS
        or not parts.hostname
        or not _HOST.fullmatch(parts.hostname)
    ):
        raise ValueError(f"not an http(s) URL: {_shown(url)}")
    port = parts.port
    if port == 0 or parts.netloc.rpartition("@")[2].endswith(":"):
        raise ValueError(f"no port in a URL that names one: {_shown(url)}")
    target = (parts.path or "/") + ("?" + parts.query if parts.query else "")
    return Place(parts.scheme, parts.hostname, port or DEFAULT_PORTS[parts.scheme]), quote(
        target, safe=_AS_IT_IS
    )


def _shown(url: str) -> str:
    from labkit.core import secrets  # only now: a server reads its weights through this module

    return repr(secrets.mask(url)[:200])

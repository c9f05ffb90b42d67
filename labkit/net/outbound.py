"""How a connection leaves this host: through which proxy, and which authorities it trusts, as the
environment says.

    outbound = Outbound(os.environ)
    outbound.proxy(place)              # Proxy | None: HTTP(S)_PROXY, ALL_PROXY, NO_PROXY
    outbound.tls()                     # ssl.SSLContext: REQUESTS_CA_BUNDLE, …, SSL_CERT_FILE

Names and rules are those of curl and requests: lower case before upper case; NO_PROXY lists names
(with all that is below them), addresses and networks (10.0.0.0/8), each with a port or without, or
`*`. Loopback never goes through a proxy: what the lab starts on this host is asked directly.
Limit: a proxy adds a round trip to each connection, and its rate is the link's. Lesson:
notebooks/02_image_pull."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from labkit.errors import BadInput
from labkit.net.place import Place, split

if TYPE_CHECKING:
    import ssl
    from ipaddress import IPv4Address, IPv6Address

#: Variables that name a file, or a directory, of trusted authorities; the first that is set counts.
CA_BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE")
#: What a program that is started needs of the environment to leave this host the same way.
PROXY_NAMES = tuple(
    name
    for kind in ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
    for name in (kind, kind.upper())
)
_ADDRESS = re.compile(r"[0-9.]+|[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*")


@dataclass(frozen=True)
class Proxy:
    """`authorization`: what the proxy itself asks for, "" for nothing."""

    place: Place
    authorization: str = field(default="", repr=False)

    @property
    def name(self) -> str:
        """Without the password."""
        return f"{self.place.scheme}://{self.place.netloc}"

    @property
    def headers(self) -> dict[str, str]:
        return {"Proxy-Authorization": self.authorization} if self.authorization else {}


@dataclass(frozen=True)
class Outbound:
    """`bundles`: variables that name trusted authorities, the first that is set counts."""

    env: Mapping[str, str] = field(default_factory=lambda: os.environ)
    bundles: tuple[str, ...] = CA_BUNDLES

    def proxy(self, place: Place) -> Proxy | None:
        """Raises BadInput for a variable that names no proxy that can be used."""
        name = next((n for n in _names(place.scheme, self.env) if self.env.get(n)), "")
        if not name or is_loopback(place.host) or self._excepted(place):
            return None
        return _parsed(name, self.env[name])

    def _excepted(self, place: Place) -> bool:
        listed = self.env.get("no_proxy") or self.env.get("NO_PROXY") or ""
        return any(_covers(entry, place) for entry in listed.replace(",", " ").split())

    def tls(self) -> ssl.SSLContext:
        """Raises BadInput for authorities that cannot be read."""
        name = next((n for n in self.bundles if self.env.get(n)), "")
        return _context(name, self.env[name] if name else "")


def _names(scheme: str, env: Mapping[str, str]) -> tuple[str, ...]:
    # in a CGI program HTTP_PROXY is a header of the request: anybody's word
    upper = () if scheme == "http" and "REQUEST_METHOD" in env else (f"{scheme.upper()}_PROXY",)
    return (f"{scheme}_proxy", *upper, "all_proxy", "ALL_PROXY")


def is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost") or host.startswith("127."):
        return True
    address = _address(host)
    return address is not None and address.is_loopback


def _address(host: str) -> IPv4Address | IPv6Address | None:
    if not _ADDRESS.fullmatch(host):
        return None
    from ipaddress import ip_address  # only now: most places have a name, or are this host

    try:
        return ip_address(host)
    except ValueError:
        return None


def _covers(entry: str, place: Place) -> bool:
    """One entry of NO_PROXY: `*`, `example.com`, `.example.com`, `*.example.com`, an address or a
    network, and all but the networks with a port."""
    if entry == "*":
        return True
    name, port = entry.lower(), ""
    if bracketed := re.fullmatch(r"\[([0-9a-f:.]+)\](?::(\d+))?", name):
        name, port = bracketed[1], bracketed[2] or ""
    elif name.count(":") == 1:
        name, _, port = name.partition(":")
    if port and port != str(place.port):
        return False
    address = _address(place.host)
    if address is not None:
        from ipaddress import ip_network

        try:
            return address in ip_network(name, strict=False)
        except ValueError:
            return False
    name, host = name.removeprefix("*").lstrip(".").rstrip("."), place.host.rstrip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))


def _parsed(name: str, value: str) -> Proxy:
    """`[http://][USER:PASSWORD@]HOST[:PORT]`."""
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        if parts.scheme != "http":
            raise ValueError(f"{parts.scheme}:// is not spoken here")
        place, _ = split(f"http://{parts.netloc.rpartition('@')[2]}/")
    except ValueError as error:
        from labkit.core import secrets

        raise BadInput(
            f"{name}={secrets.mask(value)} names no proxy that can be used: {error}",
            why="nothing beyond this host can be asked",
            fix=f"export {name}=http://HOST:PORT, or list the servers in NO_PROXY",
        ) from None
    if parts.username is None:
        return Proxy(place)
    from base64 import b64encode

    from labkit.core import secrets

    user, password = unquote(parts.username), unquote(parts.password or "")
    secrets.learn(password)
    return Proxy(place, "Basic " + b64encode(f"{user}:{password}".encode()).decode())


@functools.cache
def _context(name: str, path: str) -> ssl.SSLContext:
    """Made once: to read the system's authorities takes 20 ms."""
    import ssl

    if not path:
        return ssl.create_default_context()
    try:
        if os.path.isdir(path):
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:  # ssl.SSLError is one
        raise BadInput(
            f"{name}={path} cannot be read as certificates: {error.strerror or error}",
            why="no server could be trusted",
            fix=f"a file with -----BEGIN CERTIFICATE-----, or unset {name}",
        ) from None

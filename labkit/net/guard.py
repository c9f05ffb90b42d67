"""Who may ask a server on this machine, and what a server that listens to the network exposes.

A web page in the user's browser can send requests to 127.0.0.1: a form posts across origins without
asking (CSRF), and a name of the page's own that resolves to 127.0.0.1 makes it the same origin (DNS
rebinding). Three rules, for every server:

    a server bound to this host answers only to names of this host            (a rebound name is
        refused)
    nothing but GET and HEAD is done for a page of another origin             (Origin,
        Sec-Fetch-Site)
    /_labkit/* is for this host alone; what changes it carries X-Labkit or JSON, which a form cannot
        send

    Guard("127.0.0.1").check(request)                    # raises BadMessage with 403
    warn(exposure("0.0.0.0", "its models", "--read-only"))      # "" for a loopback address

No rule asks who the user is: whoever has an account on the machine may ask. Source: the Fetch
standard (simple requests, Sec-Fetch-Site). Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import ipaddress
import sys
from collections.abc import Mapping

from labkit.errors import BadInput
from labkit.net.head import BadMessage
from labkit.net.message import Request

#: What the lab's own clients send to `/_labkit/*`.
CONTROL = {"X-Labkit": "control"}
CONTROL_PATH = "/_labkit/"
_READS = ("GET", "HEAD")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def is_loopback(host: str) -> bool:
    """An address or name to listen on that only this host can reach."""
    address = _address(host.strip("[]"))
    return address.is_loopback if address else host.lower().rstrip(".") == "localhost"


def host_of(netloc: str) -> str:
    """The name in a Host header, without its port."""
    if netloc.startswith("["):
        return netloc[1:].partition("]")[0]
    return netloc.partition(":")[0].lower().rstrip(".")


class Guard:
    """The rules of one server, for the address it was asked to listen on."""

    def __init__(self, host: str):
        self.host, self.loopback = host.lower(), is_loopback(host)

    def _is_ours(self, netloc: str) -> bool:
        """A name no stranger can point at this host: an address, localhost, or the name this server
        was given."""
        name = host_of(netloc)
        return (
            not name
            or _address(name) is not None
            or name == "localhost"
            or name.endswith(".localhost")
            or name == self.host
        )

    def check(self, request: Request, here: str = "") -> None:
        """`here`: this end's address of the connection. Raises BadMessage."""
        control, host = request.path.startswith(CONTROL_PATH), request.header("host")
        if (self.loopback or control) and not self._is_ours(host):
            raise BadMessage(
                f"this server is not called {host_of(host)[:100]!r}: ask it by its address", 403
            )
        if request.method not in _READS and foreign(request.headers):
            raise BadMessage("nothing is changed for a page of another origin", 403)
        if control and request.method not in _READS:
            if not (is_loopback(request.peer) or request.peer in ("", here)):
                raise BadMessage("this is for the host itself", 403)
            if "x-labkit" not in request.headers and not _is_json(request.header("content-type")):
                raise BadMessage("send X-Labkit: control, or Content-Type: application/json", 403)


def foreign(headers: Mapping[str, str]) -> bool:
    """Whether a browser says that another origin's page asks. Programs send neither header."""
    if headers.get("sec-fetch-site", "none").lower() not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.lower() not in {
        f"{scheme}://{headers.get('host', '').lower()}" for scheme in ("http", "https")
    }


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip(" \t").lower() == "application/json"


def exposure(host: str, exposed: str, fix: str) -> str:
    """Three lines for whoever starts a server that others can reach; "" where only this host can.
    `exposed` is open to them, `fix` closes it."""
    if is_loopback(host):
        return ""
    whom = (
        "every network this host is in"
        if not host or ((address := _address(host)) and address.is_unspecified)
        else f"the network of {host}"
    )
    return str(
        BadInput(
            f"warning: listening on {host}: {exposed}, to {whom}, unencrypted",
            why="nobody is asked who they are",
            fix=(f"{fix}; or " if fix else "")
            + "keep --host 127.0.0.1 and reach it by: ssh -L PORT:127.0.0.1:PORT THIS-HOST",
        )
    )


def warn(text: str) -> None:
    if text:
        print(text, file=sys.stderr, flush=True)

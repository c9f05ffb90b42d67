"""Login to a registry that asks for it: Bearer tokens and Basic, as the distribution spec's clients
do.

A registry answers 401 with a challenge; the client fetches a token from the realm it names –
anonymously, or with the user's stored credentials – and asks again. Cost: one round trip to the
realm for each repository, once a token's life.

    with Client(login=Login()) as client:                # what Client() does by itself
        client.ask("GET", "https://ghcr.io/v2/team/image/manifests/latest")

A challenge comes from the other side, so it decides nothing alone: credentials go to another host
only where the registry itself was reached over TLS and the realm is too; the scope is the one the
request needs, not the one that was asked for; a token is sent to nobody but the registry. Source:
distribution spec, "Token Authentication"; RFC 9110 §11. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from labkit.errors import LabError, TransferError
from labkit.net.place import Place, split

if TYPE_CHECKING:
    from labkit.net.credentials import Credentials

CLIENT_ID = "labkit"
TOKEN_LIMIT_BYTES = 1 << 20
_REPOSITORY = re.compile(r"/v2/(.+)/(?:manifests|blobs|tags|referrers)/")
_SAFE = re.compile(r"[\x21-\x7e]+\Z")
_TOKEN = re.compile(r"\s*,?\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_PARAM = re.compile(
    r"\s*,?\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)\s*=\s*(?:\"((?:[^\"\\]|\\.)*)\"|([^\s,\"]+))"
)

#: (method, URL, headers, body) -> body of the answer. Raises LabError.
Ask = Callable[[str, str, dict[str, str], bytes], bytes]


def stored(netloc: str, repository: str) -> Credentials | None:
    """What the user has stored. Imported only now: nearly no client is ever asked."""
    from labkit.net.credentials import credentials

    return credentials(netloc, repository)


def challenges(header: str) -> dict[str, dict[str, str]]:
    """`WWW-Authenticate` as {scheme: {parameter: value}}, names in lower case; the first of a
    scheme counts."""
    found: dict[str, dict[str, str]] = {}
    at = 0
    current: dict[str, str] | None = None
    while at < len(header):
        if current is not None and (pair := _PARAM.match(header, at)):
            value = re.sub(r"\\(.)", r"\1", pair[2]) if pair[2] is not None else pair[3]
            current.setdefault(pair[1].lower(), value)
            at = pair.end()
        elif scheme := _TOKEN.match(header, at):
            current = found.setdefault(scheme[1].lower(), {})
            at = scheme.end()
        else:
            break
    return found


class Login:
    """What the registries of one client have asked for so far. Thread-safe."""

    def __init__(self, find: Callable[[str, str], Credentials | None] = stored):
        self._find = find
        self._held: dict[tuple[Place, str], str] = {}  # (registry, repository) -> Authorization
        self._lock = threading.Lock()

    def headers(self, method: str, url: str) -> dict[str, str]:
        """`Authorization` for a URL of a registry that has asked for one; {} for everything
        else."""
        key = _about(url)
        held = self._held.get(key) if key else None
        return {"Authorization": held} if held and method in ("GET", "HEAD") else {}

    def answer(self, url: str, challenge: str, refused: str, ask: Ask) -> bool:
        """After a 401: whether another attempt is worth it. `refused`: the Authorization that was
        refused, if there was one.

        Raises TransferError for a realm that may not be asked, or that gives no token."""
        key = _about(url)
        if key is None:
            return False
        with self._lock:
            held = self._held.get(key)
            if held is not None and held != refused:
                return True  # another thread got a new one meanwhile
            header = self._authorization(*key, challenges(challenge), ask)
            if header is None or header == refused:
                return False
            self._held[key] = header
            return True

    def _authorization(
        self, registry: Place, repository: str, offered: dict[str, dict[str, str]], ask: Ask
    ) -> str | None:
        found = self._find(registry.netloc, repository)
        bearer = offered.get("bearer", {})
        if bearer.get("realm"):
            if found and found.bearer:
                return "Bearer " + _safe(found.bearer, registry.netloc)
            return "Bearer " + _token(registry, repository, bearer, found, ask)
        if "basic" in offered and found and found.user:
            return found.basic
        return None


def _about(url: str) -> tuple[Place, str] | None:
    """(registry, repository) of a URL of the distribution API; None for any other."""
    place, target = split(url)
    found = _REPOSITORY.match(target)
    return (place, found[1]) if found else None


def _token(
    registry: Place, repository: str, bearer: dict[str, str], found: Credentials | None, ask: Ask
) -> str:
    realm = bearer["realm"]
    _check(realm, registry, found)
    fields = {"service": bearer["service"]} if bearer.get("service") else {}
    fields["scope"] = f"repository:{repository}:pull"
    try:
        if found and found.refresh:
            body = urlencode(
                {
                    **fields,
                    "grant_type": "refresh_token",
                    "client_id": CLIENT_ID,
                    "refresh_token": found.refresh,
                }
            ).encode()
            raw = ask("POST", realm, {"Content-Type": "application/x-www-form-urlencoded"}, body)
        else:
            headers = {"Authorization": found.basic} if found else {}
            raw = ask(
                "GET", realm + ("&" if "?" in realm else "?") + urlencode(fields), headers, b""
            )
        doc = json.loads(raw)
        token = doc.get("token") or doc.get("access_token")
        if not isinstance(token, str):
            raise ValueError("it holds no token")
    except LabError as error:
        who = (
            f"the credentials stored for {registry.netloc}"
            if found
            else "nobody's name: none are stored for it"
        )
        raise TransferError(
            f"{registry.netloc} wants a login, and {split(realm)[0].netloc} gave no token:"
            f" {error.what}",
            why=f"asked in {who}",
            fix=_fix(registry),
        ) from None
    except (ValueError, AttributeError) as error:
        raise TransferError(
            f"{registry.netloc} wants a login, and {split(realm)[0].netloc} answered with no token:"
            f" {error}",
            fix=_fix(registry),
        ) from None
    _learn(token)
    return _safe(token, split(realm)[0].netloc)


def _check(realm: str, registry: Place, found: Credentials | None) -> None:
    """Refuse a realm that could not be trusted with what it would be sent, or with the token it
    would send back."""
    try:
        place = split(realm)[0]
        if (
            "@" in realm.split("//", 1)[-1].split("/", 1)[0]
            or "#" in realm
            or not _SAFE.match(realm)
        ):
            raise ValueError("user, fragment or control characters in it")
    except ValueError as error:
        raise TransferError(
            f"{registry.netloc} names no realm that can be asked for a token:"
            f" {_shown(realm)[:100]!r}",
            why=str(error),
        ) from None
    same = place.host == registry.host
    if registry.scheme == "https" and place.scheme != "https":
        raise TransferError(
            f"{registry.netloc} sends its clients to {place.netloc} without TLS",
            why="whoever is on the way could read or forge the token",
            fix="nothing was sent; tell whoever runs the registry",
        )
    if found and registry.scheme != "https" and not same:
        raise TransferError(
            f"{registry.netloc}, reached without TLS, asks to send its credentials to"
            f" {place.netloc}",
            why="whoever is on the way could have put that name there; nothing was sent",
            fix=f"write the reference with https://, or log out: podman logout {registry.netloc}",
        )


def _learn(token: str) -> None:
    from labkit.core import secrets  # as `stored`: nearly no client is ever asked

    secrets.learn(token)


def _shown(realm: str) -> str:
    from labkit.core import secrets

    return secrets.mask(realm)


def _safe(token: str, sender: str) -> str:
    """A token becomes a header: nothing that could end it may be in it."""
    if not _SAFE.match(token):
        raise TransferError(
            f"{sender} sent a token with characters that no token has",
            why="it would become a header of the next request",
        )
    return token


def _fix(registry: Place) -> str:
    return (
        f"podman login {registry.netloc} (or docker login), or name the file with"
        " REGISTRY_AUTH_FILE"
    )

"""The registry credentials that a user has stored for docker or podman, found for one registry and
repository.

    found = credentials("ghcr.io", "team/image")     # Credentials(user, password) |
        Credentials(refresh=…) | None

Read in podman's order, then docker's: $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
~/.config/containers/auth.json, $DOCKER_CONFIG/config.json or ~/.docker/config.json. An entry may
name a registry or, as podman's may, a namespace of it; the most specific one wins. Credential
helpers (`docker-credential-NAME get`) are asked where a file names them. Nothing is read before a
registry has asked for a login. Format: containers-auth.json(5). Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.core import secrets
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

HELPER_TIMEOUT_S = 30
LIMIT_BYTES = 4 << 20
#: Docker Hub is reached under one name and logged into under another.
HUB = ("registry-1.docker.io", "index.docker.io", "docker.io")
_HUB_KEYS = ("docker.io", "https://index.docker.io/v1/", "index.docker.io", "registry-1.docker.io")
_HELPER = re.compile(r"[A-Za-z0-9_.-]+\Z")


@dataclass(frozen=True)
class Credentials:
    """User and password, or a refresh token (`identitytoken`), or a ready bearer token
    (`registrytoken`)."""

    user: str = ""
    password: str = ""
    refresh: str = ""
    bearer: str = ""

    def __post_init__(self) -> None:
        secrets.learn(self.password, self.refresh, self.bearer)

    @property
    def basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"Credentials({self.user!r}, …)"  # never in a log or a traceback


def auth_files(env: Mapping[str, str] = os.environ) -> list[Path]:
    """Where credentials are looked for, in order. Naming one in the environment leaves only that
    one."""
    if env.get("REGISTRY_AUTH_FILE"):
        return [Path(env["REGISTRY_AUTH_FILE"])]
    home = Path(env.get("HOME") or "/")
    paths = (
        [Path(env["XDG_RUNTIME_DIR"]) / "containers/auth.json"]
        if env.get("XDG_RUNTIME_DIR")
        else []
    )
    paths.append(Path(env.get("XDG_CONFIG_HOME") or home / ".config") / "containers/auth.json")
    paths.append(Path(env.get("DOCKER_CONFIG") or home / ".docker") / "config.json")
    return paths


def credentials(
    netloc: str, repository: str = "", env: Mapping[str, str] = os.environ
) -> Credentials | None:
    """Of the first file that has any for `netloc` (host, with its port where it is not the scheme's
    own). Raises BadInput."""
    for path in auth_files(env):
        doc = _read(path)
        helpers = doc.get("credHelpers") or {}
        for key in _keys(netloc, repository):
            entry = (doc.get("auths") or {}).get(key)
            found = _of_entry(entry, path, key) if isinstance(entry, dict) else None
            if found is None and (helper := helpers.get(key)):
                found = _of_helper(helper, key)
            if found is not None:
                return found
        if doc.get("credsStore"):
            for key in _HUB_KEYS[1:2] if netloc in HUB else (netloc, f"https://{netloc}"):
                if found := _of_helper(doc["credsStore"], key):
                    return found
    return None


def _read(path: Path) -> JsonObject:
    try:
        if path.stat().st_size > LIMIT_BYTES:
            raise BadInput(f"{path} is too large for credentials")
        doc = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise BadInput(
            f"the credentials in {path} cannot be read: {error}",
            fix="podman login REGISTRY, or docker login REGISTRY, writes it anew",
        ) from None
    sound = isinstance(doc, dict) and all(
        isinstance(doc.get(k) or {}, dict) for k in ("auths", "credHelpers")
    )
    if not sound:
        raise BadInput(
            f"{path} is no file of registry credentials",
            fix="podman login REGISTRY, or docker login REGISTRY, writes it anew",
        )
    return doc


def _keys(netloc: str, repository: str) -> Iterator[str]:
    """The names an entry may have, the most specific first."""
    hosts = _HUB_KEYS if netloc in HUB else (netloc,)
    parts = repository.split("/") if repository else []
    for depth in range(len(parts), -1, -1):
        for host in hosts:
            yield "/".join([host.rstrip("/"), *parts[:depth]]) if depth else host
    if netloc not in HUB:  # docker stored whole URLs once
        yield from (
            f"https://{netloc}",
            f"https://{netloc}/v1/",
            f"https://{netloc}/v2/",
            f"http://{netloc}",
        )


def _of_entry(entry: JsonObject, path: Path, key: str) -> Credentials | None:
    if entry.get("registrytoken"):
        return Credentials(bearer=str(entry["registrytoken"]))
    if entry.get("identitytoken"):
        return Credentials(refresh=str(entry["identitytoken"]))
    if entry.get("auth"):
        try:
            user, colon, password = (
                base64.b64decode(str(entry["auth"]), validate=True).decode().partition(":")
            )
        except (binascii.Error, ValueError):
            colon = ""
        if not colon:
            raise BadInput(
                f"{path}: the entry of {key} is no base64 of user:password",
                fix=f"podman login {key}",
            )
        return Credentials(user, password.rstrip("\0"))
    if entry.get("username"):
        return Credentials(str(entry["username"]), str(entry.get("password", "")))
    return None  # docker leaves an empty entry where a helper holds the secret


def _of_helper(helper: object, key: str) -> Credentials | None:
    """What `docker-credential-HELPER get` says; None where it has nothing."""
    if not isinstance(helper, str) or not _HELPER.match(helper):
        raise BadInput(
            f"no name of a credential helper: {secrets.mask(str(helper))[:80]!r}",
            why="it would become a program to run",
        )
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=key,
            capture_output=True,
            text=True,
            timeout=HELPER_TIMEOUT_S,
        )
        doc = json.loads(done.stdout) if done.returncode == 0 else {}
        user, secret = str(doc["Username"]), str(doc["Secret"])
    except (OSError, subprocess.TimeoutExpired, ValueError, KeyError, TypeError):
        return None
    return Credentials(refresh=secret) if user == "<token>" else Credentials(user, secret)

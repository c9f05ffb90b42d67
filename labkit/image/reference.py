"""Names of images as people write them: where it is, its name, a tag, a digest, or both.

    parse_reference("http://127.0.0.1:5000/lab/subject:v1@sha256:…").target     # the digest wins

The grammar is that of the distribution specification and of containerd and docker (`distribution/
reference`); a registry is written with its scheme, as the lab never guesses between http and
https. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import re
from dataclasses import dataclass

from labkit.errors import BadInput
from labkit.image.oci import check_digest

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
NAME = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
NAME_LIMIT = 255


@dataclass(frozen=True)
class Reference:
    """Where an image is: `base` (scheme://host:port of a registry, or "" for a local name),
    repository name, tag (may be "" beside a digest), digest (or "")."""

    base: str
    name: str
    tag: str = ""
    digest: str = ""

    @property
    def target(self) -> str:
        """What to ask the registry for. A digest beside a tag is what is meant."""
        return self.digest or self.tag

    @property
    def local(self) -> str:
        """The name it has in a layout: NAME:TAG, or NAME for what only a digest names."""
        return f"{self.name}:{self.tag}" if self.tag else self.name

    def __str__(self) -> str:
        return (
            (self.base + "/" if self.base else "")
            + self.local
            + (f"@{self.digest}" if self.digest else "")
        )

    @property
    def host(self) -> str:
        return self.base.partition("://")[2]


def parse_reference(text: str) -> Reference:
    """`http://127.0.0.1:5000/lab/subject:latest`, `lab/subject`, `lab/subject@sha256:…`,
    `lab/subject:v1@sha256:…`. The tag defaults to `latest` where no digest is given."""
    with_host = "://" not in text and ":" in text.partition("/")[0] and "/" in text
    refused = BadInput(
        f"not an image reference: {text!r}",
        why=(
            "a registry is named with its scheme"
            if with_host
            else "repository names are lower case, tags have no slash"
        ),
        fix="write it like http://" + (text if with_host else "127.0.0.1:5000/lab/subject:latest"),
    )
    base, rest = "", text
    if "://" in text:
        scheme, _, after = text.partition("://")
        host, slash, rest = after.partition("/")
        if scheme.lower() not in ("http", "https") or not host or not slash:
            raise refused
        base = f"{scheme.lower()}://{host}"
    named, at, digest = rest.partition("@")
    if at:
        check_digest(digest)
    name, colon, tag = named.partition(":")
    if not colon and not at:
        tag = "latest"
    if not NAME.fullmatch(name) or len(name) > NAME_LIMIT:
        raise refused
    if (colon or not at) and not TAG.fullmatch(tag):
        raise refused
    return Reference(base, name, tag, digest)

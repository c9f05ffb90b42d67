"""Where a model is: a directory of this host, `http(s)://…`, or `s3://bucket/prefix` and `gs://…`
as the environment says.

Only the small files (config, tokenizer, index) are read here; weights are the loader's matter.
Objects of a bucket are fetched with path-style GETs, signed where the environment has keys for it.

    read_small("s3://lab/models/tiny-safetensors", "config.json")

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import os
from pathlib import Path

from labkit.errors import BadInput

LIMIT_BYTES = 256 << 20  # no tokenizer or index is larger; what is, is not one


def is_remote(source: str | os.PathLike[str]) -> bool:
    return str(source).startswith(("http://", "https://", "s3://", "gs://"))


def url_of(source: str | os.PathLike[str], name: str) -> str:
    """The URL of one file of a remote model."""
    text = str(source).rstrip("/")
    if text.startswith(("s3://", "gs://")):
        from labkit.objects.access import http_of

        text = http_of(text, os.environ)
    return f"{text}/{name}"


def read_small(source: str | os.PathLike[str], name: str) -> bytes:
    """The bytes of a small file of the model. Raises BadInput."""
    if is_remote(source):
        return _fetch(url_of(source, name), str(source).partition("://")[0])
    path = Path(source) / name
    try:
        with open(path, "rb") as opened:
            data = opened.read(LIMIT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        raise BadInput(
            f"{path}: no such file",
            why=f"a model directory holds {name}",
            fix="labkit model make --preset tiny DIR, or give the directory of a public model",
        ) from None
    except OSError as error:
        raise BadInput(
            f"{path}: {error.strerror}",
            why="the model cannot be read",
            fix="check the path and its permissions",
        ) from None
    return _bounded(data, str(path))


def _fetch(url: str, scheme: str) -> bytes:
    # Only remote starts pay for this import (ssl, email, http.client).
    import http.client
    import urllib.error
    import urllib.request

    from labkit.objects.access import authorizer

    authorize = authorizer(scheme, os.environ) if scheme in ("s3", "gs") else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=authorize("GET", url, {}) if authorize else {}),
            timeout=60,
        ) as reply:
            return _bounded(reply.read(LIMIT_BYTES + 1), url)
    except urllib.error.HTTPError as error:
        raise BadInput(
            f"{url}: the store answered {error.code}",
            why="the model cannot be read from there",
            fix="check the bucket and prefix",
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise BadInput(
            f"{url}: {error}",
            why="the store did not answer",
            fix="check that it runs and that the URL is right",
        ) from None


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > LIMIT_BYTES:
        raise BadInput(
            f"{where}: more than {LIMIT_BYTES >> 20} MiB",
            why="this is no config, tokenizer or index",
            fix="check the file",
        )
    return data

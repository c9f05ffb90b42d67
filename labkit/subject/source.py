"""Where a model is: a directory of this host, `http(s)://…`, or `s3://bucket/prefix` and `gs://…`
as the environment says.

Only the small files (config, tokenizer, index) are read here; weights are the loader's matter.
Objects of a bucket are fetched with path-style GETs, signed where the environment has keys for it.

    read_small("s3://lab/models/tiny-safetensors", "config.json")

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from labkit.errors import BadInput

LIMIT_BYTES = 256 << 20  # no tokenizer or index is larger; what is, is not one


class NotInStore(BadInput):
    """There is no such object, or it is not this reader's to know."""


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
        return _fetch(source, name)
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


def read_with(
    source: str | os.PathLike[str], name: str, optional: str
) -> tuple[bytes, bytes | None]:
    """A small file and one that may not be there (None). A store is asked for both at once. Raises
    BadInput."""
    if not is_remote(source):
        there = (Path(source) / optional).is_file()
        return read_small(source, name), read_small(source, optional) if there else None
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as beside:
        second = beside.submit(read_optional, source, optional)
        return _fetch(source, name), second.result()


def read_optional(source: str | os.PathLike[str], name: str) -> bytes | None:
    """A small file of a store; None where there is none. Raises BadInput."""
    try:
        return _fetch(source, name)
    except NotInStore:
        return None


def read_start(source: str | os.PathLike[str], name: str, count: int) -> tuple[bytes, int]:
    """The first bytes of an object of a store, and its size. Raises BadInput."""
    whole = 0

    def keep_size(headers: Mapping[str, str]) -> None:
        nonlocal whole
        total = headers.get("Content-Range", "").rpartition("/")[2]
        whole = int(total if total.isdigit() else headers.get("Content-Length", 0))

    data = _fetch(source, name, f"bytes=0-{count - 1}", count, keep_size)
    return data[:count], whole


def _fetch(
    source: str | os.PathLike[str],
    name: str,
    byte_range: str = "",
    limit_bytes: int = LIMIT_BYTES + 1,
    look_at: Callable[[Mapping[str, str]], None] = lambda headers: None,
) -> bytes:
    url, scheme = url_of(source, name), str(source).partition("://")[0]
    # Only remote starts pay for this import (ssl, email, http.client).
    import http.client
    import urllib.error
    import urllib.request

    from labkit.objects.access import authorizer

    authorize = authorizer(scheme, os.environ) if scheme in ("s3", "gs") else None
    headers = {"Range": byte_range} if byte_range else {}
    if authorize:
        headers |= authorize("GET", url, headers)
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=60
        ) as reply:
            look_at(reply.headers)
            return _bounded(reply.read(limit_bytes), url)
    except urllib.error.HTTPError as error:
        # 403 is also what a bucket says of a missing key to whoever may not list it
        raise (NotInStore if error.code in (403, 404) else BadInput)(
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

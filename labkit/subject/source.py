"""Where a model is: a directory of this host, `http(s)://…`, or `s3://bucket/prefix` and `gs://…`
as the environment says.

Only the small files (config, tokenizer, index) are read here; weights are the loader's matter.
Objects are fetched as `labkit.objects.prefix` does.

    read_small("s3://lab/models/tiny-safetensors", "config.json")

Lesson: notebooks/05_streaming.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from labkit.errors import BadInput, TransferError

if TYPE_CHECKING:
    from labkit.objects.prefix import Prefix

T = TypeVar("T")

LIMIT_BYTES = 256 << 20  # no tokenizer or index is larger; what is, is not one


def is_remote(source: str | os.PathLike[str]) -> bool:
    return str(source).startswith(("http://", "https://", "s3://", "gs://"))


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
    return _of_store(source, lambda prefix: prefix.read(name, LIMIT_BYTES))


def read_start(source: str | os.PathLike[str], name: str, count: int) -> tuple[bytes, int]:
    """The first bytes of an object of a store, and its size. Raises BadInput."""
    return _there(source, name, _of_store(source, lambda prefix: prefix.start(name, count)))


def _fetch(source: str | os.PathLike[str], name: str) -> bytes:
    return _there(source, name, read_optional(source, name))


def _of_store(source: str | os.PathLike[str], read: Callable[[Prefix], T]) -> T:
    from labkit.objects.prefix import open_prefix  # only remote starts pay for this import

    try:
        return read(open_prefix(str(source), os.environ))
    except TransferError as error:
        raise BadInput(
            error.what, error.why, error.fix or "check that the store runs and the URL is right"
        ) from None


def _there(source: str | os.PathLike[str], name: str, found: T | None) -> T:
    if found is None:
        raise BadInput(
            f"{source}/{name} is not there, or these keys may not read it",
            why="S3 tells the two apart only for keys that may list the bucket",
            fix="check bucket, prefix and keys",
        )
    return found


def _bounded(data: bytes, where: str) -> bytes:
    if len(data) > LIMIT_BYTES:
        raise BadInput(
            f"{where}: more than {LIMIT_BYTES >> 20} MiB",
            why="this is no config, tokenizer or index",
            fix="check the file",
        )
    return data

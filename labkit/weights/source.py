"""Where a checkpoint is: a local directory, or a prefix in a bucket. What every loader asks first.

    source = open_source("s3://lab/models/small-pickle")   # endpoint and keys: the environment's;
        path-style
    source.shards("pickle")                                 # ["pytorch_model-00001-of-00002.bin",
        …]
    source.url("config.json")                               #
        http://127.0.0.1:9000/lab/models/small-pickle/config.json

A checkpoint directory holds one file, or shards with an index, under the public names of the
format: `labkit.formats.weight_files` chooses. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.errors import BadInput
from labkit.formats import weight_files
from labkit.formats.weight_files import LAYOUT

if TYPE_CHECKING:
    from labkit.net.client import Client
    from labkit.objects.prefix import Prefix

SCHEMES = ("s3", "gs", "http", "https")
MAX_INDEX_BYTES = 64 << 20


@dataclass(frozen=True)
class CheckpointSource:
    """`root`: a directory, or a URL prefix with one of `SCHEMES`. `prefix`: how that is asked,
    None for a directory."""

    root: str
    prefix: Prefix | None = field(default=None, compare=False)

    @property
    def remote(self) -> bool:
        return self.prefix is not None

    @property
    def asked(self) -> Prefix:
        """Of a remote source only."""
        assert self.prefix is not None, f"{self.root} is a directory"
        return self.prefix

    def client(self) -> Client:
        """For the URLs of this source."""
        return self.asked.client()

    def path(self, name: str) -> Path:
        return Path(self.root) / name

    def url(self, name: str) -> str:
        return self.asked.url(name)

    def address(self, name: str) -> str:
        """The name in the source's own terms: a path, or s3://bucket/key."""
        return f"{self.root}/{name}" if self.remote else str(self.path(name))

    def read(self, name: str, limit_bytes: int = MAX_INDEX_BYTES) -> bytes | None:
        """A small file whole, or None if there is none. Raises BadInput above the limit."""
        if self.prefix is not None:
            return self.prefix.read(name, limit_bytes)
        try:
            with open(self.path(name), "rb") as file:
                data = file.read(limit_bytes + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if len(data) > limit_bytes:
            raise BadInput(
                f"{name}: more than {limit_bytes} bytes",
                why="a file of this kind is small; this one is damaged or forged",
            )
        return data

    def exists(self, name: str) -> bool:
        if self.prefix is not None:
            return self.prefix.exists(name)
        return self.path(name).is_file()

    def shards(self, format: str) -> list[str]:
        """File names of the checkpoint in this format, in the order in which they are read. Raises
        BadInput if there are none, or one of a local directory is missing."""
        if not self.remote:
            return list(weight_files.local(self.root, format).names)
        from concurrent.futures import ThreadPoolExecutor

        single, index = LAYOUT[format]
        with ThreadPoolExecutor(2) as askers:  # a round trip each
            alone, raw = (
                askers.submit(self.exists, single),
                askers.submit(self.read, index) if index else None,
            )
            found = weight_files.choose(
                format,
                lambda _: alone.result(),
                lambda _: raw.result() if raw else None,
                self.root,
            )
        if found is None:
            raise BadInput(
                f"no {format} checkpoint at {self.root}",
                why=f"neither {single} nor {index or 'an index'} is there, or these keys may not"
                " read it",
                fix=f"labkit model convert DIR --to {format} OUT",
            )
        return list(found.names)


def open_source(
    source: str | os.PathLike[str], env: Mapping[str, str] = os.environ
) -> CheckpointSource:
    """`s3://` and `gs://` resolve to endpoint and keys of the environment; a path must exist.
    Raises BadInput."""
    text = os.fspath(source)
    scheme, separator, _rest = text.partition("://")
    if not separator:
        if not os.path.isdir(text):
            raise BadInput(f"no model directory {text}", fix="labkit model make --preset small DIR")
        return CheckpointSource(text.rstrip("/") or "/")
    if scheme in SCHEMES:
        from labkit.objects.prefix import open_prefix

        return CheckpointSource(text.rstrip("/"), open_prefix(text, env))
    raise BadInput(
        f"{text}: cannot read {scheme}://",
        fix="a directory, or one of " + ", ".join(s + "://" for s in SCHEMES),
    )

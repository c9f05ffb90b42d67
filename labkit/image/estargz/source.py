"""Any tar layer as a list of members and a file to read their bytes from: reordering needs random
access.

A layer is decompressed once into a spool (a file without a name in the output's directory), as
prioritised files go first. Limit: one thread of decompression, then the spool's disk. Sparse
members of GNU tar are written out in full, as the format's other readers do; an expansion over
`limit_bytes` is refused.

    with spool(chunks, directory) as layer:
        layer.members[0].member.name ; layer.read(offset, size)

Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from labkit.errors import BadInput
from labkit.image.tar import Member, TarReader

LIMIT_BYTES = 64 << 30


@dataclass(frozen=True)
class Placed:
    """A member and where its bytes are in the spool."""

    member: Member
    offset: int


@dataclass
class Spool:
    fd: int
    members: list[Placed]
    size_bytes: int

    def read(self, offset: int, size: int) -> bytes:
        return os.pread(self.fd, size, offset)


@contextmanager
def spool(
    chunks: Iterable[bytes], directory: str | Path, limit_bytes: int = LIMIT_BYTES
) -> Iterator[Spool]:
    """Raises BadInput for what is no sound tar stream or expands beyond the limit."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        written = 0

        def spooled() -> Iterator[bytes]:
            nonlocal written
            for chunk in stream:
                written += len(chunk)
                if written > limit_bytes:
                    raise BadInput(
                        f"the layer expands to more than {limit_bytes} bytes",
                        why="a decompression bomb, or a layer for another host",
                    )
                rest = memoryview(chunk)
                while rest:
                    rest = rest[file.write(rest) :]
                yield chunk

        stream = iter(chunks)
        both = spooled()
        reader = TarReader(both)
        try:
            members = [Placed(m, reader.offset) for m in reader]
        except BadInput as bad:
            if "sparse" not in bad.what:
                raise
            for _ in both:
                pass
            with _densified(file, directory, limit_bytes) as dense:
                yield dense
            return
        yield Spool(file.fileno(), members, written)


@contextmanager
def _densified(file: IO[bytes], directory: str | Path, limit_bytes: int) -> Iterator[Spool]:
    """The same archive with its sparse members written out, through tarfile, which knows every
    variant of them."""
    with tempfile.TemporaryFile(dir=directory, buffering=0) as out:
        file.seek(0)
        try:
            with (
                tarfile.open(fileobj=file, mode="r:", errorlevel=2) as source,
                tarfile.open(fileobj=out, mode="w:", format=tarfile.PAX_FORMAT) as target,
            ):
                total = 0
                for info in source:
                    total += info.size if info.isreg() or info.issparse() else 0
                    if total > limit_bytes:
                        raise BadInput(
                            f"the layer's sparse files expand to more than {limit_bytes} bytes",
                            why="a decompression bomb",
                        )
                    plain = source.extractfile(info) if info.isreg() or info.issparse() else None
                    info.sparse = None
                    info.type = tarfile.REGTYPE if plain else info.type
                    info.pax_headers = {
                        k: v
                        for k, v in info.pax_headers.items()
                        if not k.startswith("GNU.sparse") and k not in ("size", "path")
                    }
                    target.addfile(info, plain)
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as bad:
            raise BadInput(
                f"layer is not a sound tar stream: {bad}", why="a corrupt or forged sparse member"
            ) from None
        out.seek(0)
        reader = TarReader(iter(lambda: out.read(1 << 20), b""))
        yield Spool(
            out.fileno(), [Placed(m, reader.offset) for m in reader], os.fstat(out.fileno()).st_size
        )

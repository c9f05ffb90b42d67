"""Files out of an eStargz blob in memory, read as a mount does: by the TOC, each chunk verified."""

from __future__ import annotations

from labkit.image.estargz import reader
from labkit.image.estargz.toc import Toc


def toc_of(blob: bytes, toc_digest: str) -> Toc:
    return reader.read_toc(lambda at, size: blob[at : at + size], len(blob), toc_digest)


def read_file(blob: bytes, toc: Toc, name: str) -> bytes:
    """A file's bytes, through hard links."""
    entry = next(e for e in toc.entries if e.name == name)
    if entry.kind == "hardlink":
        return read_file(blob, toc, entry.link)
    return b"".join(reader.verify(c, blob[c.start : c.end]) for c in entry.chunks)

"""What lies in the place of a weight file: a pointer of Git LFS, a page or an error that a server
answered with. Downloads that went wrong look like damage until somebody reads their first line.

    raise instead_of_weights(path) or BadInput(…)       # None where it is none of these
    with refusing(path):                                # whatever a format's library raises
        tensors = load_file(path)

Limit: the file's first 512 bytes, and only once something else refused it. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from labkit.errors import BadInput, LabError

_NOTHING_LOADED = "nothing was loaded from it"


def instead_of_weights(path: str | os.PathLike[str]) -> BadInput | None:
    """The error that says so, or None where the file is something else."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError:
        return None
    start = head.lstrip().lower()
    if not head:
        return BadInput(
            f"{path}: an empty file",
            why="its download never began, or the disk was full",
            fix="fetch it again",
        )
    if start.startswith(b"version https://git-lfs.github.com/spec/"):
        return BadInput(
            f"{path}: a pointer of Git LFS, not the file that it stands for",
            why="the repository was cloned without git-lfs",
            fix="git lfs pull, or hf download REPOSITORY",
        )
    if start.startswith((b"<!doctype html", b"<html")):
        return BadInput(
            f"{path}: a web page",
            why=f"a browser's address was fetched, or a login was asked for; {_NOTHING_LOADED}",
            fix="fetch it again from /resolve/, with the model's own client",
        )
    if start.startswith((b"<?xml", b'{"error"')):
        return BadInput(
            f"{path}: a server's error message",
            why=f"{head[:120].decode('utf-8', 'replace')!r}; {_NOTHING_LOADED}",
            fix="fetch it again",
        )
    return None


@contextmanager
def refusing(*paths: str | os.PathLike[str]) -> Iterator[None]:
    """Whatever a format's library raises on a damaged file, as BadInput with its first line.
    `paths`: the files that are read within, or where they are from."""
    try:
        yield
    except (LabError, KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except Exception as error:
        for path in paths:
            if instead := instead_of_weights(path):
                raise instead from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{paths[0]} cannot be loaded: {reason[:300]}",
            why="truncated, corrupt, or a pickle that would run code: nothing of it was run",
            fix=f"labkit model inspect {paths[0]}",
        ) from error

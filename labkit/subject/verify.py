"""Does a checkpoint hold what it should? Every tensor's bytes against `digests.json`, whatever the
format.

    report = verify("DIR")      # {"tensors": 57, "wrong": [], …}

Digests are of the tensor's little-endian bytes, so a converted checkpoint carries the same ones.
Two threads hash at the speed of SHA-256 (about 1.5 GB/s a core with SHA instructions). Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.checkpoint import DIGESTS
from labkit.subject.directory import Directory, Stored, open_directory

PIECE_BYTES = 8 << 20


def read_digests(directory: Path) -> dict[str, JsonObject]:
    """name -> {"sha256", "shape", "dtype", "file"}. Raises BadInput."""
    file = directory / DIGESTS
    try:
        doc = json.loads(file.read_text())
        tensors = doc["tensors"]
        # no assert: python -O leaves those out
        if not (
            isinstance(tensors, dict)
            and all(isinstance(t["sha256"], str) for t in tensors.values())
        ):
            raise TypeError("tensors")
    except FileNotFoundError:
        raise BadInput(
            f"{file}: no such file",
            why=(
                "without digests only headers and shapes can be checked (they were, and are in"
                " order)"
            ),
            fix="labkit model make writes them; a public model's own checksums are on its page",
        ) from None
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{file}: not a digest file ({type(error).__name__})",
            fix="make or convert the checkpoint again",
        ) from None
    return tensors


def verify(directory: str | os.PathLike[str]) -> JsonObject:
    """Check headers, index, config and every digest. Returns {"tensors", "bytes", "wrong":
    [{tensor, file, what}]}. Raises BadInput when the directory is so broken that tensors cannot be
    told apart."""
    where = open_directory(directory)
    expected = read_digests(where.path)
    found: dict[str, tuple[str, str, int]] = {}
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1), "verify") as pool:
        work = (
            pool.map(_of_safetensors, where.tensors.items())
            if where.format == "safetensors"
            else _of_pickles(where)
        )
        for name, digest, file, size in work:
            found[name] = (digest, file, size)
    if not found:
        raise BadInput(
            f"{where.path}: no tensor in it",
            why="of nothing, nothing was verified",
            fix="fetch or make the checkpoint again: labkit model make --preset small DIR",
        )
    wrong = [
        {"tensor": n, "file": d.get("file", "?"), "what": "missing"}
        for n, d in expected.items()
        if n not in found
    ]
    wrong += [
        {
            "tensor": n,
            "file": file,
            "what": "no digest" if n not in expected else "its bytes differ from when it was made",
        }
        for n, (digest, file, _) in found.items()
        if n not in expected or expected[n]["sha256"] != digest
    ]
    return {
        "path": str(where.path),
        "format": where.format,
        "files": len(where.files),
        "tensors": len(found),
        "bytes": sum(s for _, _, s in found.values()),
        "wrong": wrong,
    }


def _of_safetensors(item: tuple[str, Stored]) -> tuple[str, str, str, int]:
    name, at = item
    state = hashlib.sha256()
    with open(at.file, "rb") as file:
        file.seek(at.start)
        left = at.end - at.start
        while left:
            piece = file.read(min(left, PIECE_BYTES))
            if not piece:
                break
            state.update(piece)
            left -= len(piece)
    return name, state.hexdigest(), at.file.name, at.end - at.start


def _of_pickles(where: Directory) -> Iterator[tuple[str, str, str, int]]:
    import torch

    from labkit.subject.state_dict import can_map, read_state_dict

    for file in where.files:
        # mmap keeps memory to what is being hashed.
        for name, tensor in read_state_dict(file, mmap=can_map(file)).items():
            flat = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
            yield name, hashlib.sha256(flat.data).hexdigest(), file.name, flat.nbytes

"""`pickle`: the article's starting point. Download to disk first if it is remote, `torch.load` a shard, `load_state_dict`.

Limit: every byte moves three times (disk → page cache → unpickled tensors → parameters), one after the other, and a
remote checkpoint waits for its last byte before the first is read. Stock calls at their defaults, never slowed;
`weights_only=True` is torch's default since 2.6 and refuses pickles that would run code.

    load(model, "/models/small-pickle", "cpu")     # spans load.download, load.read, load.copy

`load_mmap` is the same with `mmap=True, assign=True`: pages come at first touch. Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from labkit.core.timeline import span
from labkit.errors import BadInput, TransferError
from labkit.weights.loaders.placing import Placer
from labkit.weights.source import Source, open_source


def load(model: Any, source: str, device: str = "cpu", *, mmap: bool = False, **_: Any) -> dict[str, Any]:
    """Fill the model's parameters. Facts: tensors, size_bytes, shards, downloaded_bytes. Raises BadInput, TransferError."""
    opened = open_source(source)
    shards = opened.shards("pickle")
    scratch: str | None = None
    try:
        downloaded = 0
        directory = Path(opened.root)
        if opened.remote:
            scratch = tempfile.mkdtemp(prefix="labkit-model-")
            directory = Path(scratch)
            with span("load.download", shards=len(shards)) as facts:
                downloaded = facts["bytes"] = sum(download(opened, name, directory / name) for name in shards)
        placer = Placer(model, device)
        for name in shards:
            _load_shard(placer, directory / name, mmap)
        return placer.finish() | {"loader": "pickle-mmap" if mmap else "pickle", "shards": len(shards), "downloaded_bytes": downloaded}
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def load_mmap(model: Any, source: str, device: str = "cpu", **options: Any) -> dict[str, Any]:
    return load(model, source, device, mmap=True, **options)


def _load_shard(placer: Placer, path: Path, mmap: bool) -> None:
    import pickle

    import torch

    with span("load.read", file=path.name):
        try:
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        except FileNotFoundError:
            raise BadInput(f"{path}: a shard of the index is missing", fix="labkit model verify DIR") from None
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, IndexError, AttributeError, TypeError, OSError) as error:
            raise BadInput(f"{path.name} cannot be loaded: {str(error).splitlines()[0]}",
                           why="truncated, corrupt, or a pickle that would run code: nothing of it was run",
                           fix=f"labkit model inspect {path}") from None
    if not isinstance(state, dict):
        raise BadInput(f"{path.name} holds a {type(state).__name__}, not named tensors")
    with span("load.copy", file=path.name):
        placer.put_state(state)


def download(source: Source, name: str, target: Path) -> int:
    """One GET, one stream, to disk: what a script does with the first HTTP client at hand."""
    url = source.url(name)
    try:
        with urllib.request.urlopen(url, timeout=60) as answer, open(target, "wb") as file:
            expected = answer.headers.get("Content-Length")
            shutil.copyfileobj(answer, file, 1 << 20)
            got = file.tell()
    except urllib.error.HTTPError as error:
        raise TransferError(f"{url}: HTTP {error.code}", fix="check that the store holds the model") from None
    except OSError as error:
        raise TransferError(f"{url}: {error}", fix="check AWS_ENDPOINT_URL and that the store is up") from None
    if expected is not None and got != int(expected):
        raise TransferError(f"{url}: {got} of {expected} bytes arrived", why="the connection ended early; nothing was loaded")
    return got

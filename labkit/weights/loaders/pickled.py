"""`pickle`: the article's starting point. Download to disk first if it is remote, `torch.load` a
shard, `load_state_dict`.

Limit: every byte moves three times (disk → page cache → unpickled tensors → parameters), one after
the other, and a remote checkpoint waits for its last byte before the first is read. Stock calls at
their defaults, never slowed; `weights_only=True` is torch's default since 2.6 and refuses pickles
that would run code.

    load(model, "/models/small-pickle", "cpu")     # spans load.download, load.read, load.copy

`load_mmap` is the same with `mmap=True`, where a tensor on the meta device becomes a view of the
mapping: its pages come at first touch. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.core.timeline import span
from labkit.subject.state_dict import read_state_dict
from labkit.weights.loaders.download import local_shards
from labkit.weights.loaders.placing import Model, Placer


def load(
    model: Model, source: str, device: str = "cpu", *, mmap: bool = False, **_: Any
) -> JsonObject:
    """Fill the model's parameters. Facts: tensors, size_bytes, shards, downloaded_bytes. Raises
    BadInput, TransferError."""
    with local_shards(source, "pickle") as here:
        placer = Placer(model, device)
        for path in here.paths:
            _load_shard(placer, path, mmap)
        return placer.finish() | here.facts("pickle-mmap" if mmap else "pickle")


def load_mmap(model: Model, source: str, device: str = "cpu", **options: Any) -> JsonObject:
    return load(model, source, device, mmap=True, **options)


def _load_shard(placer: Placer, path: Path, mmap: bool) -> None:
    with span("load.read", file=path.name):
        state = read_state_dict(path, mmap=mmap)
    with span("load.copy", file=path.name):
        placer.put_state(state)

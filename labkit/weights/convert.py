"""Conversion between formats: a checkpoint directory in, the same tensors in another format out, as
many shards at once as there are CPUs, each mapped.

    convert("/models/small", "/models/small-pickle", "pickle")
    convert("/models/small", "/models/small-gguf", "gguf:Q8_0")

Limit: read once, write once; peak memory ≤ the largest shard + 1 GiB. Sharding is kept for pickle
and safetensors (GGUF and tensorizer are one file by nature). Everything that is not weights –
configuration, tokenizer, digests – is carried along, so that the result is a model directory like
the source. Written beside the target and renamed: a killed conversion leaves nothing that looks
whole. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.beside import becoming
from labkit.core.host import cpu_count
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput
from labkit.subject.shards import shard_files, write_index
from labkit.weights.source import LAYOUT, CheckpointSource, format_of, open_source, shard_tensors

if TYPE_CHECKING:
    import torch

FORMATS = ("pickle", "safetensors", "gguf", "tensorizer")
WEIGHT_SUFFIXES = (".bin", ".safetensors", ".gguf", ".tensors", ".pt", ".pth")


def convert(source: str | os.PathLike[str], target: str | os.PathLike[str], to: str) -> JsonObject:
    """Write `target` (a directory that must not exist) in format `to`. Facts: convert_s,
    size_bytes, shards, format.

    Raises BadInput for an unknown format, a source without weights, or a target that exists."""
    name, _, detail = to.partition(":")
    if name not in FORMATS or (detail and name != "gguf"):
        raise BadInput(
            f"no format {to!r}",
            fix="one of pickle, safetensors, tensorizer, gguf, gguf:BF16, gguf:Q8_0, gguf:Q4_0 …",
        )
    opened, final = open_source(source), Path(target)
    if final.exists():
        raise BadInput(
            f"{final} exists",
            why="a conversion never writes over a model",
            fix="give a new directory",
        )
    started_s = time.monotonic()
    with becoming(final) as partial:
        _carry(Path(opened.root), partial)
        if name == "gguf":
            from labkit.weights.gguf_writer import write_gguf

            facts = write_gguf(opened, partial / LAYOUT["gguf"][0], detail or "F16")
        elif name == "tensorizer":
            facts = _to_tensorizer(opened, partial / LAYOUT["tensorizer"][0])
        else:
            facts = _to_shards(opened, partial, name)
    size_bytes = sum(f.stat().st_size for f in final.iterdir() if f.suffix in WEIGHT_SUFFIXES)
    return facts | {
        "format": to,
        "convert_s": time.monotonic() - started_s,
        "size_bytes": size_bytes,
    }


def _carry(source: Path, target: Path) -> None:
    """Everything beside the weights and their index."""
    for file in sorted(source.iterdir()):
        if (
            file.is_file()
            and not file.name.startswith(".")
            and file.suffix not in WEIGHT_SUFFIXES
            and not file.name.endswith(".index.json")
        ):
            shutil.copy2(file, target / file.name)


def all_tensors(source: CheckpointSource) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) over every shard, one shard mapped at a time."""
    format = format_of(source)
    for name in source.shards(format):
        yield from shard_tensors(source, format, name).items()


def _to_shards(source: CheckpointSource, target: Path, to: str) -> JsonObject:
    import torch
    from safetensors.torch import save_file

    format = format_of(source)
    shards = source.shards(format)
    single = LAYOUT[to][0]
    weight_map: dict[str, str] = {}
    total_bytes = 0

    def one(shard: str, out: str) -> tuple[dict[str, str], int]:
        tensors = {
            name: tensor.contiguous()
            for name, tensor in shard_tensors(source, format, shard).items()
        }
        if to == "pickle":
            torch.save(tensors, target / out)
        else:
            save_file(tensors, target / out, metadata={"format": "pt"})
        return dict.fromkeys(tensors, out), sum(t.nbytes for t in tensors.values())

    # Mapped, so no shard is in memory beyond what the page cache holds; a checksum a shard takes
    # one core.
    with ThreadPoolExecutor(min(len(shards), cpu_count())) as many:
        for names, size_bytes in many.map(one, shards, shard_files(single, len(shards))):
            weight_map |= names
            total_bytes += size_bytes
    if len(shards) > 1:
        write_index(target, single, weight_map, total_bytes)
    return {"shards": len(shards), "tensors": len(weight_map)}


def _to_tensorizer(source: CheckpointSource, target: Path) -> JsonObject:
    from tensorizer import TensorSerializer
    from tensorizer.serialization import TensorType

    serializer = TensorSerializer(str(target))
    count = 0
    try:
        for count, (name, tensor) in enumerate(all_tensors(source), 1):
            serializer.write_tensor(count - 1, name, TensorType.PARAM, tensor)
    finally:
        serializer.close()
    return {"shards": 1, "tensors": count}

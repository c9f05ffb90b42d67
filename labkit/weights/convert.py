"""Conversion between formats: a checkpoint directory in, the same tensors in another format out, as
many shards at once as there are CPUs, each mapped.

    convert("/models/small", "/models/small-pickle", "pickle")
    convert("/models/small", "/models/small-gguf", "gguf:Q8_0")

What is there is compared with what config.json and the index ask for before anything is written: a
conversion is complete, or refused. Limit: read once, write once; peak memory ≤ the largest shard +
1 GiB. Sharding is kept for pickle
and safetensors (GGUF and tensorizer are one file by nature). Everything that is not weights –
configuration, tokenizer, digests – is carried along, so that the result is a model directory like
the source. Written beside the target and renamed: a killed conversion leaves nothing that looks
whole. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from labkit.core.beside import becoming
from labkit.core.host import cpu_count
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput, LabError
from labkit.formats import weight_files
from labkit.formats.weight_files import LAYOUT
from labkit.subject.config import names_dtype, parsed
from labkit.subject.shards import shard_files, write_index
from labkit.subject.stored_dtype import stored_dtype
from labkit.weights.source import open_source
from labkit.weights.tensors import Tensors

FORMATS = ("pickle", "safetensors", "gguf", "tensorizer")


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
    opened, final = open_source(os.path.expanduser(source)), Path(target).expanduser()
    if final.exists():
        raise BadInput(
            f"{final} exists",
            why="a conversion never writes over a model",
            fix="give a new directory",
        )
    started_s = time.monotonic()
    tensors = Tensors.of(opened)
    with becoming(final) as partial:
        _carry(Path(opened.root), partial)
        _keep_dtype(Path(opened.root), partial)
        if name == "gguf":
            from labkit.weights.gguf_writer import write_gguf

            facts = write_gguf(tensors, partial / LAYOUT["gguf"][0], detail or "F16")
        elif name == "tensorizer":
            facts = _to_tensorizer(tensors, partial / LAYOUT["tensorizer"][0])
        else:
            facts = _to_shards(tensors, partial, name)
        size_bytes = weight_files.local(partial, name).size_bytes
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
            and not weight_files.holds_weights(file)
            and not file.name.endswith(".index.json")
        ):
            shutil.copy2(file, target / file.name)


def _keep_dtype(source: Path, target: Path) -> None:
    """Where config.json leaves the dtype to the checkpoint, the result says it: its format need not
    tell."""
    file = target / "config.json"
    doc = parsed(file.read_bytes(), str(file)) if file.exists() else None
    if isinstance(doc, dict) and not names_dtype(doc):
        file.unlink()  # it may have come with a mode that forbids writing
        file.write_text(json.dumps({**doc, "torch_dtype": stored_dtype(source)}, indent=2) + "\n")


@contextmanager
def _written_by_its_library(where: str, to: str) -> Iterator[None]:
    """What a format's own library raises on tensors that it does not take, as BadInput. OSError
    goes through: a full disk is another matter."""
    try:
        yield
    except (LabError, OSError, MemoryError):
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"{where} cannot be written as {to}: {reason[:300]}",
            why="its library does not take these tensors; nothing was kept",
            fix="labkit model inspect DIR lists them",
        ) from error


def _to_shards(tensors: Tensors, target: Path, to: str) -> JsonObject:
    import torch
    from safetensors.torch import save_file

    shards = list(tensors.of_shard)
    single = LAYOUT[to][0]
    weight_map: dict[str, str] = {}
    total_bytes = 0

    def one(shard: str, out: str) -> tuple[dict[str, str], int]:
        with _written_by_its_library(shard, to):
            found = tensors.shard(shard)
            if to == "pickle":
                torch.save(found, target / out)
            else:
                save_file(found, target / out, metadata={"format": "pt"})
        return dict.fromkeys(found, out), sum(t.nbytes for t in found.values())

    # Mapped, so no shard is in memory beyond what the page cache holds; a checksum a shard takes
    # one core.
    with ThreadPoolExecutor(min(len(shards), cpu_count())) as many:
        for names, size_bytes in many.map(one, shards, shard_files(single, len(shards))):
            weight_map |= names
            total_bytes += size_bytes
    if len(shards) > 1:
        write_index(target, single, weight_map, total_bytes)
    return {"shards": len(shards), "tensors": len(weight_map)}


def _to_tensorizer(tensors: Tensors, target: Path) -> JsonObject:
    from tensorizer import TensorSerializer
    from tensorizer.serialization import TensorType

    serializer = TensorSerializer(str(target))
    count = 0
    try:
        for shard in tensors.of_shard:
            with _written_by_its_library(shard, "tensorizer"):
                for name, tensor in tensors.shard(shard).items():
                    serializer.write_tensor(count, name, TensorType.PARAM, tensor)
                    count += 1
    finally:
        serializer.close()
    return {"shards": 1, "tensors": count}

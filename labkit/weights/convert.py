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
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.beside import becoming
from labkit.core.host import cpu_count
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput, LabError
from labkit.formats import weight_files
from labkit.formats.weight_files import LAYOUT
from labkit.subject.config import LlamaConfig, names_dtype, parsed
from labkit.subject.directory import check, spare
from labkit.subject.shards import shard_files, write_index
from labkit.subject.stored_dtype import stored_dtype
from labkit.weights.source import CheckpointSource, open_source, shard_shapes, shard_tensors

if TYPE_CHECKING:
    import torch

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

            facts = write_gguf(opened, partial / LAYOUT["gguf"][0], detail or "F16")
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
        file.write_text(json.dumps({**doc, "torch_dtype": stored_dtype(source)}, indent=2) + "\n")


@dataclass(frozen=True)
class Tensors:
    """What there is to convert, known before anything is written. `of_shard`: which tensors are
    taken from which file; each is taken once, none is missing."""

    source: CheckpointSource
    format: str
    of_shard: Mapping[str, Sequence[str]]

    @staticmethod
    def of(source: CheckpointSource) -> Tensors:
        """Raises BadInput where what is there is not what config.json and the index ask for."""
        if source.remote:
            raise BadInput(
                f"{source.root} is not on this host",
                why="a conversion reads local files",
                fix="download the model first",
            )
        weights = weight_files.local(source.root)
        shapes: dict[str, tuple[int, ...]] = {}
        holder: dict[str, str] = {}
        for shard in weights.names:
            found = shard_shapes(source, weights.format, shard)
            shapes |= found
            # of a tensor that two files hold, loaders keep the later one
            holder |= dict.fromkeys(found, shard)
        config = _config_of(source)
        if config:
            check(config, shapes, source.root, {n: source.path(f) for n, f in holder.items()})
        lost = [name for name in weights.placed if name not in shapes and not spare(name)]
        if lost:
            raise BadInput(
                f"{source.path(weights.placed[lost[0]])}: no tensor {lost[0]}, which the index says"
                " is here" + (f" (and {len(lost) - 1} more)" if lost[1:] else ""),
                why="the checkpoint is incomplete, or index and shards are of two",
                fix="fetch index and shards again",
            )
        if config and config.tie_word_embeddings:
            holder.pop("lm_head.weight", None)  # the embedding's bytes once more
        if not holder:
            raise BadInput(
                f"{source.root}: no tensor in {', '.join(weights.names)}",
                why="of nothing, nothing can be converted",
                fix="fetch the checkpoint again",
            )
        names: dict[str, list[str]] = {shard: [] for shard in weights.names}
        for name, shard in holder.items():
            names[shard].append(name)
        return Tensors(
            source, weights.format, {shard: found for shard, found in names.items() if found}
        )

    def shard(self, name: str) -> dict[str, torch.Tensor]:
        """Those of one file, each contiguous and with memory of its own."""
        found = shard_tensors(self.source, self.format, name)
        return _apart({tensor: found[tensor] for tensor in self.of_shard[name]})


def _config_of(source: CheckpointSource) -> LlamaConfig | None:
    """None where there is none, or one of a model that the lab does not run: it does not tell which
    tensors there have to be. Raises BadInput for one that is no JSON."""
    raw = source.read("config.json")
    if raw is None:
        return None
    doc = parsed(raw, source.address("config.json"))
    try:
        return LlamaConfig.from_json(doc)
    except BadInput:
        return None


def _apart(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A tensor that shares its storage, or has a part of one, is copied: formats without storages
    refuse it, pickle would write all of it."""
    shared = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors.values())
    return {
        name: tensor.clone()
        if shared[tensor.untyped_storage().data_ptr()] > 1
        or tensor.untyped_storage().nbytes() != tensor.nbytes
        else tensor.contiguous()
        for name, tensor in tensors.items()
    }


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

"""The tensors of a checkpoint of this host: all that config.json and the index ask for, or none.

    tensors = Tensors.of(open_source("/models/small-pickle"))   # from headers; raises BadInput
    for shard in tensors.of_shard: tensors.shard(shard)         # {"model.norm.weight": tensor, …}

What a conversion reads, known before anything is written. Limit: a pickle without a zip has no
header and is read for its shapes. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from labkit.errors import BadInput
from labkit.formats import safetensors_header, weight_files
from labkit.formats.not_weights import refusing
from labkit.subject.config import LlamaConfig, parsed
from labkit.subject.directory import check, spare
from labkit.subject.state_dict import can_map, read_state_dict
from labkit.weights.source import CheckpointSource

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tensors:
    """`of_shard`: which tensors are taken from which file; each once, none is missing. `shapes`: of
    these by name."""

    source: CheckpointSource
    format: str
    of_shard: Mapping[str, Sequence[str]]
    shapes: Mapping[str, tuple[int, ...]]

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
            found = _shapes_of_shard(source, weights.format, shard)
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
        taken = {shard: found for shard, found in names.items() if found}
        return Tensors(source, weights.format, taken, shapes)

    def shard(self, name: str) -> dict[str, torch.Tensor]:
        """Those of one file, each contiguous and with memory of its own."""
        found = _tensors_of_shard(self.source, self.format, name)
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
    import torch

    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        if shared[tensor.untyped_storage().data_ptr()] > 1
        or tensor.untyped_storage().nbytes() != tensor.nbytes
        else tensor.contiguous()
        for name, tensor in tensors.items()
    }


def _shapes_of_shard(
    source: CheckpointSource, format: str, name: str
) -> dict[str, tuple[int, ...]]:
    """By name, from the header; a pickle without a zip has none and is read. Raises BadInput."""
    path = source.path(name)
    if format == "safetensors":
        return {entry.name: entry.shape for entry in safetensors_header.read(path).tensors}
    if format == "pickle":
        mapped = can_map(path)
        state = read_state_dict(path, mmap=mapped, device="cpu" if mapped else "meta")
        return {name: tuple(tensor.shape) for name, tensor in state.items()}
    raise _packed(source, format)


def _packed(source: CheckpointSource, format: str) -> BadInput:
    return BadInput(
        f"{source.root} is {format}",
        why="conversion starts from full-precision shards",
        fix="convert from the safetensors or pickle checkpoint",
    )


def _tensors_of_shard(source: CheckpointSource, format: str, name: str) -> dict[str, torch.Tensor]:
    """All tensors of one shard, as torch tensors on the CPU: views of the file where that can be
    mapped. Raises BadInput."""
    path = source.path(name)
    if format == "safetensors":
        from safetensors.torch import load_file

        with refusing(path):
            return load_file(path)
    if format == "pickle":
        return read_state_dict(path, mmap=can_map(path))
    raise _packed(source, format)

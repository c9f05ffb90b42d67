"""A public model directory as data: which tensor lies where, checked against the config before a
byte of weights moves.

    where = open_directory(DIR)      # reads config, index and headers only
    where.tensors["model.norm.weight"]   # Stored(file, dtype, shape, start, end)

Single or sharded, safetensors or pickle: `labkit.formats.weight_files` chooses. Headers are hostile
input: a length that lies, an offset out of range, overlaps, wrong types, a tensor that the config
does not expect – each is one BadInput naming file, tensor and fix, in bounded memory. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from labkit.errors import BadInput
from labkit.formats import safetensors_header, weight_files
from labkit.subject.config import LlamaConfig


@dataclass(frozen=True)
class Stored:
    """One tensor in a safetensors file: absolute byte range [start, end)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Directory:
    """`tensors` is empty for pickles: only unpickling tells what is inside."""

    path: Path
    config: LlamaConfig
    format: str  # safetensors | pickle
    files: tuple[Path, ...]
    tensors: Mapping[str, Stored]


def _refuse(
    file: Path | str,
    problem: str,
    why: str,
    fix: str,
) -> BadInput:
    return BadInput(f"{file}: {problem}", why, fix)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header alone. Raises BadInput that names the
    file."""
    try:
        entries = safetensors_header.read(file).tensors
    except OSError as error:
        raise _refuse(
            file,
            str(error.strerror),
            "the shard cannot be read",
            "labkit model verify DIR tells which files are missing",
        ) from None
    return {e.name: Stored(file, e.dtype, e.shape, e.offset, e.end) for e in entries}


def open_directory(
    directory: str | os.PathLike[str], config: LlamaConfig | None = None
) -> Directory:
    """Read a model directory's config, index and headers, and check them against each other. Raises
    BadInput."""
    path = Path(directory)
    config = config or LlamaConfig.from_dir(path)
    weights = weight_files.local(path)
    files = tuple(path / name for name in weights.names)
    tensors: dict[str, Stored] = {}
    if weights.format not in ("safetensors", "pickle"):
        raise _refuse(
            files[0],
            f"weights in the format {weights.format}",
            "safetensors and pickle are read here",
            "name the loader of that format: --loader labkit.weights.loaders.…",
        )
    if weights.format == "safetensors":
        for file in files:
            tensors.update(read_header(file))
        check(
            config,
            {n: t.shape for n, t in tensors.items()},
            path,
            {n: t.file for n, t in tensors.items()},
        )
    return Directory(path, config, weights.format, files, tensors)


def check(
    config: LlamaConfig,
    shapes: Mapping[str, tuple[int, ...]],
    path: Path | str,
    files: Mapping[str, Path] | None = None,
) -> None:
    """Every tensor the config asks for is there with its shape. Spare ones are fine if torch saves
    them by itself (tied heads, rotary buffers)."""
    expected = config.shapes()
    for name, shape in expected.items():
        if name not in shapes:
            raise _refuse(
                path,
                f"no tensor {name}, which config.json asks for",
                "config and weights are not of the same model, or a shard is not in the index",
                "compare config.json and the index with their source",
            )
        if tuple(shapes[name]) != shape:
            raise _refuse(
                (files or {}).get(name, path),
                f"tensor {name} has shape {tuple(shapes[name])}, config.json asks for {shape}",
                "config and weights are not of the same model",
                "compare config.json with its source",
            )
    for name in shapes:
        if name not in expected and not spare(name):
            raise _refuse(
                (files or {}).get(name, path),
                f"tensor {name!r:.120} is not one that config.json asks for",
                "the model would differ from the one that was trained",
                "compare config.json with its source, or use the model's own server: labkit run"
                " --command …",
            )


def spare(name: str) -> bool:
    """Tensors that public checkpoints carry and no Llama needs: the tied head's copy, old rotary
    buffers."""
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")

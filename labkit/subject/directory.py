"""A public model directory as data: which tensor lies where, checked against the config before a
byte of weights moves.

    where = open_directory(DIR)      # reads config, index and headers only
    where.tensors["model.norm.weight"]   # Stored(file, dtype, shape, start, end)

Single or sharded safetensors, or `pytorch_model*.bin` with an index. Headers are hostile input: a
length that lies, an offset out of range, overlaps, wrong types, a tensor that the config does not
expect – each is one BadInput naming file, tensor and fix, in bounded memory. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from labkit.errors import BadInput
from labkit.formats import safetensors_header
from labkit.subject.config import LlamaConfig
from labkit.subject.source import read_small

NOT_LOADED = "nothing was loaded from it"
VERIFY = "labkit model verify DIR, then fetch this file again"


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
    placed: Mapping[str, str]  # tensor -> file name, from the index (empty without one)


def _refuse(
    file: Path | str,
    problem: str,
    why: str = NOT_LOADED,
    fix: str = VERIFY,
) -> BadInput:
    return BadInput(f"{file}: {problem}", why, fix)


def read_header(file: Path) -> dict[str, Stored]:
    """The tensors of a safetensors file, from its header alone. Raises BadInput that names the
    file."""
    try:
        entries = safetensors_header.read(file).tensors
    except BadInput as error:
        raise _refuse(file, error.what, error.why or NOT_LOADED, error.fix or VERIFY) from None
    except OSError as error:
        raise _refuse(
            file,
            str(error.strerror),
            "the shard cannot be read",
            "labkit model verify DIR tells which files are missing",
        ) from None
    return {e.name: Stored(file, e.dtype, e.shape, e.offset, e.end) for e in entries}


def read_index(path: Path, name: str) -> dict[str, str]:
    """The weight map of `*.index.json`: tensor -> file of the same directory. Raises BadInput."""
    raw = read_small(path, name)
    file = path / name
    try:
        doc = json.loads(raw or b"")
    except (ValueError, RecursionError):
        raise _refuse(file, "not JSON") from None
    found = doc.get("weight_map") if isinstance(doc, dict) else None
    if not isinstance(found, dict) or not found:
        raise _refuse(file, "no weight_map", "the index tells which shard holds which tensor")
    for tensor, shard in found.items():
        if (
            not isinstance(shard, str)
            or not shard
            or PurePosixPath(shard).name != shard
            or "\0" in shard
            or shard in (".", "..")
        ):
            raise _refuse(
                file,
                f"tensor {tensor!r:.120} is said to be in {shard!r:.120}",
                "shards are files of the same directory; anything else is hostile",
            )
    return found


def open_directory(
    directory: str | os.PathLike[str], config: LlamaConfig | None = None
) -> Directory:
    """Read a model directory's config, index and headers, and check them against each other. Raises
    BadInput."""
    path = Path(directory)
    config = config or LlamaConfig.from_dir(path)
    for stem, ending, fmt in (
        ("model", "safetensors", "safetensors"),
        ("pytorch_model", "bin", "pickle"),
    ):
        single, index = path / f"{stem}.{ending}", f"{stem}.{ending}.index.json"
        if (path / index).exists():
            placed = read_index(path, index)
            files = tuple(path / name for name in sorted(set(placed.values())))
            missing = [f.name for f in files if not f.exists()]
            if missing:
                lost = next(t for t, f in placed.items() if f == missing[0])
                raise _refuse(
                    path / missing[0],
                    f"no such file; the index says it holds {lost}"
                    + (f" (and {len(missing) - 1} more shards are missing)" if missing[1:] else ""),
                    "the checkpoint is incomplete",
                    "fetch the missing shard",
                )
        elif single.exists():
            placed, files = {}, (single,)
        else:
            continue
        tensors: dict[str, Stored] = {}
        if fmt == "safetensors":
            for file in files:
                tensors.update(read_header(file))
            for name, shard in placed.items():
                if name not in tensors or tensors[name].file.name != shard:
                    raise _refuse(
                        path / shard,
                        f"no tensor {name}, which the index says is here",
                        "index and shards are not of the same checkpoint",
                    )
            check(
                config,
                {n: t.shape for n, t in tensors.items()},
                path,
                {n: t.file for n, t in tensors.items()},
            )
        elif placed:
            check(config, dict.fromkeys(placed), path, {n: path / f for n, f in placed.items()})
        return Directory(path, config, fmt, files, tensors, placed)
    raise BadInput(
        f"{path}: no model.safetensors, pytorch_model.bin or index of either",
        why="there are no weights to load",
        fix="labkit model make --preset tiny DIR, or give the directory of a public model",
    )


def check(
    config: LlamaConfig,
    shapes: Mapping[str, tuple[int, ...] | None],
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
                "config and weights are not of the same model, or the index misses an entry",
                "compare config.json and the index with their source",
            )
        if shapes[name] is not None and tuple(shapes[name]) != shape:  # type: ignore[arg-type]
            raise _refuse(
                (files or {}).get(name, path),
                f"tensor {name} has shape {tuple(shapes[name])}, config.json asks for {shape}",  # type: ignore[arg-type]
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

"""Checkpoints of any size, in the public layout, made on the spot: config, tokenizer, index,
shards, digests.

    labkit model make --preset tiny DIR
    make_checkpoint(DIR, preset="1b", fmt="safetensors")        # 2.2 GB
    ensure(workspace, "small") -> workspace.models/"small-safetensors", made once

Deterministic: the same preset gives the same bytes anywhere. Written into a directory beside the
target that takes its name only when complete (the shards: `labkit.subject.shards`). The limit is
the disk's write bandwidth. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from labkit.core.beside import becoming, one_at_a_time
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.subject import tokenizer
from labkit.subject.config import LlamaConfig
from labkit.subject.presets import config_of
from labkit.subject.shards import FORMATS, write_shards

RECIPE = 2  # raised when the same preset gives other bytes: cached checkpoints are then made again
DIGESTS = "digests.json"


def make_checkpoint(
    directory: str | os.PathLike[str],
    preset: str = "",
    *,
    size_bytes: int = 0,
    family: str = "llama",
    fmt: str = "safetensors",
    shards: int = 0,
    seed: int | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> JsonObject:
    """Make one and give its facts (paths, bytes, seconds). The directory must not exist, or be
    empty. Raises BadInput."""
    target = Path(directory).expanduser().absolute()
    config = config_of(preset, size_bytes, family)
    if fmt not in FORMATS:
        raise BadInput(
            f"no format {fmt!r} to make",
            why="the others are made from these",
            fix="--format safetensors or pickle; labkit model convert for the rest",
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise BadInput(
            f"{target} exists and is not empty",
            why="a checkpoint is made whole, never into other files",
            fix="give a new directory, or remove this one",
        )
    need = config.parameters * 2
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if need * 1.02 + (64 << 20) > free:
        raise BadInput(
            f"{target.parent}: {need / 1e9:.1f} GB to write, {free / 1e9:.1f} GB free",
            why="a full disk stops everything else too",
            fix="a smaller --preset, or another disk",
        )
    start_s = time.monotonic()
    with becoming(target) as building:
        facts = _write(building, config, preset, fmt, shards, seed, progress)
    return {
        "path": str(target),
        "format": fmt,
        "parameters": config.parameters,
        "size_bytes": need,
        "seconds": round(time.monotonic() - start_s, 3),
        **facts,
    }


def ensure(workspace: Workspace, preset: str, fmt: str = "safetensors") -> Path:
    """The preset's checkpoint in the workspace, made if it is not there yet. Safe to call from
    several processes at once."""
    target = workspace.models / f"{preset}-{fmt}"
    with one_at_a_time(target):
        if target.exists():
            with contextlib.suppress(OSError, ValueError, AttributeError):
                if json.loads((target / DIGESTS).read_text()).get("recipe") == RECIPE:
                    return target
            shutil.rmtree(target)
        make_checkpoint(target, preset, fmt=fmt)
    return target


def _write(
    directory: Path,
    config: LlamaConfig,
    preset: str,
    fmt: str,
    shards: int,
    seed: int | None,
    progress: Callable[[int, int], object] | None,
) -> JsonObject:
    from labkit.subject import values

    seed = values.SEED if seed is None else seed
    (directory / "tokenizer.json").write_bytes(tokenizer.tokenizer_json(config.vocab_size))
    for name, doc in (
        ("config.json", config.to_json()),
        ("tokenizer_config.json", tokenizer.tokenizer_config(config.max_position_embeddings)),
        ("generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}),
    ):
        (directory / name).write_text(json.dumps(doc, indent=2) + "\n")
    files, tensors = write_shards(directory, config, fmt, shards, seed, progress)
    doc = {"recipe": RECIPE, "seed": seed, "preset": preset, "format": fmt, "tensors": tensors}
    (directory / DIGESTS).write_text(json.dumps(doc, indent=1) + "\n")
    return {"files": files}

"""Checkpoints of any size, in the public layout, made on the spot: config, tokenizer, index,
shards, digests.

    labkit model make --preset tiny DIR
    make_checkpoint(DIR, preset="1b", fmt="safetensors")        # 2.2 GB
    ensure(workspace, "small") -> workspace.models/"small-safetensors", made once

Deterministic: the same preset gives the same bytes anywhere. As many shards at once as there are
CPUs, a shard of safetensors in pieces of 16 MiB, one of pickle whole in memory (at most
SHARD_BYTES), into a directory beside the target that takes its name only when complete. The limit
is the disk's write bandwidth. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import shutil
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

from labkit.core.beside import becoming
from labkit.core.host import cpu_count
from labkit.core.proc import meminfo_bytes
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.subject import tokenizer
from labkit.subject.config import LlamaConfig, Rope

RECIPE = 2  # raised when the same preset gives other bytes: cached checkpoints are then made again
SHARD_BYTES = 1_100_000_000  # the largest single tensor of the 8B shape is 1.05 GB
FORMATS = ("safetensors", "pickle")
DIGESTS = "digests.json"

_LLAMA3 = Rope(500_000.0, "llama3", 8.0, 1.0, 4.0, 8192)


def _shape(
    vocabulary: int,
    hidden: int,
    inner: int,
    layers: int,
    heads: int,
    kv_heads: int,
    context: int,
    rope: Rope,
) -> LlamaConfig:
    return LlamaConfig(
        vocabulary,
        hidden,
        inner,
        layers,
        heads,
        kv_heads,
        hidden // heads,
        context,
        rope=rope,
        bos_token_id=0,
        eos_token_ids=(1,),
    )


#: tiny for tests, small for notebooks on two cores, 1b as TinyLlama, 8b as Llama 3.1 8B.
PRESETS = {
    "tiny": _shape(4096, 128, 448, 6, 4, 2, 131_072, _LLAMA3),
    "small": _shape(32_000, 768, 2048, 12, 12, 4, 131_072, _LLAMA3),
    "1b": _shape(32_000, 2048, 5632, 22, 32, 4, 2048, Rope()),
    "8b": _shape(128_256, 4096, 14_336, 32, 32, 8, 131_072, _LLAMA3),
}


def config_of(preset: str = "", size_bytes: int = 0, family: str = "llama") -> LlamaConfig:
    """The shape of a preset, or one with a given weight of tensors (within 2 %). Raises
    BadInput."""
    if bool(preset) == bool(size_bytes):
        raise BadInput("give a preset or a size", fix="--preset tiny|small|1b|8b, or --bytes 500MB")
    if preset and preset not in PRESETS:
        raise BadInput(f"no preset {preset!r}", fix="one of: " + ", ".join(PRESETS))
    if family not in ("llama", "qwen2"):
        raise BadInput(f"no family {family!r}", fix="--family llama or qwen2")
    made = PRESETS[preset] if preset else _sized(size_bytes)
    if family == "qwen2":
        from dataclasses import replace

        made = replace(made, family="qwen2", qkv_bias=True, rope=Rope(1_000_000.0))
    return made


def _sized(size_bytes: int) -> LlamaConfig:
    """A Llama shape of about this size: layers and width grow as the published models' do, the
    MLP's width takes up the rest."""
    from dataclasses import replace

    if not 1_000_000 <= size_bytes <= 2_000_000_000_000:
        raise BadInput(
            f"{size_bytes} bytes",
            why="shapes from 1 MB to 2 TB look like a language model",
            fix="--bytes 250MB",
        )
    nearest = min(PRESETS.values(), key=lambda c: abs(math.log(c.parameters * 2 / size_bytes)))
    ratio = size_bytes / (nearest.parameters * 2)
    layers = max(1, round(nearest.num_hidden_layers * ratio ** (1 / 3)))
    step = nearest.head_dim * (nearest.num_attention_heads // nearest.num_key_value_heads)
    hidden = max(step, round(nearest.hidden_size * ratio ** (1 / 3) / step) * step)
    vocabulary, inner = nearest.vocab_size, 0
    while True:
        made = replace(
            nearest,
            vocab_size=vocabulary,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=hidden // nearest.head_dim,
            num_key_value_heads=hidden // step,
            intermediate_size=1,
        )
        inner = (size_bytes // 2 - made.parameters) // (3 * hidden * layers) + 1
        if inner >= hidden or vocabulary <= 1024:
            break
        vocabulary //= 2  # the embeddings would leave no room for the layers
    return replace(made, intermediate_size=max(8, inner // 8 * 8))


def make_checkpoint(
    directory: str | os.PathLike[str],
    preset: str = "",
    *,
    size_bytes: int = 0,
    family: str = "llama",
    fmt: str = "safetensors",
    shards: int = 0,
    seed: int | None = None,
    config: LlamaConfig | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> dict[str, Any]:
    """Make one and give its facts (paths, bytes, seconds). The directory must not exist, or be
    empty. Raises BadInput."""
    target = Path(directory).expanduser().absolute()
    config = config or config_of(preset, size_bytes, family)
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
    with open(workspace.models / f".{preset}-{fmt}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
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
    progress: Callable[[int, int], Any] | None,
) -> dict[str, Any]:
    from labkit.subject import values

    seed = values.SEED if seed is None else seed
    (directory / "config.json").write_text(json.dumps(config.to_json(), indent=2) + "\n")
    (directory / "tokenizer.json").write_bytes(tokenizer.tokenizer_json(config.vocab_size))
    (directory / "tokenizer_config.json").write_text(
        json.dumps(tokenizer.tokenizer_config(config.max_position_embeddings), indent=2) + "\n"
    )
    (directory / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 0, "eos_token_id": 1, "do_sample": False}, indent=2) + "\n"
    )
    shapes = config.shapes()
    groups = split(shapes, shards)
    stem, ending = ("model", "safetensors") if fmt == "safetensors" else ("pytorch_model", "bin")
    names = (
        [f"{stem}.{ending}"]
        if len(groups) == 1
        else [f"{stem}-{i + 1:05d}-of-{len(groups):05d}.{ending}" for i in range(len(groups))]
    )
    total, done = 2 * sum(math.prod(s) for s in shapes.values()), 0
    digests: dict[str, dict[str, Any]] = {}
    lock, over = threading.Lock(), threading.Event()

    def count(size_bytes: int) -> None:
        nonlocal done
        if over.is_set():
            raise _Over
        with lock:
            done += size_bytes
            if progress:
                progress(done, total)

    def shard(file: str, group: list[str]) -> dict[str, str]:
        made = _Blocks(pool, group, shapes, config, seed, count, ahead)
        (write_safetensors if fmt == "safetensors" else _write_pickle)(
            directory / file, group, shapes, made
        )
        return made.digests

    cpus, ways = cpu_count(), _at_once(len(groups), fmt)
    ahead = max(6, -(-2 * cpus // ways))
    with ThreadPoolExecutor(cpus, "values") as pool, ThreadPoolExecutor(ways, "shards") as writers:
        waiting = [writers.submit(shard, *one) for one in zip(names, groups, strict=True)]
        try:
            for made, file, group in zip(
                (future.result() for future in _as_they_fail(waiting)), names, groups, strict=True
            ):
                for name in group:
                    digests[name] = {
                        "sha256": made[name],
                        "dtype": "bfloat16",
                        "shape": list(shapes[name]),
                        "file": file,
                    }
        except BaseException:
            over.set()
            for future in waiting:
                future.cancel()
            raise
    if len(groups) > 1:
        index = {
            "metadata": {"total_size": total},
            "weight_map": {name: d["file"] for name, d in digests.items()},
        }
        (directory / f"{stem}.{ending}.index.json").write_text(json.dumps(index, indent=2) + "\n")
    doc = {"recipe": RECIPE, "seed": seed, "preset": preset, "format": fmt, "tensors": digests}
    (directory / DIGESTS).write_text(json.dumps(doc, indent=1) + "\n")
    return {"files": names}


class _Over(Exception):
    """Another shard failed, or the maker was interrupted."""


def _at_once(shards: int, fmt: str) -> int:
    """Shards written side by side: one a CPU; of pickle, which needs each whole in memory, at most
    what half of it holds."""
    room = max(1, meminfo_bytes("MemAvailable") // (2 * SHARD_BYTES)) if fmt == "pickle" else shards
    return max(1, min(shards, cpu_count(), room))


def _as_they_fail(futures: Sequence[Future[Any]]) -> Iterator[Future[Any]]:
    """All of them in order, after the first that failed, if one did."""
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        if error := future.exception():
            raise error
    yield from futures


def split(shapes: dict[str, tuple[int, ...]], shards: int = 0) -> list[list[str]]:
    """Names grouped in order: into `shards` files of about the same size, or as few as SHARD_BYTES
    allows."""
    sizes = {name: 2 * math.prod(s) for name, s in shapes.items()}
    total = sum(sizes.values())
    if not 0 <= shards <= len(sizes):
        raise BadInput(
            f"{shards} shards",
            why=f"the checkpoint has {len(sizes)} tensors",
            fix=f"--shards 1 to {len(sizes)}",
        )
    groups: list[list[str]] = [[]]
    held = 0
    if shards:
        before = 0
        for position, (name, size) in enumerate(sizes.items()):
            left_names, left_groups = len(sizes) - position, shards - len(groups)
            if (
                groups[-1]
                and len(groups) < shards
                and (before + size / 2 > total * len(groups) / shards or left_names <= left_groups)
            ):
                groups.append([])
            groups[-1].append(name)
            before += size
        return groups
    for name, size in sizes.items():
        if groups[-1] and held + size > SHARD_BYTES:
            groups.append([])
            held = 0
        groups[-1].append(name)
        held += size
    return groups


class _Blocks:
    """The values of a shard's tensors, made ahead in threads, handed out in order and hashed on the
    way."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        names: Sequence[str],
        shapes: dict[str, tuple[int, ...]],
        config: LlamaConfig,
        seed: int,
        count: Callable[[int], Any],
        ahead: int = 6,
    ):
        self.ahead = ahead
        self.pool, self.names, self.shapes, self.config, self.seed, self.count = (
            pool,
            names,
            shapes,
            config,
            seed,
            count,
        )
        self.digests: dict[str, str] = {}

    def __iter__(self) -> Iterator[tuple[str, bytes | memoryview]]:
        from labkit.subject import values

        todo = (
            (name, task)
            for name in self.names
            for task in values.tasks(name, self.shapes[name], self.config, self.seed)
        )
        waiting: deque[tuple[str, Future[Any]]] = deque()
        hashes: dict[str, Any] = {}
        while True:
            while len(waiting) < self.ahead and (next_one := next(todo, None)) is not None:
                waiting.append((next_one[0], self.pool.submit(next_one[1])))
            if not waiting:
                break
            name, future = waiting.popleft()
            data = future.result().data.cast("B")
            hashes.setdefault(name, hashlib.sha256()).update(data)
            self.count(len(data))
            yield name, data
        self.digests = {name: h.hexdigest() for name, h in hashes.items()}


def write_safetensors(
    path: Path, names: Sequence[str], shapes: dict[str, tuple[int, ...]], data: Any
) -> None:
    """One shard, streamed: the header knows every offset before the first value is made. `data`
    yields (name, bytes) in order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        size = 2 * math.prod(shapes[name])
        header[name] = {
            "dtype": "BF16",
            "shape": list(shapes[name]),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the reference writer pads
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, piece in data:
            file.write(piece)


def _write_pickle(
    path: Path, names: Sequence[str], shapes: dict[str, tuple[int, ...]], data: Any
) -> None:
    """One `pytorch_model.bin` shard, as `torch.save` writes it. Needs the shard in memory."""
    import torch

    tensors = {name: torch.empty(shapes[name], dtype=torch.bfloat16) for name in names}
    filled = dict.fromkeys(names, 0)
    for name, piece in data:
        flat = tensors[name].view(torch.uint8).reshape(-1).numpy()
        flat[filled[name] : filled[name] + len(piece)] = memoryview(piece)
        filled[name] += len(piece)
    torch.save(tensors, path)

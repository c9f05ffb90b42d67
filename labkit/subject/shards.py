"""Writing a checkpoint's shards: values computed ahead in threads, hashed on their way to the disk.

    write_shards(directory, config, "safetensors", 0, values.SEED) -> file names, digests by tensor

As many shards at once as there are CPUs, a shard of safetensors in pieces of 16 MiB, one of pickle
whole in memory (at most SHARD_BYTES). The limit is the disk's write bandwidth, on fast disks the
CPUs that compute the values. Lesson: notebooks/04_model_formats."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core.host import cpu_count
from labkit.core.json_types import JsonObject
from labkit.core.proc import meminfo_bytes
from labkit.errors import BadInput
from labkit.subject.config import LlamaConfig

if TYPE_CHECKING:
    import numpy as np

SHARD_BYTES = 1_100_000_000  # the largest single tensor of the 8B shape is 1.05 GB
FORMATS = ("safetensors", "pickle")
Shapes = dict[str, tuple[int, ...]]
Task = Callable[[], "np.ndarray"]  # gives the bfloat16 bits of one block
Piece = tuple[str, memoryview]  # of this tensor, the next bytes


def write_shards(
    directory: Path,
    config: LlamaConfig,
    fmt: str,
    shards: int,
    seed: int,
    progress: Callable[[int, int], object] | None = None,
) -> tuple[list[str], dict[str, JsonObject]]:
    """All shards and their index; `shards` 0: as few as SHARD_BYTES allows. `progress(done, total)`
    in bytes, from several threads. Returns file names, and by tensor its sha256, dtype, shape and
    file. Raises BadInput, OSError."""
    from labkit.subject import values

    shapes = config.shapes()
    groups = split(shapes, shards)
    single = "model.safetensors" if fmt == "safetensors" else "pytorch_model.bin"
    files = shard_files(single, len(groups))
    total, done = 2 * sum(math.prod(s) for s in shapes.values()), 0
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
        hashes = {name: hashlib.sha256() for name in group}

        def pieces() -> Iterator[Piece]:
            tasks = ((n, task) for n in group for task in values.tasks(n, shapes[n], config, seed))
            for name, data in _computed_ahead(pool, tasks, ahead):
                hashes[name].update(data)
                count(len(data))
                yield name, data

        write = write_safetensors if fmt == "safetensors" else _write_pickle
        write(directory / file, {name: shapes[name] for name in group}, pieces())
        return {name: state.hexdigest() for name, state in hashes.items()}

    digests: dict[str, str] = {}
    cpus, side_by_side = cpu_count(), _side_by_side(len(groups), fmt)
    ahead = max(6, -(-2 * cpus // side_by_side))
    with (
        ThreadPoolExecutor(cpus, "values") as pool,
        ThreadPoolExecutor(side_by_side, "shards") as writers,
    ):
        waiting = [writers.submit(shard, *one) for one in zip(files, groups, strict=True)]
        try:
            for future in _first_failure_first(waiting):
                digests |= future.result()
        except BaseException:
            over.set()
            for future in waiting:
                future.cancel()
            raise
    file_of = {name: file for file, group in zip(files, groups, strict=True) for name in group}
    if len(groups) > 1:
        write_index(directory, single, file_of, total)
    return files, {
        name: {
            "sha256": digests[name],
            "dtype": "bfloat16",
            "shape": list(shapes[name]),
            "file": file,
        }
        for name, file in file_of.items()
    }


def shard_files(single: str, count: int) -> list[str]:
    """The public names of so many shards, by the name that one alone has."""
    stem, _, ending = single.rpartition(".")
    if count == 1:
        return [single]
    return [f"{stem}-{i + 1:05d}-of-{count:05d}.{ending}" for i in range(count)]


def write_index(
    directory: Path, single: str, weight_map: Mapping[str, str], total_bytes: int
) -> None:
    """Which shard holds which tensor. Raises OSError."""
    index = {"metadata": {"total_size": total_bytes}, "weight_map": dict(weight_map)}
    (directory / f"{single}.index.json").write_text(json.dumps(index, indent=2) + "\n")


class _Over(Exception):
    """Another shard failed, or the maker was interrupted."""


def _side_by_side(shards: int, fmt: str) -> int:
    """Shards written side by side: one a CPU; of pickle, which needs each whole in memory, at most
    what half of it holds."""
    most = meminfo_bytes("MemAvailable") // (2 * SHARD_BYTES) if fmt == "pickle" else shards
    return max(1, min(shards, cpu_count(), most))


def _first_failure_first(futures: Sequence[Future[Any]]) -> Iterator[Future[Any]]:
    """All of them in order, after the first that failed, if one did."""
    for future in wait(futures, return_when=FIRST_EXCEPTION).done:
        if error := future.exception():
            raise error
    yield from futures


def split(shapes: Shapes, shards: int = 0) -> list[list[str]]:
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
    before = held = 0
    for position, (name, size) in enumerate(sizes.items()):
        left = shards - len(groups)
        if shards:
            full = left > 0 and (
                before + size / 2 > total * len(groups) / shards or len(sizes) - position <= left
            )
        else:
            full = held + size > SHARD_BYTES
        if groups[-1] and full:
            groups.append([])
            held = 0
        groups[-1].append(name)
        before += size
        held += size
    return groups


def _computed_ahead(
    pool: ThreadPoolExecutor, tasks: Iterator[tuple[str, Task]], ahead: int
) -> Iterator[tuple[str, memoryview]]:
    """(tensor, its next bytes) in the order of the tasks, up to `ahead` of them computed in the
    pool meanwhile."""
    waiting: deque[tuple[str, Future[np.ndarray]]] = deque()
    while True:
        waiting += ((n, pool.submit(task)) for n, task in islice(tasks, ahead - len(waiting)))
        if not waiting:
            return
        name, future = waiting.popleft()
        yield name, future.result().data.cast("B")


def write_safetensors(path: Path, shapes: Shapes, pieces: Iterable[Piece]) -> None:
    """One shard, streamed: the header knows every offset before the first value is computed.
    `pieces`: (name, bytes), in order of `shapes`."""
    header: JsonObject = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {
            "dtype": "BF16",
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # as the reference writer pads
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, piece in pieces:
            file.write(piece)


def _write_pickle(path: Path, shapes: Shapes, pieces: Iterable[Piece]) -> None:
    """One `pytorch_model.bin` shard, as `torch.save` writes it. Needs the shard in memory."""
    import torch

    tensors = {name: torch.empty(s, dtype=torch.bfloat16) for name, s in shapes.items()}
    filled = dict.fromkeys(shapes, 0)
    for name, piece in pieces:
        flat = tensors[name].view(torch.uint8).reshape(-1).numpy()
        flat[filled[name] : filled[name] + len(piece)] = piece
        filled[name] += len(piece)
    torch.save(tensors, path)

"""Which files of a model directory are its weights: chosen as transformers chooses, and the same
for whoever loads, evicts, proves, counts or matches them.

    found = local("/models/small")              # the format that a directory is in
    found.paths, found.size_bytes               # without links; of these files alone
    found.beside                                # configuration, tokenizer: what else a start reads
    local("/models/small", "pickle").names      # ["pytorch_model-00001-of-00002.bin", …]

safetensors before pickle; of one format the single file before shards, which an index names. What
else ends like weights is left alone: the same ones in another format, `consolidated.*`, variants,
adapters, what training keeps. An index is input, not instruction: a name that leaves the directory
is refused. Limit: a `stat` a shard. Source: transformers, `_get_resolved_checkpoint_files`. Lesson:
notebooks/04_model_formats."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from labkit.errors import BadInput

#: format -> (the single file's name, the index of shards), in the order of preference
LAYOUT = {
    "safetensors": ("model.safetensors", "model.safetensors.index.json"),
    "pickle": ("pytorch_model.bin", "pytorch_model.bin.index.json"),
    "gguf": ("model.gguf", ""),
    "tensorizer": ("model.tensors", ""),
}
#: How names of files that hold weights end, whichever library reads them.
SUFFIXES = (
    ".safetensors",
    ".bin",
    ".gguf",
    ".tensors",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".ot",
    ".npz",
)
_PART = re.compile(r"(.+)-\d{5}-of-(\d{5})\.gguf")
#: Where in a pickle training frameworks put the model's state dict, beside optimizer, epoch and the
#: like.
NESTED_UNDER = ("state_dict", "model_state_dict", "model", "module")


class Chosen(NamedTuple):
    """`names`: of the files, in the order in which loaders read them. `placed`: tensor -> name, as
    an index has it; it may lag behind what the files hold."""

    format: str
    names: tuple[str, ...]
    placed: Mapping[str, str] = {}


def choose(
    format: str, exists: Callable[[str], bool], read: Callable[[str], bytes | None], where: str
) -> Chosen | None:
    """The files of this format, wherever the directory `where` is; None where it has none. Raises
    BadInput for an index that is none."""
    single, index = LAYOUT[format]
    if exists(single):
        return Chosen(format, (single,))
    raw = read(index) if index else None
    if raw is None:
        return None
    placed = parse_index(raw, f"{where}/{index}")
    return Chosen(format, tuple(sorted(set(placed.values()))), placed)


def parse_index(raw: bytes, where: str) -> dict[str, str]:
    """The weight map of an index: tensor -> file of the same directory. Raises BadInput."""
    try:
        doc = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadInput(
            f"{where}: not JSON",
            why="the index tells which shard holds which tensor",
            fix="fetch the index again",
        ) from None
    found = doc.get("weight_map") if isinstance(doc, dict) else None
    if not isinstance(found, dict) or not found:
        raise BadInput(
            f"{where}: no weight_map",
            why="the index tells which shard holds which tensor",
            fix="fetch the index again",
        )
    for tensor, shard in found.items():
        if (
            not isinstance(shard, str)
            or PurePosixPath(shard).name != shard
            or "\0" in shard
            or shard in ("", ".", "..")
        ):
            raise BadInput(
                f"{where}: tensor {tensor!r:.120} is said to be in {shard!r:.120}",
                why="shards are files of the same directory; anything else is hostile",
                fix="fetch the index again from where the model came",
            )
    return found


class LocalWeights(NamedTuple):
    """Weight files of a directory of this host, all there. `paths` as `names`, without links."""

    directory: Path
    format: str
    names: tuple[str, ...]
    placed: Mapping[str, str]

    @property
    def paths(self) -> tuple[Path, ...]:
        return tuple(Path(os.path.realpath(self.directory / name)) for name in self.names)

    @property
    def size_bytes(self) -> int:
        return sum(os.stat(self.directory / name).st_size for name in self.names)

    @property
    def beside_names(self) -> tuple[str, ...]:
        """What else of the directory a start may read: all that is no weights, and the index."""
        single, index = LAYOUT[self.format]
        unread = {name for names in LAYOUT.values() for name in names} - {
            index if single not in self.names else ""
        }
        return tuple(
            file.name
            for file in sorted(self.directory.iterdir())
            if file.is_file() and not holds_weights(file) and file.name not in unread
        )

    @property
    def beside(self) -> tuple[Path, ...]:
        """The same without links."""
        return tuple(Path(os.path.realpath(self.directory / name)) for name in self.beside_names)


def holds_weights(file: Path) -> bool:
    """By its name: of whatever library, also what no loader here would read."""
    return file.name.endswith(SUFFIXES)


def formats(directory: str | os.PathLike[str]) -> list[str]:
    """Those that a directory has weights in, the preferred one first."""
    path = Path(directory)
    return [
        format
        for format, names in LAYOUT.items()
        if any((path / name).is_file() for name in names if name) or _ggufs(path, format)
    ]


def local(directory: str | os.PathLike[str], format: str = "") -> LocalWeights:
    """The weights of this format, or of the one that the directory is in. Raises BadInput: there
    are none, or a shard of them is missing."""
    path = Path(directory)
    format = format or next(iter(formats(path)), "")
    found = (
        choose(
            format, lambda name: (path / name).is_file(), lambda name: _read(path / name), str(path)
        )
        if format
        else None
    )
    if found is None and (names := _ggufs(path, format)):
        found = Chosen(format, names)
    if found is None:
        raise _none(path, format)
    missing = [name for name in found.names if not (path / name).is_file()]
    if missing:
        raise _missing(path / missing[0], found, len(missing))
    return LocalWeights(path, found.format, found.names, found.placed)


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _ggufs(path: Path, format: str) -> tuple[str, ...]:
    """The one GGUF file of a directory, whatever its name, or all parts of one (as llama-gguf-split
    names them); () where there is none, or a choice."""
    if format != "gguf":
        return ()
    found = [file.name for file in path.glob("*.gguf") if file.is_file()]
    parts = [_PART.fullmatch(name) for name in found]
    of = {(part[1], int(part[2])) for part in parts if part}
    if len(of) == 1 and all(parts):
        [(name, count)] = of
        return tuple(f"{name}-{i:05d}-of-{count:05d}.gguf" for i in range(1, count + 1))
    return tuple(found) if len(found) == 1 else ()


def _missing(file: Path, found: Chosen, count: int) -> BadInput:
    holds = next((tensor for tensor, name in found.placed.items() if name == file.name), "")
    known = f"the index says it holds {holds}" if holds else "it is a part of what is beside it"
    if count > 1:
        known += f" (and {count - 1} more shards are missing)"
    if file.is_symlink():
        return BadInput(
            f"{file}: a link to {os.readlink(file)}, which is not there; {known}",
            why="the checkpoint is incomplete: its blob was removed, or only links were copied",
            fix="fetch the model again, or copy it with cp -rL",
        )
    return BadInput(
        f"{file}: no such file; {known}",
        why="the checkpoint is incomplete",
        fix="fetch the missing shard",
    )


def _none(path: Path, format: str) -> BadInput:
    """No weights: what is there instead tells what to do."""
    wanted = [format] if format else list(LAYOUT)
    names = [name for one in wanted for name in LAYOUT[one] if name]
    kind = f"{format} checkpoint" if format else "checkpoint"
    what = f"{path}: no {kind}: no " + (
        ", ".join(names[:-1]) + f" or {names[-1]}" if names[1:] else names[0]
    )
    for name in names:
        if (path / name).is_symlink():
            return BadInput(
                f"{path / name}: a link to {os.readlink(path / name)}, which is not there",
                why="the blob that it led to was removed, or only links were copied",
                fix="fetch the model again, or copy it with cp -rL",
            )
    there = sorted(file.name for file in path.glob("*")) if path.is_dir() else []

    def like(*begin: str) -> str:
        return next((n for n in there if n.startswith(begin) and n.endswith(SUFFIXES)), "")

    if "snapshots" in there:
        revisions = sorted(path.glob("snapshots/*"))
        return BadInput(
            what,
            why="this is a repository of the Hugging Face cache; a model is one of its snapshots",
            fix=f"give {revisions[-1] if revisions else path / 'snapshots' / 'REVISION'}",
        )
    if shard := next((n for n in there if "-of-" in n and n.endswith(SUFFIXES)), ""):
        return BadInput(
            what,
            why=f"there are shards ({shard}), and no index that says which of them belong together",
            fix="fetch the index too",
        )
    if variant := like("model.", "pytorch_model."):
        return BadInput(
            what,
            why=f"there is only a variant ({variant}), which is loaded where it is asked for",
            fix="link it under the plain name: ln -s",
        )
    if adapter := like("adapter_model."):
        return BadInput(
            what,
            why=f"{adapter} is an adapter: it changes another model's weights",
            fix="merge it into its model (peft: merge_and_unload), or give that model",
        )
    if original := like("consolidated."):
        return BadInput(
            what,
            why=f"{original} is the layout of the model's authors, under other tensor names",
            fix="fetch the repository's files for transformers",
        )
    if len([n for n in there if n.endswith(".gguf")]) > 1 and "gguf" in wanted:
        return BadInput(
            what,
            why="there are several GGUF files, and nothing says which one is meant",
            fix="give a directory with one of them",
        )
    return BadInput(
        what,
        why="there are no weights to load",
        fix=f"labkit model convert DIR --to {format} OUT"
        if format and formats(path)
        else "labkit model make --preset tiny DIR, or give the directory of a public model",
    )

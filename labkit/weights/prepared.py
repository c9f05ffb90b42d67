"""The subject's checkpoint in another format, made once per content and kept in the workspace's
artifacts.

    prepared = checkpoint_in("gguf:Q8_0", subject, workspace)
    prepared.directory
    prepared.prepare_s, prepared.added_bytes     # the cost of the conversion is part of the trade

Lesson: notebooks/04_model_formats.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from labkit.core.beside import one_at_a_time, replacing
from labkit.core.workspace import Workspace
from labkit.formats import weight_files
from labkit.formats.weight_files import LocalWeights
from labkit.technique import Subject
from labkit.weights.convert import convert

#: Above it a file is known by its time, whatever it is.
SMALL_BYTES = 64 << 20


@dataclass(frozen=True)
class Prepared:
    """`weights`: the files that a loader of the format reads, nothing else of the directory."""

    directory: Path
    digest: str
    prepare_s: float  # what the conversion took when it was made; 0 if none was needed
    added_bytes: int  # what it costs on disk beside the original
    weights: LocalWeights

    @property
    def weights_bytes(self) -> int:
        """What a loader must move."""
        return self.weights.size_bytes

    @property
    def files(self) -> list[str]:
        """What a start may read of it, without links: weights, configuration, tokenizer."""
        return [str(path) for path in (*self.weights.paths, *self.weights.beside)]


def fingerprint(directory: Path) -> str:
    """Identity of a checkpoint by its files' names, sizes and times, and its small files' contents:
    no pass over gigabytes."""
    seen = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            about = file.stat()
            seen.update(f"{file.name}\0{about.st_size}\0".encode("utf-8", "surrogateescape"))
            seen.update(
                f"{about.st_mtime_ns}\0".encode()
                if weight_files.holds_weights(file) or about.st_size > SMALL_BYTES
                else file.read_bytes()
            )
    return seen.hexdigest()


def checkpoint_in(format: str, subject: Subject, workspace: Workspace) -> Prepared:
    """The subject's own directory where it already is in `format`, else the cached conversion of
    it."""
    source = Path(subject.model_dir)
    weights = weight_files.local(source)
    digest = hashlib.sha256(f"{fingerprint(source)} {format}".encode()).hexdigest()
    if weights.format == format:
        return Prepared(source, digest, 0.0, 0, weights)
    home = workspace.artifacts / "weights"
    home.mkdir(exist_ok=True)
    target = home / f"{subject.preset}-{format.replace(':', '-').lower()}-{digest[:12]}"
    note = target.with_suffix(".json")
    with one_at_a_time(target):
        if not (target.is_dir() and note.exists()):
            facts = convert(source, target, format) if not target.is_dir() else {"convert_s": 0.0}
            with replacing(note) as part:
                part.write_text(json.dumps(facts))
    made = weight_files.local(target, format.partition(":")[0])
    return Prepared(
        target, digest, json.loads(note.read_text())["convert_s"], made.size_bytes, made
    )

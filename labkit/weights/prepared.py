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
from labkit.technique import Subject
from labkit.weights.convert import WEIGHT_SUFFIXES, convert
from labkit.weights.source import format_of, open_source


@dataclass(frozen=True)
class Prepared:
    directory: Path
    digest: str
    prepare_s: float  # what the conversion took when it was made; 0 if none was needed
    added_bytes: int  # what it costs on disk beside the original
    weights_bytes: int  # what a loader must move


def fingerprint(directory: Path) -> str:
    """Identity of a checkpoint by its files' names, sizes and times, and its small files' contents:
    no pass over gigabytes."""
    seen = hashlib.sha256()
    for file in sorted(directory.iterdir()):
        if file.is_file() and not file.name.startswith("."):
            about = file.stat()
            seen.update(f"{file.name}\0{about.st_size}\0".encode())
            seen.update(
                f"{about.st_mtime_ns}\0".encode()
                if file.suffix in WEIGHT_SUFFIXES
                else file.read_bytes()
            )
    return seen.hexdigest()


def weights_bytes(directory: Path) -> int:
    return sum(f.stat().st_size for f in directory.iterdir() if f.suffix in WEIGHT_SUFFIXES)


def checkpoint_in(format: str, subject: Subject, workspace: Workspace) -> Prepared:
    """The subject's own directory where it already is in `format`, else the cached conversion of
    it."""
    source = Path(subject.model_dir)
    opened = open_source(source)
    digest = hashlib.sha256(f"{fingerprint(source)} {format}".encode()).hexdigest()
    if format_of(opened) == format:
        return Prepared(source, digest, 0.0, 0, weights_bytes(source))
    home = workspace.artifacts / "weights"
    home.mkdir(exist_ok=True)
    target = home / f"{subject.preset}-{format.replace(':', '-').lower()}-{digest[:12]}"
    note = target.with_suffix(".json")
    with one_at_a_time(target):
        if not (target.is_dir() and note.exists()):
            facts = convert(source, target, format) if not target.is_dir() else {"convert_s": 0.0}
            with replacing(note) as part:
                part.write_text(json.dumps(facts))
    return Prepared(
        target,
        digest,
        json.loads(note.read_text())["convert_s"],
        weights_bytes(target),
        weights_bytes(target),
    )

"""What a snapshot is prepared for – model, host, the server's own code – as a digest.

    target = workspace.artifacts / f"criu-process-{digest_of(model_identity(model))}"

Limit: metadata of the model, and the server's own code read. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

from labkit.core import shipped


def digest_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits over parts that JSON can hold; of anything else its `str`."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_identity(directory: Path) -> list[list[str | int]]:
    """[name, bytes, mtime in ns] of each file of a model's directory. Raises OSError."""
    return [
        [p.name, p.stat().st_size, p.stat().st_mtime_ns]
        for p in sorted(directory.iterdir())
        if p.is_file()
    ]


def code_identity() -> list[str | None]:
    """The server's own code is in the snapshot: another version needs another snapshot."""
    # metadata only: the harness must not map torch's libraries itself
    from labkit.core.host import package_version

    files = [
        *sorted((shipped.PACKAGE / "subject").glob("*.py")),
        *sorted((shipped.PACKAGE / "weights" / "loaders").glob("*.py")),
        shipped.PACKAGE / "core" / "timeline.py",
    ]
    return [
        sys.executable,
        package_version("torch"),
        hashlib.sha256(b"".join(f.read_bytes() for f in files)).hexdigest(),
    ]

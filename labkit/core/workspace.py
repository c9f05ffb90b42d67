"""Where the lab keeps what it made: one folder, `LABKIT_HOME` (default `~/.cache/labkit`), safe to delete at any time.

    models/     checkpoints by preset and format         artifacts/  what techniques prepared, by content
    images/     OCI layouts                              runs/       records
    nodes/      one empty directory a trial, removed     ledger/     what is running now, for take-down

A workspace on a shared team host belongs to one user: it is made 0700, as it holds registry state and snapshots.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

ROOMS = ("models", "images", "artifacts", "runs", "nodes", "ledger")


@dataclass(frozen=True)
class Workspace:
    root: Path

    @staticmethod
    def default() -> Workspace:
        return Workspace.at(os.environ.get("LABKIT_HOME") or Path.home() / ".cache" / "labkit")

    @staticmethod
    def at(root: str | os.PathLike[str]) -> Workspace:
        made = Workspace(Path(root).expanduser().resolve())
        made.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        return made

    def room(self, name: str) -> Path:
        if name not in ROOMS:
            raise ValueError(f"no room {name!r} in a workspace; rooms: {', '.join(ROOMS)}")
        path = self.root / name
        path.mkdir(exist_ok=True)
        return path

    models = property(lambda self: self.room("models"))
    images = property(lambda self: self.room("images"))
    artifacts = property(lambda self: self.room("artifacts"))
    runs = property(lambda self: self.room("runs"))
    nodes = property(lambda self: self.room("nodes"))
    ledger = property(lambda self: self.room("ledger"))

"""Which run records were written on whose behalf: a list handed down by environment.

Whoever starts something that measures – a notebook, a script – gives it a list, and every record
that it or a process of it writes is noted there. So two that run side by side never take each
other's records, wherever these lie.

    with handed_down(folder / "records.jsonl") as noted:
        subprocess.run(command, env={**os.environ, **noted.environment})
        noted.paths()        # (Path("…/runs/20261128T….json"),)

One line a note, appended in one write; a record that is written again, as after each trial, counts
once. Limit: a process that clears its environment notes nothing. Lesson: none; see STYLE.md,
Notebooks."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ENV = "LABKIT_RECORD_LIST"


@dataclass(frozen=True)
class RecordList:
    path: Path

    @property
    def environment(self) -> dict[str, str]:
        return {ENV: str(self.path)}

    def paths(self) -> tuple[Path, ...]:
        """Each record once, in the order in which they were begun; those that are still there."""
        lines = self.path.read_text(encoding="ascii").splitlines()
        found = (Path(json.loads(line)) for line in dict.fromkeys(lines))
        return tuple(path for path in found if path.is_file())


@contextlib.contextmanager
def handed_down(path: Path) -> Iterator[RecordList]:
    """A new list in this file. Nothing is noted in it once the block has ended."""
    path.touch(mode=0o600, exist_ok=False)
    try:
        yield RecordList(path)
    finally:
        path.unlink(missing_ok=True)


def note(record: Path) -> None:
    """Note a record where a list was handed down. One that is gone, with whoever asked for it, is
    passed over."""
    if not (listed := os.environ.get(ENV)):
        return
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(listed, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        try:
            os.write(descriptor, f"{json.dumps(os.path.abspath(record))}\n".encode("ascii"))
        finally:
            os.close(descriptor)

"""Plain reads of files from a disk into memory: the floor of a loader, and the read paths compared.

    compare_read_paths(paths, repeats=3)      # [{"read_path": "direct 1", "seconds": […]}, …]
    floor = DiskFloor(weights.paths, ledger)
    floor.look(); …; floor.look(again=True)   # floor.rate: bytes per second around both looks

Each read begins cold, with free memory prefaulted (`labkit.core.free_memory`), and ends when a byte
of every page has been looked at: "direct N" reads past the page cache into fresh memory from N
threads, "mapped" touches the pages of a mapping in order while the kernel reads ahead. Limit: the
disk. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path

from labkit.core import cold, free_memory, rates
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.subprocess_call import run_in_subprocess
from labkit.errors import LabError

READ_PATHS = ("direct 1", "direct 8", "mapped")
BLOCK_BYTES = 4 << 20


def seconds(paths: Sequence[Path], read_path: str) -> float:
    """To read all of these files, evicted before, by one of READ_PATHS. Raises LabError where they
    did not leave the page cache and the read path leads through it."""
    proof = cold.set_cache_state(paths, "cold", caches=False)
    if read_path == "mapped" and proof.state != "cold":
        raise LabError(
            f"a mapped read of {paths[0].parent} would not be cold",
            why=proof.note,
            fix="end what has these files mapped, then again",
        )
    free_memory.prefault(needed_bytes(sum(path.stat().st_size for path in paths)))
    if read_path == "mapped":
        return rates.mapped_read(paths)[1]
    threads = int(read_path.split()[1])
    return rates.direct_read(paths, threads, block_bytes=BLOCK_BYTES, fresh=True)[1]


def seconds_beside_torch(paths: Sequence[Path], read_path: str) -> float:
    """The same in a process that has imported torch, as a loader's trial is; for
    `run_in_subprocess`."""
    import torch  # noqa: F401

    return seconds(paths, read_path)


def needed_bytes(weights_bytes: int) -> int:
    """What the hungriest loader takes: a shard read and the parameters beside it, at most."""
    return 2 * weights_bytes + (256 << 20)


def compare_read_paths(paths: Sequence[Path], repeats: int = 3) -> list[JsonObject]:
    """Rounds of all read paths, interleaved. One that cannot be cold here has `failed`, the reason,
    and no seconds. `road` is the old name of `read_path`, kept for one version."""
    rows: list[JsonObject] = [
        {"read_path": read_path, "road": read_path, "seconds": []} for read_path in READ_PATHS
    ]
    for _ in range(repeats):
        for row in rows:
            try:
                row["seconds"].append(seconds(paths, row["read_path"]))
            except LabError as error:
                row["failed"] = str(error)
    return rows


#: Enough to know a disk's rate by.
SAMPLE_BYTES = 4 << 30
BUFFER_DEPTHS, BUFFER_BYTES = (8, 16), 16 << 20


def seconds_into_buffers(paths: Sequence[Path], depth: int) -> float:
    """To read all of these files, evicted before, past the page cache into `depth` buffers in huge
    pages, used again and again: as a load to a device may. For `run_in_subprocess`."""
    cold.set_cache_state(paths, "cold", caches=False)
    return rates.direct_read(paths, depth, block_bytes=BUFFER_BYTES, huge=True)[1]


class BufferFloor:
    """As DiskFloor, of a load to a device: its bytes pass through buffers of the host. Of a large
    checkpoint the first shards are read."""

    def __init__(self, paths: Sequence[Path], ledger: Ledger):
        self.paths: list[Path] = []
        for path in paths:
            if sum(p.stat().st_size for p in self.paths) < SAMPLE_BYTES:
                self.paths.append(path)
        self.ledger, self.rate, self.read_path, self._before, self._depth = ledger, 0.0, "", 0.0, 0

    def look(self, again: bool = False) -> None:
        if not self._depth:
            rates = {depth: self._rate(depth) for depth in BUFFER_DEPTHS}
            self._depth = max(rates, key=lambda depth: rates[depth])
            self.read_path, seen = (
                f"direct {self._depth} into buffers used again",
                rates[self._depth],
            )
        else:
            seen = self._rate(self._depth)
        self.rate = (self._before + seen) / 2 if again else seen
        self._before = seen

    def _rate(self, depth: int) -> float:
        return sum(path.stat().st_size for path in self.paths) / run_in_subprocess(
            seconds_into_buffers, self.paths, depth, ledger=self.ledger
        )


class DiskFloor:
    """Of a load from disk, just before and just after a trial, by the read path that is fastest on
    this disk.

    A virtual disk is shared: its rate moves by half within a minute, so what another block saw
    bounds nothing in this one, and the lucky one of two looks bounds no trial between them: their
    mean does. Each look is a process that has imported torch and finds memory prefaulted, as a
    trial does."""

    def __init__(self, paths: Sequence[Path], ledger: Ledger):
        self.paths, self.ledger = paths, ledger
        self.rate, self.read_path, self._before = 0.0, "", 0.0

    def look(self, again: bool = False) -> None:
        """Sets `rate`, bytes per second. `again`: the second look of one trial."""
        if not self.read_path:
            rates = {}
            for read_path in READ_PATHS:
                with contextlib.suppress(LabError):  # not cold: none here
                    rates[read_path] = self._rate(read_path)
            self.read_path = max(rates, key=lambda read_path: rates[read_path])
        seen = self._rate(self.read_path)
        self.rate = (self._before + seen) / 2 if again else seen
        self._before = seen

    def _rate(self, read_path: str) -> float:
        return sum(path.stat().st_size for path in self.paths) / run_in_subprocess(
            seconds_beside_torch, self.paths, read_path, ledger=self.ledger
        )

"""`labkit bench load --from disk`: every loader in each cache state, and what bounds it there.

    floors = LoadFloors("cpu", weights.paths, ledger)
    floors.disk.look(); floors.rate("cold"); floors.by(["cold"])    # bytes/s; by what

Limit: the disk (cold), memory (warm, tmpfs), the bus to a device. Lesson:
notebooks/05_streaming."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from labkit.bench import read_paths
from labkit.bench.engine import Arm, Measured, Results, interleave
from labkit.bench.load_child import LoadSpec, measure, measured
from labkit.bench.load_results import OURS, agreed, best_other
from labkit.core import cold, rates
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.workspace import Workspace
from labkit.formats import weight_files
from labkit.technique import Subject
from labkit.weights.catalog import LOADERS, Loader
from labkit.weights.prepared import Prepared, checkpoint_in

Facts = Callable[[Results], JsonObject]
Keeping = Callable[[argparse.Namespace, Facts], Callable[[Results], None] | None]


def from_disk(
    args: argparse.Namespace,
    names: list[str],
    states: list[str],
    subject: Subject,
    workspace: Workspace,
    ledger: Ledger,
    keeping: Keeping,
) -> JsonObject:
    """The facts of the document: every loader in every cache state. `keeping`: as
    `labkit.bench.load.keeping`."""
    floors = LoadFloors(args.device, weight_files.local(subject.model_dir).paths, ledger)
    arms: dict[str, Arm | str] = {}

    def facts_of(results: Results) -> JsonObject:
        results = agreed(results)
        best = {state: best_other(results, state) for state in states}
        ratios = {f"{OURS}_vs_floor.{state}": (f"{OURS}.{state}", "floor") for state in states}
        ratios |= {
            f"{OURS}_vs_best_other.{state}": (f"{OURS}.{state}", arm)
            for state, arm in best.items()
            if arm
        }
        return {
            "results_raw": results,
            "ratios": ratios,
            "best_other": best,
            "floor_by": floors.by(states),
            "rates": floors.rates,
        }

    with _Tmpfs(workspace, ledger) as tmpfs:
        for name in names:
            loader = LOADERS[name]
            missing = loader.missing()
            if not missing:
                try:
                    checkpoint = checkpoint_in(loader.format, subject, workspace)
                except Exception as error:  # whatever its library raises: the others are there
                    reason = str(error) or type(error).__name__
                    missing = f"the checkpoint could not be made in {loader.format}: {reason}"
            for state in states:
                if missing:
                    arms[f"{name}.{state}"] = f"{missing}: {loader.fix}" if loader.fix else missing
                else:
                    arms[f"{name}.{state}"] = partial(
                        _load, args.device, loader, checkpoint, state, floors, tmpfs
                    )
        results = interleave(
            arms, args.blocks, args.seed, getattr(args, "progress", None), keeping(args, facts_of)
        )
    return facts_of(results)


class LoadFloors:
    """What bounds a load in each cache state, by the device that it goes to."""

    def __init__(self, device: str, paths: Sequence[Path], ledger: Ledger):
        self.on_device = device != "cpu"
        self.rates: JsonObject = rates.device() if self.on_device else rates.memory(256 << 20)
        kind = read_paths.BufferFloor if self.on_device else read_paths.DiskFloor
        self.disk = kind(paths, ledger)

    def rate(self, state: str) -> float:
        """Bytes per second; 0.0 where it is not known."""
        if not self.on_device:
            return self.disk.rate if state == "cold" else float(self.rates["memcpy_bytes_per_s"])
        bus = float(self.rates.get("h2d_pinned_bytes_per_s") or 0)
        return min(self.disk.rate, bus) if state == "cold" and bus else bus

    def by(self, states: list[str]) -> str:
        if not self.on_device:
            return self.disk.read_path
        bus = float(self.rates.get("h2d_pinned_bytes_per_s") or 0)
        if not bus:
            return f"the bus was not measured: {self.rates.get('h2d_failed', 'no GPU found')}"
        slower = (
            f"the disk ({self.disk.read_path})"
            if self.disk.rate < bus
            else "the bus from pinned memory"
        )
        return "; ".join(
            f"{state}: " + (slower if state == "cold" else "the bus from pinned memory")
            for state in states
        )


def _load(
    device: str,
    loader: Loader,
    checkpoint: Prepared,
    state: str,
    floors: LoadFloors,
    tmpfs: _Tmpfs,
) -> Measured:
    directory, files = checkpoint.directory, checkpoint.files
    ours = state == "cold" and loader.name == OURS
    if ours or (state == "cold" and not floors.disk.rate):
        floors.disk.look()
    if state == "tmpfs":
        directory = tmpfs.holding(checkpoint)
        files = [str(directory)]
    if state == "warm" and not floors.on_device:
        # Pages lie in folios as large as whoever read them asked for, and touching 2 GB in
        # small ones takes six times as long: read in anew, alike for all arms.
        cold.evict(files, caches=False)
    for _ in range(3):  # another process of the host may drop caches meanwhile
        if state == "tmpfs":
            proof = cold.verify_cache_state(files, "warm")
        else:
            tolerance = 0.0 if state == "warm" else cold.TOLERANCE
            proof = cold.set_cache_state(
                files, state, caches=not floors.on_device, tolerance=tolerance
            )
        if proof.state != "unverified":
            break
    else:
        return Measured(float("nan"), failed=f"cache not {state}: {proof.note}")
    weights = weight_files.local(directory, checkpoint.weights.format)
    size = weights.size_bytes
    doc = measure(
        LoadSpec(
            loader=loader,
            model=str(directory),
            weights_bytes=size,
            device=device,
            about={"files": tuple(map(str, weights.paths))},
        )
    )
    if ours:
        floors.disk.look(again=True)
    rate = floors.rate(state)
    return measured(doc, state, size, size / rate if rate else None)


class _Tmpfs:
    """One checkpoint at a time in memory, beside nothing else that big; written anew for each
    trial. Once the host's caches have been dropped (a cold trial does that), pages of a tmpfs
    stay, but mapping and touching them takes six times as long, for good."""

    def __init__(self, workspace: Workspace, ledger: Ledger):
        self.ledger, self.entry = ledger, ""
        self.root: Path | None = None

    def __enter__(self) -> _Tmpfs:
        return self

    def holding(self, checkpoint: Prepared) -> Path:
        if self.root is None:
            self.root = Path(f"/dev/shm/labkit-tmpfs-{self.ledger.token}-{os.getpid()}")
            self.entry = self.ledger.note("dir", self.root)
            self.root.mkdir(mode=0o700)
        for old in self.root.iterdir():
            shutil.rmtree(old)
        target = self.root / checkpoint.directory.name
        target.mkdir()
        for name in (*checkpoint.weights.names, *checkpoint.weights.beside_names):
            shutil.copy2(checkpoint.directory / name, target / name)
        return target

    def __exit__(self, *_: object) -> None:
        if self.root:
            shutil.rmtree(self.root, ignore_errors=True)
            self.ledger.done(self.entry)

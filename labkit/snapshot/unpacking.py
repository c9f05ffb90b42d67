"""A snapshot that lies packed on the node's disk: fewer bytes to read, unpacked by all cores while
the rest is read.

    criu-process-packed, criu-container-packed       (a fresh node's snapshot crosses the link
        packed anyway)

A cold disk gives 0.5 to 3 GB/s, and a Python heap shrinks to a seventh of its size: unpacking 170
MB by two cores takes less time than reading them, and the libraries and the model are read
meanwhile. Where the disk is fast and the cores are few, it is the other way round: both are here to
be measured. Limit: packed bytes ÷ read rate, unpacking at ~1 GB/s a core. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from labkit.core.beside import build_once
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.snapshot import container, packing, readahead, store
from labkit.snapshot.container_technique import CriuContainer
from labkit.snapshot.techniques import CriuProcess
from labkit.technique import Artifact, Evidence, Observation, Subject, register, technique


def unpack(ctx: StepContext, packed: str) -> JsonObject:
    """The first half of `restore`: CRIU image files into the page cache. Leaves state
    `snapshot_dir`. Raises SnapshotRefused."""
    source, target = Path(packed), ctx.node / "snapshot"
    manifest_bytes = (source / "manifest.json").read_bytes()
    index = packing.parse_index((source / packing.INDEX).read_bytes(), manifest_bytes)
    manifest = store.parse_manifest(manifest_bytes, target)
    frames = {name: about["frames"] for name, about in index["files"].items() if about["frames"]}
    (target / "images").mkdir(mode=0o700, parents=True)
    target.chmod(0o700)
    with ctx.span("restore.unpack") as span:
        # The packed bytes first into the disk's queue, then what the restored process will touch:
        # it is read beside the unpacking.
        ahead = readahead.Ahead(
            [
                readahead.Piece(
                    str(source / "images" / name), 0, index["files"][name]["stored_bytes"]
                )
                for name in frames
            ]
            + readahead.ranges_of(manifest, _paths_here(ctx, manifest))
        )
        ahead.start()
        ctx.on_stop(ahead.stop)
        for name in index["files"]:
            if name not in frames:
                shutil.copyfile(source / "images" / name, target / "images" / name)
                os.chmod(target / "images" / name, 0o600)
        span["bytes"] = _unpack_frames(source / "images", target / "images", frames)
    (target / "manifest.json").write_bytes(manifest_bytes)
    (target / "manifest.json").chmod(0o600)
    ctx.state.snapshot_dir = str(target)
    return {
        "unpacked_bytes": span["bytes"],
        "packed_bytes": sum(about["stored_bytes"] for about in index["files"].values()),
    }


def _paths_here(ctx: StepContext, manifest: store.Manifest) -> dict[str, str]:
    """Where each file of the working set is on this node: the host's own, or a container's below
    its root."""
    if not manifest.container:
        return {path: path for path in manifest.working_set}
    return container.sources(manifest, ctx.state.rootfs, {})


def _unpack_frames(source: Path, target: Path, frames: Mapping[str, list[list[int]]]) -> int:
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        opened: list[int] = []
        try:
            jobs = []
            for name, rows in frames.items():
                opened += [
                    os.open(source / name, os.O_RDONLY | os.O_CLOEXEC),
                    os.open(
                        target / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600
                    ),
                ]
                jobs += [
                    pool.submit(_unpack_frame, name, row, opened[-2], opened[-1]) for row in rows
                ]
            return sum(job.result() for job in jobs)
        finally:
            pool.shutdown(cancel_futures=True)
            for fd in opened:
                os.close(fd)


def _unpack_frame(name: str, row: list[int], source: int, target: int) -> int:
    raw = packing.unframed(name, row, os.pread(source, row[1], row[0]))
    return os.pwrite(target, raw, row[2])


class _Packed:
    """What the two have beside the technique whose snapshot they restore."""

    name = ""
    of = ""
    rung, claims_row = 0, ""
    excluded_scenarios: tuple[str, ...] = ("fresh-node",)

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        artifact = technique(self.of).prepare(subject, workspace)
        path = artifact.paths["snapshot"]
        folder = Path(path + "-packed")
        build_once(
            folder,
            lambda part: packing.pack(store.open_snapshot(path), part, "zstd"),
            mode=0o700,
        )
        stored = sum(
            about["stored_bytes"]
            for about in json.loads((folder / packing.INDEX).read_text())["files"].values()
        )
        return replace(
            artifact,
            technique=self.name,
            paths={**artifact.paths, "packed": str(folder)},
            facts={**artifact.facts, "packed_bytes": stored},
        )

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.scenario in self.excluded_scenarios:
            from labkit.errors import BadInput

            raise BadInput(
                f"{self.name} means nothing on a {plan.scenario}",
                why="a snapshot crosses the link packed anyway",
                fix=f"snapshot={self.of}",
            )
        plan = super().apply(plan, artifact)  # type: ignore[misc]
        *before, restore = plan.steps
        floors = {
            **plan.floors_bytes,
            "restore": (
                artifact.facts["restore_bytes"]
                - artifact.facts["size_bytes"]
                + artifact.facts["packed_bytes"]
            ),
            "restore@decompress_zstd*": artifact.facts["pages_bytes"],
        }
        packed, raw = artifact.paths["packed"], artifact.paths["snapshot"]
        return replace(
            plan,
            steps=(
                *before,
                Step(
                    "restore",
                    "labkit.snapshot.unpacking:unpack",
                    {"packed": packed},
                    pre_start="labkit.snapshot.transport:know_libraries",
                ),
                restore,
            ),
            floors_bytes=floors,
            cold_paths=tuple(packed if path == raw else path for path in plan.cold_paths),
        )

    def verify(self, seen: Observation) -> Evidence:
        found: Evidence = super().verify(seen)  # type: ignore[misc]
        step = seen.facts.get("restore", {})
        if not found.engaged or not step.get("unpacked_bytes"):
            return replace(
                found,
                engaged=False,
                how=(
                    found.how
                    if not found.engaged
                    else "nothing was unpacked: its CRIU image was read as it is"
                ),
            )
        return replace(
            found,
            how=f"{found.how}; unpacked from {show_bytes(float(step['packed_bytes']))} on disk",
            facts={**found.facts, "packed_bytes": step["packed_bytes"]},
        )


@register
class CriuProcessPacked(_Packed, CriuProcess):
    name, of = "criu-process-packed", "criu-process"
    title = "restore the server process with CRIU, the CRIU image packed on disk"


@register
class CriuContainerPacked(_Packed, CriuContainer):
    name, of = "criu-container-packed", "criu-container"
    title = "restore the server's container with CRIU, the CRIU image packed on disk"

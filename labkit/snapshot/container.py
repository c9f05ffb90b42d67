"""The same with a container around it: `runc restore` in place of `start`
(`labkit.snapshot.container_create` makes what it restores).

The container is the one the process layer starts (labkit.image.runtimes.runc): the OCI image's
files, the host's network, pipes as standard streams – runc notes them and hands new ones to the
restored process. Mounts are external to the snapshot: on another node the OCI image and the model
are bound from where they are there.

    Step("restore", "labkit.snapshot.container:restore", {"snapshot":
        "/…/artifacts/criu-container-…"})

Traps that are handled here: CRIU image and work paths must be absolute; the restored process is
held stopped (CRIU's `leave-stopped`, through runc's configuration annotation) until it has its CPU
permissions back and its pages were checked. Limit: as for a process, and runc's own 60–120 ms.
Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core import exits, secrets
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.image.runtimes import runc as runtime
from labkit.image.runtimes.container import prepare_container
from labkit.image.runtimes.server import drain
from labkit.image.takedown import DELETE_CONTAINER, SYSTEM_PATH, delete_container
from labkit.snapshot import (
    criu,
    process,
    readahead,
    store,
    transport,
    xstate,
)
from labkit.snapshot.explain import refusal

CONFIG = "org.criu.config"  # annotation: a file of CRIU options that runc hands on
#: The OCI image's digests vouch for its files. CRIU would read the build ID of each of them: a
#: hundred small reads of a cold disk, or of a registry (1 s of round trips on a lazy mount), one
#: after the other.
UNREAD = "file-validation filesize\n"


def runc(root: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    path = os.environ.get("PATH", "") + SYSTEM_PATH  # runc looks for criu there
    return subprocess.run(
        [shutil.which("runc", path=path) or "runc", "--root", root, *arguments],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path},
        **options,
    )


def log_of(log: Path, output: str) -> str:
    """CRIU's log; where it holds no error, runc's own words as one."""
    text = criu.log_text(log)
    return text if "Error (" in text else f"{text}\nError: runc: {output.strip()[-500:]}"


def annotate(bundle: Path, config: Path) -> None:
    """Have runc hand this file of options on to CRIU."""
    spec = json.loads((bundle / "config.json").read_text())
    spec.setdefault("annotations", {})[CONFIG] = str(config.resolve())
    (bundle / "config.json").write_text(json.dumps(spec))


def ask_ahead(ctx: StepContext) -> JsonObject:
    """A step while the snapshot is on its way: put what the restored process touched of the OCI
    image into the mount's queue."""
    manifest = ctx.state.handed(transport.SnapshotDownload).manifest.result()
    rootfs = ctx.state.rootfs
    ours = tuple(folder + "/" for folder in manifest.container["binds"])
    pieces = readahead.ranges_of(
        manifest, {p: rootfs + p for p in manifest.working_set if not p.startswith(ours)}
    )
    ahead = readahead.Ahead(pieces)
    ahead.start()
    ctx.on_stop(ahead.stop)
    return {
        "touched_bytes": readahead.piece_bytes(pieces),
        "touched_files": len({p.path for p in pieces}),
    }


def restore(ctx: StepContext, snapshot: str, lazy: bool = False) -> JsonObject:
    """The step: as labkit.snapshot.process:restore, into a container on ctx.state.rootfs."""
    where = store.open_snapshot(ctx.state.snapshot_dir or snapshot)
    moved = dict(ctx.state.moved)
    process.refuse_if_unfit(where, moved)
    rootfs = ctx.state.rootfs
    model = {os.path.dirname(old): os.path.dirname(new) for old, new in moved.items()}
    ctx.server_binds[:] = [
        (model.get(folder, folder), folder) for folder in where.manifest.container["binds"]
    ]
    # the restored server has its own environment: nothing of this trial is in it
    ctx.server_env.pop("LABKIT_TIMELINE", None)
    pieces = readahead.pieces_of(
        where, moved=sources(where.manifest, rootfs, moved), coming=process.coming_files(ctx, where)
    )
    bundle = prepare_bundle(
        ctx, where
    )  # before the disk's queue is full: what is small would wait behind it
    with readahead.reading(pieces) as ahead:
        ctx.on_stop(ahead.stop)
        pid, handed = runc_restore(ctx, bundle, where.manifest.permissions)
        with ctx.span("restore.checked"):
            ahead.checked()
            fetched = transport.wait_for_model(ctx)
            criu.resume(pid)
    return {
        "server_pid": pid,
        "model_bytes_fetched": fetched,
        "nonce": where.manifest.nonce,
        "image_bytes": where.manifest.size_bytes,
        "pages_bytes": process.pages_bytes(where),
        "mapped_bytes": sum(where.manifest.mapped.values()),
        "working_set_bytes": process.working_set_bytes(where),
        "rootfs": rootfs,
        "read_ahead_s": ahead.seconds,
        "container": ctx.state.container["id"],
        "dumped_pid": where.manifest.pid,
        "permissions": handed.as_facts(),
        "secrets": ", ".join(where.manifest.secrets),
    }


def sources(manifest: store.Manifest, rootfs: str, moved: dict[str, str]) -> dict[str, str]:
    """Where each file of the working set is on this node: in the model's directory, or in the
    OCI image."""
    binds = tuple(folder + "/" for folder in manifest.container["binds"])
    return {p: moved.get(p, p) if p.startswith(binds) else rootfs + p for p in manifest.working_set}


@dataclass(frozen=True)
class Bundle:
    """An OCI bundle with links to the CRIU images, ready for `runc restore`."""

    directory: Path
    name: str
    criu_images: Path

    @property
    def root(self) -> str:
        return str(self.directory / "state")

    @property
    def work(self) -> Path:
        return self.directory / "work"


def prepare_bundle(ctx: StepContext, snapshot: store.Snapshot) -> Bundle:
    """The files' paths inside of the container stay what they were."""
    with ctx.span("restore.place"):
        ctx.state.image_config = (
            ctx.state.image_config or snapshot.manifest.container["image_config"]
        )
        root, binds = prepare_container(ctx)
        bundle, name = root.skeleton.parent, f"labkit-{os.getpid()}-{ctx.port}"
        (bundle / "work").mkdir(exist_ok=True)
        criu_images = process.stage_images(snapshot, bundle / "images", port=ctx.port, moved={})
        config = bundle / "work" / "criu.conf"
        config.write_text(UNREAD + "leave-stopped\n")
        secrets.write_private(
            bundle / "config.json",
            json.dumps(runtime.bundle_config(ctx, root, binds, f"/labkit/{name}")),
        )
        annotate(bundle, config)
    return Bundle(bundle, name, criu_images)


def runc_restore(ctx: StepContext, bundle: Bundle, permissions: Mapping[str, int]) -> criu.Restored:
    """`runc restore`: the container's tree, stopped, with the permissions it had."""
    directory, name, state, work = bundle.directory, bundle.name, bundle.root, bundle.work
    entry = ctx.ledger.note("action", DELETE_CONTAINER, container=name, root=state)

    def end() -> None:
        delete_container(state, name)
        exits.reap(ctx.state.server_pid)
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    out, pipe = os.pipe()
    try:
        drain(ctx, out)
        with ctx.span("restore.criu"), exits.adopting():
            done = runc(
                state,
                "--log",
                str(directory / "runc.log"),
                "restore",
                "--detach",
                "--image-path",
                str(bundle.criu_images),
                "--work-path",
                str(work),
                "--pid-file",
                str(directory / "pid"),
                "--bundle",
                str(directory),
                name,
                stdout=pipe,
                stderr=pipe,
            )
    finally:
        os.close(pipe)
    if done.returncode:
        output = criu.log_text(directory / "runc.log")[-600:]
        raise refusal("restore", log_of(work / "restore.log", output), done.returncode)
    pid = int((directory / "pid").read_text())
    ctx.state.server_pid = pid
    ctx.state.container = {"id": name, "root": state, "bundle": str(directory)}
    return criu.Restored(pid, xstate.hand_on(pid, permissions))

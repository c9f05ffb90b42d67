"""The same with a container around it: `runc checkpoint` off the clock, `runc restore` in place of
`start`.

The container is the one the process layer starts (labkit.image.runtimes.runc): the image's files,
the host's network, pipes as standard streams – runc notes them and hands new ones to the restored
process. Mounts are external to the snapshot: on another node the image and the model are bound from
where they are there.

    Step("restore", "labkit.snapshot.container:restore", {"snapshot":
        "/…/artifacts/criu-container-…"})

Traps that are handled here: image and work paths must be absolute; the restored process is held
stopped (CRIU's `leave-stopped`, through runc's configuration annotation) until it has its CPU
permissions back and its pages were checked. Limit: as for a process, and runc's own 60–120 ms.
Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core import beside, cold, exits, secrets, timeline
from labkit.core.ledger import current
from labkit.core.node_state import NodeState
from labkit.core.plan import StepContext
from labkit.core.proc import environ, start_time
from labkit.core.trial import free_port
from labkit.errors import TrialError
from labkit.image.runtimes import runc as runtime
from labkit.image.runtimes.container import prepare_container
from labkit.image.runtimes.server import drain
from labkit.snapshot import create, criu, images, process, readahead, store, transport, xstate
from labkit.snapshot.explain import refusal
from labkit.snapshot.takedown import MARK

CONFIG = "org.criu.config"  # annotation: a file of CRIU options that runc hands on
#: The image's digests vouch for its files. CRIU would read the build ID of each of them: a hundred
#: small reads of a cold disk, or of a registry (1 s of round trips on a lazy mount), one after the
#: other.
UNREAD = "file-validation filesize\n"


def _runc(root: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    path = os.environ.get("PATH", "") + ":/usr/local/bin:/usr/sbin"  # runc looks for criu there
    return subprocess.run(
        [shutil.which("runc", path=path) or "runc", "--root", root, *arguments],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PATH": path},
        **options,
    )


def make_container(
    rootfs: Path,
    image_config: dict[str, Any],
    model: Path,
    target: Path,
    *,
    loader: str,
    scratch: Path,
    request: dict[str, Any] | None = None,
    extra: Sequence[str] = (),
) -> store.Snapshot:
    """Snapshot of the subject in a runc container. Raises SnapshotError; nothing is left of a
    failed one."""
    with beside.scratch(f"{scratch.name}-", scratch.parent) as room:
        return _make_container(rootfs, image_config, model, target, loader, room, request, extra)


def _make_container(
    rootfs: Path,
    image_config: dict[str, Any],
    model: Path,
    target: Path,
    loader: str,
    scratch: Path,
    request: dict[str, Any] | None,
    extra: Sequence[str],
) -> store.Snapshot:
    began, asked = timeline.now_s(), {"prompt": create.PROMPT, "max_tokens": 8, **(request or {})}
    ctx = _context(scratch, rootfs, image_config, model, loader, extra, target.name)
    try:
        with store.writing(target) as part:
            runtime.start(ctx)
            pid, about = ctx.state.server_pid, ctx.state.container
            answer = create.first_tokens(ctx.port, asked, lambda: start_time(pid) != 0)
            if answer.first_token_s is None:
                raise TrialError(
                    "the subject in the container did not serve a token",
                    ctx.state.log_tail(),
                    "labkit run naive",
                )
            running = create.Running(
                pid,
                ctx.port,
                tuple(answer.tokens),
                create.get(ctx.port, "/_labkit/identity"),
                answer.first_token_s - began,
            )
            inside, freed = environ(pid), create.shrink(ctx.port)
            dumped = checkpoint(about, part / "images", scratch / "work")
            mapped = {
                str(model / n): os.path.getsize(model / n)
                for n in (
                    Path(p).name
                    for p in images.mapped_files(part / "images").values()
                    if p.startswith(str(model) + "/")
                )
            }
            manifest = create.manifest_of(
                part / "images",
                "criu-container",
                running,
                asked,
                inside,
                mapped,
                {
                    **dumped,
                    "start_s": running.start_s,
                    "shrunk": freed,
                    "mark": target.name,
                    "contents": images.contents(part / "images"),
                },
            )
            manifest = store.Manifest(
                **{
                    **manifest.__dict__,
                    "container": {
                        "binds": [str(model)],
                        "image_config": image_config,
                        "rootfs": str(rootfs),
                    },
                }
            )
            _end(ctx)
            proven = _prove(part, manifest, scratch, rootfs, image_config, model, loader)
            store.seal(
                part,
                store.Manifest(
                    **{
                        **manifest.__dict__,
                        "working_set": proven,
                        "facts": {**manifest.facts, "prepare_s": timeline.now_s() - began},
                    }
                ),
            )
    finally:
        _end(ctx)
    return store.open_snapshot(target)


def _context(
    scratch: Path,
    rootfs: Path,
    image_config: dict[str, Any],
    model: Path,
    loader: str,
    extra: Sequence[str],
    mark: str,
) -> StepContext:
    port = free_port()
    node = scratch / f"node-{port}"
    node.mkdir(mode=0o700)
    return StepContext(
        node=node,
        port=port,
        timeline_path=scratch / "timeline",
        ledger=current(),
        server_args=[
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--init",
            "meta",
            "--loader",
            loader,
            "--model",
            str(model),
            *extra,
        ],
        server_env={MARK: mark},
        server_binds=[(str(model), str(model))],
        state=NodeState(rootfs=str(rootfs), image_config=image_config),
    )


def _end(ctx: StepContext) -> None:
    for end in reversed(ctx._ends):
        end()
    ctx._ends.clear()


def _prove(
    part: Path,
    manifest: store.Manifest,
    scratch: Path,
    rootfs: Path,
    image_config: dict[str, Any],
    model: Path,
    loader: str,
) -> dict[str, list[list[int]]]:
    for path in (part / "images").iterdir():
        store._sync(path)
    cold.evict([part, rootfs, *manifest.mapped])
    ctx = _context(scratch, rootfs, image_config, model, loader, (), str(manifest.facts["mark"]))
    try:
        pid, _ = _runc_restore(ctx, _lay(ctx, store.Snapshot(part, manifest)), manifest.permissions)
        criu.resume(pid)
        return _inside_out(
            create.check_answer(pid, ctx.port, manifest, ctx.state.server_log), rootfs
        )
    finally:
        _end(ctx)


def _inside_out(found: dict[str, list[list[int]]], rootfs: Path) -> dict[str, list[list[int]]]:
    """Paths of maps are the container's where the file is bound into it; keys become paths inside
    the image."""
    return {path.removeprefix(str(rootfs)): ranges for path, ranges in found.items()}


def checkpoint(
    about: dict[str, str], into: Path, work: Path, *, leave_running: bool = False
) -> dict[str, Any]:
    """`runc checkpoint` of a container that `labkit.image.runtimes.runc` started. Raises
    SnapshotError; refused, it goes on running."""
    work.mkdir(parents=True, exist_ok=True)
    config = work / "criu.conf"
    config.write_text(f"ghost-limit {criu.GHOST_LIMIT}\n")
    _annotate(Path(about["bundle"]), config)
    began, permissions = (
        timeline.now_s(),
        xstate.masks(int((Path(about["bundle"]) / "pid").read_text())),
    )
    done = _runc(
        about["root"],
        "checkpoint",
        "--image-path",
        str(into.resolve()),
        "--work-path",
        str(work.resolve()),
        *(["--leave-running"] if leave_running else []),
        about["id"],
        capture_output=True,
    )
    if done.returncode:
        raise refusal(
            "dump", _both(work / "dump.log", done.stderr.decode(errors="replace")), done.returncode
        )
    return {
        "dump_s": timeline.now_s() - began,
        "pages_bytes": sum(p.stat().st_size for p in into.glob("pages-*.img")),
        "permissions": permissions,
    }


def _both(log: Path, said: str) -> str:
    """CRIU's log; where it holds no error, runc's own words as one."""
    text = criu._log(log)
    return text if "Error (" in text else f"{text}\nError: runc: {said.strip()[-500:]}"


def _annotate(bundle: Path, config: Path) -> None:
    spec = json.loads((bundle / "config.json").read_text())
    spec.setdefault("annotations", {})[CONFIG] = str(config.resolve())
    (bundle / "config.json").write_text(json.dumps(spec))


def ask_ahead(ctx: StepContext) -> dict[str, Any]:
    """A step while the snapshot is on its way: put what the restored process touched of the image
    into the mount's queue."""
    manifest, rootfs = (
        ctx.state.handed(transport.SnapshotDownload).manifest.result(),
        ctx.state.rootfs,
    )
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


def restore(ctx: StepContext, snapshot: str, lazy: bool = False) -> dict[str, Any]:
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
    laid = _lay(ctx, where)  # before the disk's queue is full: what is small would wait behind it
    with readahead.reading(pieces) as ahead:
        ctx.on_stop(ahead.stop)
        pid, handed = _runc_restore(ctx, laid, where.manifest.permissions)
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
    image."""
    binds = tuple(folder + "/" for folder in manifest.container["binds"])
    return {p: moved.get(p, p) if p.startswith(binds) else rootfs + p for p in manifest.working_set}


@dataclass(frozen=True)
class _ContainerRoot:
    """A bundle with links to the images, ready for `runc restore`."""

    bundle: Path
    name: str
    linked: Path

    @property
    def root(self) -> str:
        return str(self.bundle / "state")

    @property
    def work(self) -> Path:
        return self.bundle / "work"


def _lay(ctx: StepContext, snapshot: store.Snapshot) -> _ContainerRoot:
    """The files' paths inside of the container stay what they were."""
    with ctx.span("restore.place"):
        ctx.state.image_config = (
            ctx.state.image_config or snapshot.manifest.container["image_config"]
        )
        laid, binds = prepare_container(ctx)
        bundle, name = laid.skeleton.parent, f"labkit-{os.getpid()}-{ctx.port}"
        (bundle / "work").mkdir(exist_ok=True)
        linked = process.stage_images(snapshot, bundle / "images", port=ctx.port, moved={})
        config = bundle / "work" / "criu.conf"
        config.write_text(UNREAD + "leave-stopped\n")
        secrets.write_private(
            bundle / "config.json",
            json.dumps(runtime.bundle_config(ctx, laid, binds, f"/labkit/{name}")),
        )
        _annotate(bundle, config)
    return _ContainerRoot(bundle, name, linked)


def _runc_restore(
    ctx: StepContext, laid: _ContainerRoot, permissions: Mapping[str, int]
) -> criu.Restored:
    """`runc restore`: the container's tree, stopped, with the permissions it had."""
    bundle, name, state, work, linked = laid.bundle, laid.name, laid.root, laid.work, laid.linked
    entry = ctx.ledger.note("action", "image:delete-container", container=name, root=str(state))

    def end() -> None:
        _runc(
            state, "delete", "--force", name, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        exits.reap(ctx.state.server_pid)
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    out, pipe = os.pipe()
    try:
        drain(ctx, out)
        with ctx.span("restore.criu"), exits.adopting():
            done = _runc(
                state,
                "--log",
                str(bundle / "runc.log"),
                "restore",
                "--detach",
                "--image-path",
                str(linked),
                "--work-path",
                str(work),
                "--pid-file",
                str(bundle / "pid"),
                "--bundle",
                str(bundle),
                name,
                stdout=pipe,
                stderr=pipe,
            )
    finally:
        os.close(pipe)
    if done.returncode:
        said = (
            (bundle / "runc.log").read_text(errors="replace")[-600:]
            if (bundle / "runc.log").exists()
            else ""
        )
        raise refusal("restore", _both(work / "restore.log", said), done.returncode)
    pid = int((bundle / "pid").read_text())
    ctx.state.server_pid, ctx.state.container = (
        pid,
        {
            "id": name,
            "root": state,
            "bundle": str(bundle),
        },
    )
    return criu.Restored(pid, xstate.hand_on(pid, permissions))

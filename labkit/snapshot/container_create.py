"""Making a snapshot of a container, off the clock: `runc checkpoint` of one that serves, proven by
`runc restore`.

    snapshot = make_container(rootfs, image_config, model_dir, target, loader=MAPPED,
        scratch=workspace.nodes / "work")

As for a process (`labkit.snapshot.create`): it is restored once from a cold cache before it is
sealed. Limit: start + bytes of the CRIU image ÷ write rate + bytes ÷ read rate. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from labkit.core import beside, cold, timeline
from labkit.core.json_types import JsonObject
from labkit.core.ledger import current
from labkit.core.node_state import NodeState
from labkit.core.plan import StepContext
from labkit.core.proc import environ, start_time
from labkit.core.trial import free_port
from labkit.errors import TrialError
from labkit.image.runtimes import runc as runtime
from labkit.snapshot import container, create, criu, criu_images, store, subject_server, xstate
from labkit.snapshot.explain import refusal
from labkit.snapshot.takedown import MARK


@dataclass(frozen=True)
class ContainerSubject:
    """What is started in a container. `image_config`: of the OCI image in `rootfs`; `mark`: the
    snapshot's name; `work`: a directory for nodes and logs."""

    rootfs: Path
    image_config: JsonObject
    model: Path
    loader: str
    mark: str
    work: Path

    @contextmanager
    def context(self) -> Iterator[StepContext]:
        """For its runtime's steps, on a port and a node of its own; what was started ends with the
        block."""
        port = free_port()
        node = self.work / f"node-{port}"
        node.mkdir(mode=0o700)
        ctx = StepContext(
            node=node,
            port=port,
            timeline_path=self.work / "timeline",
            ledger=current(),
            server_args=[
                "--host",
                "127.0.0.1",
                "--port",
                str(port),
                "--init",
                "meta",
                "--loader",
                self.loader,
                "--model",
                str(self.model),
            ],
            server_env={MARK: self.mark},
            server_binds=[(str(self.model), str(self.model))],
            state=NodeState(rootfs=str(self.rootfs), image_config=self.image_config),
        )
        try:
            yield ctx
        finally:
            for end in reversed(ctx._ends):
                end()


def make_container(
    rootfs: Path,
    image_config: JsonObject,
    model: Path,
    target: Path,
    *,
    loader: str,
    scratch: Path,
) -> store.Snapshot:
    """Snapshot of the subject in a runc container. Raises SnapshotError; nothing is left of a
    failed one."""
    began, request = timeline.now_s(), {"prompt": subject_server.PROMPT, "max_tokens": 8}
    with (
        beside.scratch(f"{scratch.name}-", scratch.parent) as work,
        store.writing(target) as part,
    ):
        subject = ContainerSubject(rootfs, image_config, model, loader, target.name, work)
        with subject.context() as ctx:
            runtime.start(ctx)
            pid = ctx.state.server_pid
            answer = subject_server.first_tokens(ctx.port, request, lambda: start_time(pid) != 0)
            if answer.first_token_s is None:
                raise TrialError(
                    "the subject in the container did not serve a token",
                    ctx.state.log_tail(),
                    "labkit run naive",
                )
            running = subject_server.Running(
                pid,
                ctx.port,
                tuple(answer.tokens),
                subject_server.get(ctx.port, "/_labkit/identity"),
                answer.first_token_s - began,
            )
            inside, freed = environ(pid), subject_server.shrink(ctx.port)
            dumped = checkpoint(ctx.state.container, part / "images", work / "work")
            paths = criu_images.mapped_files(part / "images").values()
            names = [Path(path).name for path in paths if path.startswith(f"{model}/")]
            manifest = create.manifest_of(
                part / "images",
                "criu-container",
                running,
                request,
                inside,
                {str(model / name): os.path.getsize(model / name) for name in names},
                {
                    **dumped,
                    "start_s": running.start_s,
                    "shrunk": freed,
                    "mark": target.name,
                    "contents": criu_images.contents(part / "images"),
                },
            )
        manifest = replace(
            manifest,
            container={
                "binds": [str(model)],
                "image_config": image_config,
                "rootfs": str(rootfs),
            },
        )
        proven = _prove(part, manifest, subject)
        store.seal(
            part,
            replace(
                manifest,
                working_set=proven,
                facts={**manifest.facts, "prepare_s": timeline.now_s() - began},
            ),
        )
    return store.open_snapshot(target)


def _prove(
    part: Path, manifest: store.Manifest, subject: ContainerSubject
) -> dict[str, list[list[int]]]:
    """Restore what was just dumped, cold; the same process must give the same tokens. Returns its
    working set: of a file that is bound into the container its path there, of the OCI image's the
    path inside of it."""
    store.sync_images(part)
    cold.evict([part, subject.rootfs, *manifest.mapped])
    with subject.context() as ctx:
        bundle = container.prepare_bundle(ctx, store.Snapshot(part, manifest))
        pid, _ = container.runc_restore(ctx, bundle, manifest.permissions)
        criu.resume(pid)
        found = subject_server.check_answer(pid, ctx.port, manifest, ctx.state.server_log)
    return {path.removeprefix(str(subject.rootfs)): ranges for path, ranges in found.items()}


def checkpoint(started: dict[str, str], into: Path, work: Path) -> JsonObject:
    """`runc checkpoint` of a container that `labkit.image.runtimes.runc` started ("id", "root",
    "bundle"). Raises SnapshotError; refused, it goes on running."""
    bundle = Path(started["bundle"])
    work.mkdir(parents=True, exist_ok=True)
    config = work / "criu.conf"
    config.write_text(f"ghost-limit {criu.GHOST_LIMIT}\n")
    container.annotate(bundle, config)
    began, permissions = timeline.now_s(), xstate.masks(int((bundle / "pid").read_text()))
    done = container.runc(
        started["root"],
        "checkpoint",
        "--image-path",
        str(into.resolve()),
        "--work-path",
        str(work.resolve()),
        started["id"],
        capture_output=True,
    )
    if done.returncode:
        output = done.stderr.decode(errors="replace")
        raise refusal("dump", container.log_of(work / "dump.log", output), done.returncode)
    return {
        "dump_s": timeline.now_s() - began,
        "pages_bytes": sum(p.stat().st_size for p in into.glob("pages-*.img")),
        "permissions": permissions,
    }

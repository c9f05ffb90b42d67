"""`snapshot=criu-container`: importing this module registers it. The mechanism is
`labkit.snapshot.container`.

The server as a runc container. It still runs on the OCI image's files, so the image layer keeps its
steps, beside the snapshot on its way. Limit: as for a process, and runc's own 60–120 ms. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.snapshot.techniques import CriuProcess, missing_capability
from labkit.technique import Artifact, Availability, Evidence, Observation, Subject, register

if TYPE_CHECKING:
    from labkit.snapshot.store import Snapshot


@register
class CriuContainer(CriuProcess):
    name = "criu-container"
    rung, step = 8, "container checkpoint"
    title = "restore the server's container with CRIU, through runc"
    requires_layers: ClassVar[Mapping[str, str]] = {"process": "runc"}
    replaces_layers = ("process", "weights", "init", "device")  # it runs on the OCI image's files
    restore_call = "labkit.snapshot.container:restore"

    def available(self, host: JsonObject) -> Availability:
        found = missing_capability("root", "criu", "runc")
        if found.missing.startswith("runc: no runc") and shutil.which("podman"):
            return Availability(
                False,
                f"{found.missing}; podman is here, but the lab checkpoints containers through runc"
                " only",
                "podman's runtime is crun, whose checkpoints need a build with CRIU in it, and its"
                " containers live in a store of its own",
                "apt-get install runc (it may stand beside podman); or snapshot=criu-process",
            )
        return found

    def _rootfs(self, subject: Subject, workspace: Workspace) -> tuple[Path, JsonObject]:
        from labkit.image.pull import ensure_rootfs

        if subject.image_layout is None:
            raise BadInput(
                "criu-container restores a container, and this stack has no OCI image",
                why="host-env means there is none",
                fix="image=full-pull,snapshot=criu-container; or snapshot=criu-process",
            )
        return ensure_rootfs(
            subject.image_layout, subject.image_reference, workspace.artifacts / "rootfs"
        )

    def _image_digest(self, subject: Subject) -> str:
        from labkit.image.oci_layout import Layout

        if not subject.image_layout:
            return ""
        return Layout(subject.image_layout).manifest(subject.image_reference).digest

    def _create(
        self, subject: Subject, workspace: Workspace, model: Path, target: Path
    ) -> Snapshot:
        from labkit.snapshot.container_create import make_container

        rootfs, config = self._rootfs(subject, workspace)
        return make_container(
            Path(rootfs),
            config,
            model,
            target,
            loader=self.loader,
            scratch=workspace.nodes / f"{target.name}-work",
        )

    def _before(self, plan: LaunchPlan) -> tuple[Step, ...]:
        return tuple(s for s in plan.steps if s.phase in ("pull", "unpack", "mount"))

    def _beside(self, before: tuple[Step, ...]) -> tuple[Step, ...]:
        """A lazy mount fetches what the restored process touches, not what a start would; that,
        too, while the snapshot comes."""
        if not any(step.phase == "mount" for step in before):
            return before
        steps = [_without_prefetch(step) if step.phase == "mount" else step for step in before]
        return (*steps, Step("mount.touched", "labkit.snapshot.container:ask_ahead"))

    def _on_disk_bytes(self, artifact: Artifact) -> int:
        return 0  # the libraries came with the OCI image

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.state.started_by:
            raise BadInput(
                f"{plan.stack.get('image')} starts its containers itself, and a snapshot is"
                " restored by runc on a root directory",
                why="containerd keeps its own",
                fix="image=full-pull,snapshot=criu-container",
            )
        return super().apply(plan, artifact)

    def verify(self, seen: Observation) -> Evidence:
        found = super().verify(seen)
        rootfs = str(seen.facts.get("restore", {}).get("rootfs", ""))
        own = [
            k
            for k in ("mnt", "pid")
            if seen.proc.get("ns", {}).get(k)
            and seen.proc["ns"][k] != os.readlink(f"/proc/self/ns/{k}")
        ]
        facts = {**found.facts, "namespaces": own, "rootfs": rootfs}
        if found.engaged and len(own) < 2:
            return Evidence(
                self.name,
                False,
                "the restored process shares the host's namespaces: it is in no container",
                facts,
            )
        if found.engaged and seen.plan.state.snapshot_crossing:
            served = sum(store.get("bytes_sent", 0) for store in seen.stores.values())
            facts["image_bytes_over_link"] = served - sum(found.facts["bytes_over_link"].values())
            if facts["image_bytes_over_link"] <= 0:
                return Evidence(
                    self.name,
                    False,
                    "nothing of the OCI image crossed the link: its files were on this node"
                    " before t0",
                    facts,
                )
        return replace(found, facts=facts)


def _without_prefetch(step: Step) -> Step:
    return replace(
        step, args={**step.args, "options": [*step.args.get("options", []), "--no-prefetch"]}
    )

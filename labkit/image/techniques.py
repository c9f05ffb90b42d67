"""Techniques of the stack layer `image`: importing this module registers them. Each brings the
files of the image to the node.

    host-env    no image: the interpreter and packages that run the lab
    full-pull   the whole image over the wire, then unpacked (the article's starting point)

Lesson: notebooks/02_image_pull.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from labkit.core import interpreter
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.image import oci
from labkit.image.oci_layout import Layout
from labkit.technique import (
    YES,
    Artifact,
    Availability,
    Claim,
    Evidence,
    Observation,
    Subject,
    Technique,
    register,
)


@register
class HostEnv(Technique):
    name, layer = "host-env", "image"
    title = "no image: the host's own interpreter and packages"
    lesson = "01_anatomy"
    claims: tuple[Claim, ...] = ()

    def available(self, host: JsonObject) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        found = {path: path for path in interpreter.packages()}
        return Artifact(self.name, paths=found, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan.with_cold(*artifact.paths.values())

    def verify(self, seen: Observation) -> Evidence:
        import sys

        started = seen.facts.get("start", {})
        exe = seen.proc.get("exe", "")
        ok = not started.get("rootfs") and os.path.realpath(exe) == os.path.realpath(sys.executable)
        return Evidence(
            self.name, ok, f"the server runs {exe or 'an unknown program'}, no image", {"exe": exe}
        )


class ImageTechnique(Technique):
    """What the techniques that bring the subject's image share: its layout as the artifact, and the
    warm node's root directory.

    On a warm node the image is unpacked (or held ready) before t0, so that only its coldness is
    left of it."""

    name, layer, lesson = "", "image", "02_image_pull"
    claims: tuple[Claim, ...] = ()

    def available(self, host: JsonObject) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        layout, manifest, digest = _image_of(subject)
        return Artifact(
            self.name,
            digest,
            {"layout": str(layout.path), "rootfs_folder": str(workspace.artifacts / "rootfs")},
            {
                "prepare_s": 0.0,
                "size_bytes": manifest.layers_bytes,
                "unpacked_bytes": manifest.unpacked_bytes,
                "layers": len(manifest.layers),
                "reference": subject.image_reference,
            },
        )

    def on_warm_node(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        from labkit.image.pull import ensure_rootfs

        rootfs, config = ensure_rootfs(
            artifact.paths["layout"],
            artifact.facts["reference"],
            Path(artifact.paths["rootfs_folder"]),
        )
        return replace(
            plan, state=replace(plan.state, rootfs=str(rootfs), image_config=config)
        ).with_cold(rootfs)

    def engaged_on_warm_node(self, seen: Observation) -> Evidence:
        sent = seen.stores.get("registry", {}).get("bytes_sent", 0)
        rootfs = seen.plan.state.rootfs
        ok = not sent and seen.facts.get("start", {}).get("rootfs") == rootfs
        return Evidence(
            self.name,
            ok,
            f"started from the image on disk; the registry sent {sent} bytes",
            {"registry_bytes": sent, "rootfs": rootfs},
        )


def _image_of(subject: Subject) -> tuple[Layout, oci.Manifest, str]:
    if subject.image_layout is None:
        raise BadInput(
            "the subject has no image",
            why="this technique brings an image to the node",
            fix="labkit image build",
        )
    layout = Layout(subject.image_layout)
    return (
        layout,
        layout.manifest(subject.image_reference),
        layout.manifest(subject.image_reference).digest,
    )


@register
class FullPull(ImageTechnique):
    name = "full-pull"
    title = "pull the whole image, then unpack it (stock defaults)"

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.scenario != "fresh-node":
            return self.on_warm_node(plan, artifact)
        floors = {
            **plan.floors_bytes,
            "pull": artifact.facts["size_bytes"],
            "unpack": artifact.facts["unpacked_bytes"],
        }
        return replace(plan, floors_bytes=floors).with_steps(
            Step("pull", "labkit.image.pull:full_pull"), Step("unpack", "labkit.image.pull:unpack")
        )

    def verify(self, seen: Observation) -> Evidence:
        if seen.plan.scenario != "fresh-node":
            return self.engaged_on_warm_node(seen)
        sent = seen.stores.get("registry", {}).get("bytes_sent", 0)
        whole = seen.plan.floors_bytes.get("pull", 0)
        unpacked = seen.facts.get("unpack", {}).get("written_bytes", 0)
        ok = (
            sent >= whole > 0
            and unpacked > 0
            and seen.facts.get("start", {}).get("rootfs", "").startswith("/")
        )
        return Evidence(
            self.name,
            ok,
            f"the registry sent {sent / 1e6:.1f} MB of an image of {whole / 1e6:.1f} MB before the"
            f" server started; {unpacked / 1e6:.1f} MB were unpacked",
            {"registry_bytes": sent, "image_bytes": whole, "unpacked_bytes": unpacked},
        )

"""Techniques of the stack layer `process`: `runc` (root), `userns` (rootless namespaces), `process`
(none). One meaning, named in the record.

    technique("userns").available(host)

Evidence is the kernel's: namespaces of the server against the agent's, its mount table, the files
it has mapped. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import os

from labkit.core import capabilities
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
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


def availability(*names: str) -> Availability:
    """YES, or the first capability that is missing, with its why and fix."""
    for name in names:
        found = capabilities.capability(name)
        if not found.ok:
            return Availability(False, f"{name}: {found.missing}", found.why, found.fix)
    return YES


def bound_from(seen: Observation, rootfs: str) -> list[str]:
    """Mount points of the server whose source lies in `rootfs`, from its mountinfo.

    A bind mount's line names the path within its file system: the rootfs below the mount that holds
    it, or `/` of a mount that is the rootfs itself (FUSE)."""
    found = []
    for line in seen.proc.get("mounts", []):
        fields = line.split(" ")
        if len(fields) > 5:
            source, point = fields[3], fields[4]
            kind = line.partition(" - ")[2].split(" ")[0]
            if point != "/" and (
                (rootfs.endswith(source.rsplit("/", 1)[0]) and len(source) > 1)
                or _below(source, rootfs)
                or kind.startswith("fuse")
            ):
                found.append(point)
    return found


def _below(source: str, rootfs: str) -> bool:
    """`source` is a tail-match of a path in rootfs: file systems show paths from their own root,
    not from the host's."""
    parts = rootfs.strip("/").split("/")
    return any(
        source == "/" + "/".join(parts[i:]) or source.startswith("/" + "/".join(parts[i:]) + "/")
        for i in range(len(parts))
    )


def own_namespaces(seen: Observation, *kinds: str) -> list[str]:
    """Of `kinds`, those in which the server differs from this process."""
    theirs = seen.proc.get("ns", {})
    return [k for k in kinds if theirs.get(k) and theirs[k] != os.readlink(f"/proc/self/ns/{k}")]


class _Runtime(Technique):
    layer = "process"
    lesson = "02_image_pull"
    claims: tuple[Claim, ...] = ()
    name = ""
    namespaces: tuple[str, ...] = ()

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        if plan.state.started_by:
            raise BadInput(
                f"{plan.stack.get('image')} starts its containers itself, through runc",
                why=f"{self.name} would start it another way",
                fix="process=runc",
            )
        return plan.with_steps(Step("start", f"labkit.image.runtimes.{self.name}:start"))

    def verify(self, seen: Observation) -> Evidence:
        rootfs = str(seen.facts.get("start", {}).get("rootfs", ""))
        own = own_namespaces(seen, *self.namespaces)
        bound = bound_from(seen, rootfs)
        facts: JsonObject = {"namespaces": own, "mounts_from_image": len(bound)}
        if len(own) < len(self.namespaces):
            missing = ", ".join(k for k in self.namespaces if k not in own)
            return Evidence(
                self.name,
                False,
                f"the server shares these namespaces with the lab: {missing}",
                facts,
            )
        if not bound:
            return Evidence(
                self.name, False, f"nothing of {rootfs} is mounted in the server's root", facts
            )
        return Evidence(
            self.name,
            True,
            f"own namespaces ({', '.join(own)}), {len(bound)} mounts from the image",
            facts,
        )


@register
class Runc(_Runtime):
    name, title = "runc", "container under root (runc)"
    namespaces = ("mnt", "pid")

    def available(self, host: JsonObject) -> Availability:
        return availability("runc")

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        """A runtime that brought the image (containerd) also starts it: with runc, as its shim
        does."""
        if plan.state.started_by:
            return plan.with_steps(Step("start", plan.state.started_by))
        return super().apply(plan, artifact)

    def verify(self, seen: Observation) -> Evidence:
        if seen.facts.get("start", {}).get("runtime") != "containerd":
            return super().verify(seen)
        own = own_namespaces(seen, *self.namespaces)
        return Evidence(
            self.name,
            len(own) == len(self.namespaces),
            f"containerd's runc shim started it; own namespaces: {', '.join(own) or 'none'}",
            {"namespaces": own},
        )


@register
class Userns(_Runtime):
    name, title = "userns", "container without root (user namespaces)"
    namespaces = ("user", "mnt", "pid")

    def available(self, host: JsonObject) -> Availability:
        return availability("userns")


@register
class Process(_Runtime):
    name, title = "process", "plain process: the image's interpreter and packages, no namespaces"

    def available(self, host: JsonObject) -> Availability:
        return YES

    def verify(self, seen: Observation) -> Evidence:
        rootfs = str(seen.facts.get("start", {}).get("rootfs", ""))
        maps = [
            m for m in seen.proc.get("maps", []) if ".so" in os.path.basename(m) or "/bin/" in m
        ]
        if not maps:
            return Evidence(self.name, False, "the server's mapped files could not be read", {})
        if not rootfs:
            return Evidence(
                self.name,
                True,
                f"the host's own interpreter, {len(maps)} mapped objects",
                {"mapped": len(maps)},
            )
        inside = [m for m in maps if m.startswith(rootfs + "/")]
        outside = [
            m
            for m in maps
            if m not in inside and not os.path.basename(m).startswith(("libcuda", "libnvidia"))
        ]
        facts = {
            "mapped": len(maps),
            "mapped_from_image": len(inside),
            "mapped_from_host": outside[:10],
        }
        if outside or not inside:
            return Evidence(
                self.name,
                False,
                f"{len(outside)} of {len(maps)} mapped objects come from the host, first"
                f" {outside[:1]}",
                facts,
            )
        return Evidence(
            self.name, True, f"all {len(inside)} mapped objects come from the image", facts
        )

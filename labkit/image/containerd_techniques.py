"""`containerd-pull` and `containerd-stargz`: the real runtime's pull, eager and lazy, as arms
beside the lab's own.

containerd also starts the server (`ctr run`, which is runc below it): the stack layer `process`
stays `runc` and means just that. Evidence: what the registry sent before the start and after, the
snapshotter's FUSE mounts, the server's own root. A stargz arm whose layers were quietly pulled
whole has no evidence and is a failed trial. Lesson: notebooks/03_lazy_pull."""

from __future__ import annotations

from dataclasses import replace

from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.errors import BadInput
from labkit.image.lazyfs.techniques import EstargzLazy
from labkit.image.runtimes.techniques import availability
from labkit.image.techniques import ImageTechnique
from labkit.image.traffic import blob_traffic
from labkit.technique import Artifact, Availability, Evidence, Observation, register

START = "labkit.image.containerd_steps:start"


#: A warm node's image is on its disk: no snapshotter has a part in it.
WARM = ("warm-node", "hot-node")


def _blob_bytes(seen: Observation) -> int:
    return blob_traffic(seen.stores.get("registry", {})).bytes_sent


def _only_fresh(plan: LaunchPlan, name: str) -> None:
    if plan.scenario in WARM:
        raise BadInput(
            f"{name} is measured on a fresh node only",
            why="a warm node's image is on disk, and no snapshotter has a part in it",
            fix="--scenario fresh-node, or image=full-pull",
        )


@register
class ContainerdPull(ImageTechnique):
    name = "containerd-pull"
    excluded_scenarios = WARM
    title = "containerd pulls and unpacks (ctr images pull), and starts the server"

    def available(self, host: JsonObject) -> Availability:
        return availability("containers")

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        _only_fresh(plan, self.name)
        floors = {**plan.floors_bytes, "pull": artifact.facts["size_bytes"]}
        state = replace(plan.state, started_by=START)
        return replace(plan, floors_bytes=floors, state=state).with_steps(
            Step(
                "pull",
                "labkit.image.containerd_steps:pull",
                pre_start="labkit.image.containerd_steps:start_containerd",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        whole = seen.plan.floors_bytes.get("pull", 0)
        before = seen.facts.get("pull", {}).get("registry_bytes", 0)
        started = seen.facts.get("start", {})
        facts = {
            "registry_bytes": _blob_bytes(seen),
            "registry_bytes_before_start": before,
            "image_bytes": whole,
            "root_kind": started.get("root_kind"),
        }
        ok = (
            before >= whole > 0
            and started.get("runtime") == "containerd"
            and started.get("root_kind") == "overlay"
            and bool(started.get("private"))
        )
        return Evidence(
            self.name,
            ok,
            f"containerd fetched {before / 1e6:.1f} MB of {whole / 1e6:.1f} MB before the start; "
            f"root is {started.get('root_kind', 'unknown')} on its own snapshots",
            facts,
        )


@register
class ContainerdStargz(EstargzLazy):
    """The image of `estargz-lazy`, mounted by the reference snapshotter."""

    name, rung = "containerd-stargz", 0
    excluded_scenarios = WARM
    title = (
        "containerd with the stargz snapshotter mounts lazily (ctr-remote rpull), and starts the"
        " server"
    )

    def available(self, host: JsonObject) -> Availability:
        return availability("containers", "stargz")

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        _only_fresh(plan, self.name)
        state = replace(plan.state, started_by=START, lazy_image_bytes=artifact.facts["size_bytes"])
        return replace(plan, state=state).with_steps(
            Step(
                "mount",
                "labkit.image.containerd_steps:pull",
                {"reference": artifact.facts["lazy_reference"]},
                pre_start="labkit.image.containerd_steps:start_stargz",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        whole = seen.plan.state.lazy_image_bytes
        mounted, started = seen.facts.get("mount", {}), seen.facts.get("start", {})
        before, mounts = mounted.get("registry_bytes", whole), started.get("fuse_mounts", 0)
        facts = {
            "registry_bytes": _blob_bytes(seen),
            "registry_bytes_before_start": before,
            "image_bytes": whole,
            "fuse_mounts": mounts,
            "root_kind": started.get("root_kind"),
        }
        if not mounts:
            return Evidence(
                self.name,
                False,
                "the snapshotter has no FUSE mount: containerd pulled the image whole",
                facts,
            )
        if not 0 <= before < whole / 2:
            return Evidence(
                self.name,
                False,
                f"{before / 1e6:.1f} MB of {whole / 1e6:.1f} MB were sent before the start: that is"
                " a pull",
                facts,
            )
        if started.get("root_kind") != "overlay" or not started.get("private"):
            return Evidence(
                self.name, False, "the server's root is not on the private snapshotter", facts
            )
        return Evidence(
            self.name,
            True,
            f"{mounts} layers mounted by the snapshotter; {before / 1e6:.1f} MB of"
            f" {whole / 1e6:.1f} MB sent before the start, {facts['registry_bytes'] / 1e6:.1f} MB"
            " by the first token",
            facts,
        )

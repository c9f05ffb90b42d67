"""`process=zygote`: importing this module registers it. The mechanism is `labkit.snapshot.zygote`.

It is a technique of the process layer, and stands here because its rival does: what a snapshot
saves of imports, a fork saves too. Limit: the rest of the start. Lesson:
notebooks/07_checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step
from labkit.core.units import show_bytes
from labkit.core.workspace import Workspace
from labkit.device.resident_plan import leave_out_resident, refuse_fresh_node
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


@register
class Zygote(Technique):
    name, layer, lesson = "zygote", "process", "07_checkpoints"
    title = "fork a process that has imported everything (resident before t0)"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env"}
    excluded_scenarios = ("fresh-node",)

    def available(self, host: JsonObject) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        refuse_fresh_node(plan, "a zygote")
        if plan.stack.get("image") not in (None, "", "host-env"):
            raise BadInput(
                "a zygote forks the lab's own interpreter, and this stack has an OCI image",
                why="the OCI image's files would not be used",
                fix="image=host-env,process=zygote",
            )
        # its libraries are mapped before t0: that is what a zygote is
        return leave_out_resident(plan).with_steps(
            Step(
                "start",
                "labkit.snapshot.zygote:start",
                pre_start="labkit.snapshot.zygote:start_zygote",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        step = seen.facts.get("start", {})
        imported = seen.phase_s("import")
        maps = seen.proc.get("maps", [])
        facts = {
            "zygote_rss_bytes": step.get("zygote_rss_bytes"),
            "resident_before_t0": list(seen.plan.state.resident_before_t0),
            "import_s": imported,
        }
        if step.get("runtime") != "zygote" or not any("libtorch" in m for m in maps):
            return Evidence(self.name, False, "no fork of a zygote answered", facts)
        if imported > 0.2:
            return Evidence(
                self.name,
                False,
                f"the fork imported for {imported:.2f} s: it was not ready before t0",
                facts,
            )
        return Evidence(
            self.name,
            True,
            "a fork of a process that was resident before t0 with"
            f" {show_bytes(float(step['zygote_rss_bytes']))}; {len(facts['resident_before_t0'])}"
            " library directories were warm by that",
            facts,
        )

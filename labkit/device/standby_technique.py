"""`device=warm-standby`: importing this module registers it. The mechanism is
`labkit.device.standby`.

Resident before t0, its weights asleep in pinned host memory, woken by a copy (needs a GPU). Limit:
bytes ÷ the bus's rate from pinned memory. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

from dataclasses import replace

from labkit.core.plan import LaunchPlan, Step
from labkit.core.units import show_bytes
from labkit.device.graph_techniques import GpuTechnique, gpu_device
from labkit.device.resident_plan import leave_out_resident, refuse_fresh_node
from labkit.errors import BadInput
from labkit.technique import Artifact, Evidence, Observation, register


@register
class WarmStandby(GpuTechnique):
    name = "warm-standby"
    title = "a resident server, its weights asleep in pinned host memory, woken by a copy"
    excluded_scenarios = ("fresh-node",)
    #: The resident server is the process and has loaded the weights: neither layer has a step of
    #: its own, or evidence.
    replaces_layers = ("process", "weights", "init")

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        refuse_fresh_node(plan, "a warm standby")
        if plan.stack.get("image") not in (None, "", "host-env"):
            raise BadInput(
                "a warm standby is the lab's own interpreter, and this stack has an OCI image",
                why="the OCI image's files would not be used",
                fix="image=host-env,device=warm-standby",
            )
        plan = replace(
            leave_out_resident(plan),
            device=gpu_device(),
            floors_bytes={
                **{k: v for k, v in plan.floors_bytes.items() if k.partition("@")[0] != "load"},
                "load@h2d": plan.state.weights.bytes,
            },
            replaces=(*plan.replaces, *self.replaces_layers),
        )
        return plan.with_steps(
            Step(
                "start",
                "labkit.device.standby:start",
                pre_start="labkit.device.standby:start_standby",
            )
        )

    def verify(self, seen: Observation) -> Evidence:
        """The process that answered stood there before t0, read no weights after it, and its device
        memory had been given up."""
        step, who = seen.facts.get("start", {}), seen.facts.get("identity", {})
        woken = next((s for s in seen.spans if s.name == "load" and s.source == "server"), None)
        asleep = int(step.get("asleep_bytes") or 0)
        read = seen.proc.get("io", {}).get("rchar", 0) - int(step.get("read_before_t0_bytes") or 0)
        simulated, held = str(step.get("driver") or ""), step.get("device_bytes_asleep")
        facts = {
            "asleep_bytes": asleep,
            "wake_s": woken.duration_s if woken else None,
            "read_since_t0_bytes": read,
            "device_bytes_asleep": held,
            "allocated_bytes": step.get("allocated_bytes"),
            "host_memory": step.get("host_memory"),
            "arena_bytes": step.get("arena_bytes"),
            "driver": simulated,
            "resident_before_t0": list(seen.plan.state.resident_before_t0),
        }
        if (
            step.get("runtime") != "standby"
            or not woken
            or not asleep
            or who.get("nonce") != step.get("nonce")
        ):
            return Evidence(
                self.name, False, "no standby that stood there before t0 answered", facts
            )
        if started := [
            s.name
            for s in seen.spans
            if s.source == "server" and s.phase in ("import", "context", "build")
        ]:
            return Evidence(
                self.name, False, f"the server went through {', '.join(started)} after t0", facts
            )
        if read >= asleep:
            return Evidence(
                self.name,
                False,
                f"{show_bytes(read)} were read after t0: the weights came from a file, not from"
                " memory",
                facts,
            )
        if not simulated and str(step.get("host_memory")).startswith("pageable"):
            return Evidence(
                self.name,
                False,
                f"the host memory it slept in is not pinned: {step['host_memory']}",
                facts,
            )
        allocated = step.get("allocated_bytes") or {}
        if not simulated and allocated.get("awake", 0) - allocated.get("asleep", 0) < 0.9 * asleep:
            return Evidence(self.name, False, "its weights were on the device all the time", facts)
        note = ""
        if simulated:
            note = f" – {simulated}: its seconds mean nothing"
        elif held:
            note = f"; the process held {show_bytes(held)} of the device while asleep"
        return Evidence(
            self.name,
            True,
            f"{show_bytes(asleep)} of weights, asleep in host memory before t0, were woken by a"
            f" copy in {woken.duration_s * 1e3:.1f} ms{note}",
            facts,
        )

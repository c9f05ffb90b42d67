"""The device layer's techniques of CUDA graphs: importing this module registers them.

    all-graphs      a CUDA graph recorded for every batch size an engine may meet: the arm to
        compare with     (needs a GPU)
    fewer-graphs    one for the first request's batch only; what is not recorded runs eagerly
        (needs a GPU)

Limit: one decode step a recording. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from labkit.core.capabilities import capability
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan
from labkit.core.workspace import Workspace
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


def gpu_device() -> str:
    """Where the server of a GPU technique is: cuda, or cpu under the simulated driver that tests
    use (LABKIT_FAKE_CUDA)."""
    return "cpu" if os.environ.get("LABKIT_FAKE_CUDA") else "cuda"


class GpuTechnique(Technique):
    """Of the device layer, with nothing to prepare; without a GPU a record of another host stands
    in."""

    name = ""
    layer, lesson = "device", "06_gpu_init"
    claims: tuple[Claim, ...] = ()
    requires_layers: ClassVar[Mapping[str, str]] = {"image": "host-env", "process": "process"}

    def available(self, host: JsonObject) -> Availability:
        found = capability("gpu")
        if found.ok:
            return YES
        return Availability(
            False,
            f"gpu: {found.missing}",
            "it acts on a GPU's memory and on what is launched there; nothing of it can be"
            " measured without one",
            "run it on a GPU host; `make gpu` there makes a record that notebooks replay elsewhere",
        )

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name, facts={"prepare_s": 0.0, "size_bytes": 0})


class _Graphs(GpuTechnique):
    """`sizes`: the batch sizes whose decode step is recorded before the server is ready."""

    sizes: tuple[int, ...] = ()

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return replace(plan, device=gpu_device()).with_server(
            "--graphs",
            ",".join(map(str, self.sizes)),
            env={n: os.environ[n] for n in ("LABKIT_FAKE_CUDA",) if os.environ.get(n)},
        )

    def verify(self, seen: Observation) -> Evidence:
        """The recordings' spans came before the server was ready, for these sizes and no others; on
        a GPU its driver is mapped."""
        spans = [s for s in seen.spans if s.name == "warmup.graph"]
        ready_s = min((s.start_s for s in seen.spans if s.name == "ready"), default=0.0)
        recorded = sorted(int(s.detail.get("batch", 0)) for s in spans if s.end_s <= ready_s)
        simulated = next(
            (
                str(s.detail["recorder"])
                for s in spans
                if "simulated" in str(s.detail.get("recorder"))
            ),
            "",
        )
        driver = next((m for m in seen.proc.get("maps", []) if "libcuda" in m), "")
        facts = {
            "recorded": recorded,
            "recording_s": sum(s.duration_s for s in spans),
            "driver": driver or simulated,
        }
        if recorded != sorted(self.sizes):
            return Evidence(
                self.name,
                False,
                f"graphs were recorded before ready for batches {recorded}, asked for were"
                f" {sorted(self.sizes)}",
                facts,
            )
        if not driver and not simulated:
            return Evidence(
                self.name,
                False,
                "the server has mapped no CUDA driver: nothing was recorded",
                facts,
            )
        return Evidence(
            self.name,
            True,
            f"{len(recorded)} of the decode step's graphs were recorded before ready (batches"
            f" {', '.join(map(str, recorded))})" + (f" – {simulated}" if simulated else ""),
            facts,
        )


#: Batch sizes an engine with continuous batching prepares up to 32 requests at a time.
BATCHES = (1, 2, 4, 8, 16, 24, 32)


@register
class AllGraphs(_Graphs):
    name = "all-graphs"
    title = "CUDA graphs for every batch size, recorded before the server is ready"
    sizes = BATCHES


@register
class FewerGraphs(_Graphs):
    name = "fewer-graphs"
    title = "one CUDA graph, for the first request's batch"
    sizes = (1,)

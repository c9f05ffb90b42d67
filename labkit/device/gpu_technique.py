"""What the techniques of a GPU share: where there is none they say so, and which device a server is
told.

    class AllGraphs(GpuTechnique): …

Limit: none of its own. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, ClassVar

from labkit.core.capabilities import capability
from labkit.core.workspace import Workspace
from labkit.technique import YES, Artifact, Availability, Claim, Subject, Technique


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

    def available(self, host: Any) -> Availability:
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

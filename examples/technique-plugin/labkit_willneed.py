"""posix_fadvise(WILLNEED) as a technique: the kernel is told which files will be read, and reads
them while the interpreter still imports.

Two ways, to be told apart by measurement: as a *loader* that asks just before it reads, and as a
*technique* that asks at t0, beside everything else. The bytes are the same, so the floor is the
disk's; what can be gained is the time in which the disk was idle. A kernel may read less than it
was asked for: the evidence is what the step asked for, and the loader's own.

    pip install ./examples/technique-plugin
    labkit run weights=safetensors weights=willneed-at-t0 --scenario warm-node

Lesson: notebooks/05_streaming of the lab.
"""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.formats.weight_files import local
from labkit.technique import Artifact, Evidence, Observation
from labkit.weights.catalog import LOADERS, Loader
from labkit.weights.techniques import WeightsTechnique


def ask_for(directory: str) -> int:
    """Bytes of the shards in `directory` that the page cache was asked to read."""
    asked_bytes = 0
    for shard in local(directory, "safetensors").paths:
        fd = os.open(shard, os.O_RDONLY)
        try:
            size_bytes = os.fstat(fd).st_size
            os.posix_fadvise(fd, 0, size_bytes, os.POSIX_FADV_WILLNEED)
        finally:
            os.close(fd)
        asked_bytes += size_bytes
    return asked_bytes


def load(model: Any, source: str, device: str = "cpu", **options: Any) -> dict[str, Any]:
    """The loader: runs in the server, which has imported torch."""
    from labkit.weights.loaders import safe

    asked_bytes = ask_for(source)
    facts = safe.load(model, source, device, **options)
    return {**facts, "loader": LOADER.name, "asked_bytes": asked_bytes}


def ask(ctx: StepContext, directory: str) -> dict[str, Any]:
    """The technique's step: runs in the node agent at t0."""
    return {"asked_bytes": ask_for(directory)}


LOADER = Loader(
    "safetensors-willneed",
    "the page cache is asked for each shard, then load_file",
    "labkit_willneed:load",
    "safetensors",
    "map",
)


class WillNeedAtT0(WeightsTechnique):
    name = "willneed-at-t0"
    title = "the page cache is asked for the weights at t0, beside the import"
    lesson = "notebooks/05_streaming"
    excluded_scenarios = ("fresh-node",)  # nothing is on the disk yet

    @property
    def loader(self) -> Loader:
        return replace(LOADERS["safetensors"], name=self.name)

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        directory = artifact.paths["model_dir"]
        step = Step("load.ask", "labkit_willneed:ask", {"directory": directory}, background=True)
        plan = super().apply(plan, artifact)
        return replace(plan, steps=(step, *plan.steps))

    def verify(self, seen: Observation) -> Evidence:
        """All bytes were asked for, before the server began to load, and it read them."""
        read = super().verify(seen)
        asked_bytes = seen.facts.get("load.ask", {}).get("asked_bytes", 0)
        want_bytes = seen.plan.state.weights.bytes
        asked_s = [s.end_s for s in seen.spans if s.name == "load.ask"]
        loads_s = [s.start_s for s in seen.spans if s.name == "load"]
        first = bool(asked_s and loads_s) and asked_s[0] <= loads_s[0]
        how = f"{show_bytes(asked_bytes)} asked for {'before' if first else 'NOT before'} the load"
        return Evidence(
            self.name,
            read.engaged and first and bool(want_bytes) and asked_bytes >= want_bytes,
            f"{how}; {read.how}",
            {**read.facts, "asked_bytes": asked_bytes},
        )

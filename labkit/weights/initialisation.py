"""The init layer's techniques: how the server builds its model before any weight arrives.

    random   torch's own constructors draw every weight, and the loader overwrites them
    meta     shapes without storage; a loaded tensor becomes the parameter

Limit: a random draw writes every byte of the model once, on one core; on meta nothing is written.
Without a technique of this layer a stack builds as its loader does (`catalog.Loader.init`):
`pickle` at random, as the article's starting point did, every other loader on meta. Chosen apart,
format and initialisation are measured apart:

    labkit run naive init=meta init=random,weights=safetensors weights=safetensors

Lesson: notebooks/04_model_formats."""

from __future__ import annotations

from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan
from labkit.core.workspace import Workspace
from labkit.technique import (
    YES,
    Artifact,
    Availability,
    Evidence,
    Observation,
    Subject,
    Technique,
    register,
)


class Initialisation(Technique):
    layer = "init"
    lesson = "notebooks/04_model_formats"

    def available(self, host: JsonObject) -> Availability:
        return YES

    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact:
        return Artifact(self.name)

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        return plan.with_server("--init", self.name)

    def verify(self, seen: Observation) -> Evidence:
        """The server's own span says how it built the model: nothing outside can see a draw."""
        built = next((s for s in seen.spans if s.name == "build" and "init" in s.detail), None)
        if built is None:
            return Evidence(self.name, False, "the server reported no build of a model")
        init = str(built.detail["init"])
        return Evidence(
            self.name,
            init == self.name,
            f"the server built its model with init={init} in {built.duration_s:.3f} s",
            {"init": init, "build_s": built.duration_s},
        )


@register
class RandomInitialisation(Initialisation):
    name = "random"
    title = "torch's constructors draw every weight; the loader overwrites them"


@register
class MetaInitialisation(Initialisation):
    name = "meta"
    title = "built on the meta device: shapes without storage, nothing drawn"

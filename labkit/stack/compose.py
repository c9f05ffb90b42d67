"""A stack is one technique for each layer; composing it asks each, in layer order, for its part of
the launch plan.

The naive stack is the article's starting point, built from stock parts at their defaults and never
slowed: pull the whole image, unpack it, start the server in it, initialise the model at random,
`torch.load`, `load_state_dict`, answer.

    Stack.parse("naive")                          # a named stack
    Stack.parse("image=estargz-lazy,weights=safetensors")   # the rest as in naive
    Stack.parse("article")

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from labkit.core.json_types import JsonObject
from labkit.core.node_state import PlanState
from labkit.core.observe import INTERFACES
from labkit.core.plan import SCENARIOS, LaunchPlan
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.objects.access import BUCKET, PASSED
from labkit.technique import (
    LAYERS,
    YES,
    Artifact,
    Availability,
    Evidence,
    Observation,
    Subject,
    Technique,
    technique,
)
from labkit.weights.catalog import LOADERS

#: Layer -> technique. "" or no entry leaves the layer as the layers below it made it; without
#: `init` the model is built as its loader does it. The process layer of `naive` is the best
#: container the user may start here (runc, userns, process: named in the record).
NAMED: dict[str, dict[str, str]] = {
    "naive": {
        "image": "full-pull",
        "process": "container",
        "weights": "pickle",
        "device": "",
        "snapshot": "",
    },
    "article": {
        "image": "estargz-lazy",
        "process": "container",
        "weights": "safetensors",
        "device": "",
        "snapshot": "",
    },
    "no-image": {
        "image": "host-env",
        "process": "process",
        "weights": "pickle",
        "device": "",
        "snapshot": "",
    },
}

CONTAINERS = ("runc", "userns", "process")


@dataclass(frozen=True)
class Stack:
    name: str
    layers: Mapping[str, str] = field(default_factory=dict)  # layer -> technique name, "" for none

    @staticmethod
    def parse(text: str) -> Stack:
        """A named stack, or `layer=technique,…` over the naive one, or `NAME,layer=technique,…`.
        Raises BadInput with the choices."""
        text = text.strip()
        if text in NAMED:
            return Stack(text, dict(NAMED[text]))
        layers = dict(NAMED["naive"])
        for i, part in enumerate(p.strip() for p in text.split(",")):
            layer, equals, name = part.partition("=")
            if not equals and i == 0 and part in NAMED:
                layers = dict(NAMED[part])
                continue
            if not equals or layer not in LAYERS:
                raise BadInput(
                    f"not a stack: {text!r} (at {part!r})",
                    why="a stack names one technique for each layer",
                    fix=(
                        f"a name ({', '.join(NAMED)}) or LAYER=TECHNIQUE,… with layers"
                        f" {', '.join(LAYERS)}"
                    ),
                )
            if name and name != "container":
                found = technique(name)
                if found.layer != layer:
                    raise BadInput(
                        f"{name} works on the {found.layer} layer, not on {layer}",
                        fix=f"{found.layer}={name}",
                    )
            layers[layer] = name
        return Stack(text, layers)

    def with_technique(self, name: str) -> Stack:
        """This stack with one technique exchanged; named after the change."""
        found = technique(name)
        return Stack(f"{self.name}+{name}", {**self.layers, found.layer: name})

    def initialisation(self) -> str:
        """How the model is built: the init layer's technique, or the loader's own way."""
        loader = LOADERS.get(self.layers.get("weights", ""))
        return self.layers.get("init") or (loader.init if loader else "")

    def resolved(self, host: JsonObject) -> Stack:
        """`container` replaced by what the user may start here: runc, then userns, then process."""
        if self.layers.get("process") != "container":
            return self
        for name in CONTAINERS:
            if technique(name).available(host):
                return replace(self, layers={**self.layers, "process": name})
        raise BadInput("no runtime is available here", fix="labkit doctor")

    def members(self) -> list[Technique]:
        return [technique(self.layers[layer]) for layer in LAYERS if self.layers.get(layer)]

    def available(self, host: JsonObject) -> Availability:
        """The first technique that is missing here says why."""
        for member in self.resolved(host).members():
            found = member.available(host)
            if not found.ok:
                missing = found.missing.removeprefix(f"{member.name}: ")  # a technique's own tool
                return replace(found, missing=f"{member.name}: {missing}")
        return YES

    def refuse_nonsense(self) -> None:
        """Combinations that mean nothing are refused with the reason."""
        if self.layers.get("image") == "host-env" and self.layers.get("process") in (
            "runc",
            "userns",
        ):
            raise BadInput(
                f"{self.layers['process']} needs an image to start",
                why="host-env means there is none",
                fix="process=process",
            )


def prepare(stack: Stack, subject: Subject, workspace: Workspace) -> dict[str, Artifact]:
    """Artifacts of every technique, off the clock. Layer -> artifact."""
    return {member.layer: member.prepare(subject, workspace) for member in stack.members()}


def compose(
    stack: Stack, artifacts: Mapping[str, Artifact], subject: Subject, plan: LaunchPlan
) -> LaunchPlan:
    """The launch plan of one stack. `plan`: what is chosen for all arms alike – scenario, link,
    request and its tokens, time-out, device, further arguments of the server.

    Image, weights and device parts come before the step that starts the process."""
    if plan.scenario not in SCENARIOS:
        raise BadInput(
            f"no scenario {plan.scenario!r}",
            fix="one of: " + ", ".join(f"{k} ({v})" for k, v in SCENARIOS.items()),
        )
    stack.refuse_nonsense()
    stores = {}
    if subject.registry:
        stores["registry"] = f"{subject.registry}/_labkit/stats#/v2/"
    if subject.store:
        stores["bucket"] = INTERFACES
    elif subject.bucket:
        stores["bucket"] = f"{subject.bucket}/_labkit/stats#!/v2/"
    plan = replace(
        plan,
        stack={k: v for k, v in stack.layers.items() if v},
        stat_urls=stores,
        server_args=("--host", "127.0.0.1", "--port", "{port}", *plan.server_args),
        state=PlanState(
            registry=subject.registry,
            bucket=subject.bucket,
            image_reference=subject.image_reference,
            store=subject.store or (f"s3://{BUCKET}" if subject.bucket else ""),
        ),
        server_env=bucket_environment(subject),
        pass_env=PASSED if subject.store else (),
    )
    for layer in ("image", "weights", "init", "device", "process", "snapshot"):
        # a standby is its own process: that layer has nothing to start
        if stack.layers.get(layer) and layer not in plan.replaces:
            plan = technique(stack.layers[layer]).apply(plan, artifacts[layer])
    return plan


def bucket_environment(subject: Subject) -> dict[str, str]:
    """How S3 clients in the server find the embedded store; a real bucket's environment is left as
    the user set it."""
    if subject.store or not subject.bucket:
        return {}
    return {
        "AWS_ENDPOINT_URL": subject.bucket,
        "AWS_ACCESS_KEY_ID": "labkit",
        "AWS_SECRET_ACCESS_KEY": "labkit-not-a-secret",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0",
    }


def judge(stack: Stack, observed: JsonObject) -> list[JsonObject]:
    """Every technique's evidence for what was observed. A technique that a snapshot replaces is not
    asked."""
    plan: LaunchPlan = observed["plan"]
    observation = Observation(
        plan=plan,
        spans=tuple(observed["spans"]),
        facts={**observed["facts"], "identity": observed.get("identity", {})},
        proc=observed["proc"],
        stores=observed["stores"],
        residency=observed.get("residency", {}),
        log=observed.get("log", ""),
    )
    found = []
    for member in stack.members():
        if member.layer in plan.replaces:
            continue
        try:
            evidence = member.verify(observation)
        except Exception as error:
            evidence = Evidence(
                member.name, False, f"looking for evidence failed: {type(error).__name__}: {error}"
            )
        found.append(
            {
                "technique": evidence.technique,
                "layer": member.layer,
                "engaged": evidence.engaged,
                "how": evidence.how,
                "facts": evidence.facts,
            }
        )
    return found

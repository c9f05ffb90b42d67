"""Technique: one way to do a layer's work, and the four questions each answers the same way.

    available(host)              yes, or what is missing, why it matters and the command that fixes
        it
    prepare(subject, workspace)  the artifact, off the clock, cached by content, its own cost
        recorded
    apply(plan, artifact)        its part of the launch plan
    verify(seen)                 evidence, from outside the technique, that its mechanism was at
        work

    @register
    class FullPull: name, layer = "full-pull", "image"; …
    for t in techniques("image"): print(t.name, t.available(host))

A trial whose evidence is missing is a failed trial, not a fast one. One contract test
(tests/contract) runs over every registered technique. Lesson: notebooks/08_stacking."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

from labkit.core import plugins
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan
from labkit.core.timeline import Span
from labkit.core.workspace import Workspace
from labkit.errors import BadInput

#: In the order in which a stack applies them.
LAYERS = ("image", "process", "weights", "init", "device", "snapshot")

#: Modules that register techniques, imported on the first look-up.
MODULES = (
    "labkit.image.techniques",
    "labkit.image.object_techniques",
    "labkit.image.lazyfs.techniques",
    "labkit.image.containerd_techniques",
    "labkit.image.runtimes.techniques",
    "labkit.weights.techniques",
    "labkit.weights.overlap",
    "labkit.weights.initialisation",
    "labkit.device.compile_techniques",
    "labkit.device.graph_techniques",
    "labkit.device.standby_technique",
    "labkit.device.resident_technique",
    "labkit.snapshot.techniques",
    "labkit.snapshot.container_technique",
    "labkit.snapshot.zygote_technique",
    "labkit.snapshot.unpacking",
)


@dataclass(frozen=True)
class Availability:
    """`ok`, or: what is missing, why it matters, the command that fixes it."""

    ok: bool
    missing: str = ""
    why: str = ""
    fix: str = ""

    def __bool__(self) -> bool:
        return self.ok


YES = Availability(True)


@dataclass(frozen=True)
class Claim:
    """What somebody says a technique gains, kept apart from what this host measured."""

    text: str  # "60-80 % less pull time"
    source: str  # "the article", or a paper with its setup
    low: float | None = None  # claimed ratio new/old, lower bound (0.2 for "80 % less")
    high: float | None = None
    of: str = "total"  # phase the ratio speaks of, or "total"


@dataclass(frozen=True)
class Option:
    """What to do to have a technique, and what that asks for; techniques that do the same share
    one. Effort is this lab's judgement, from 1 to 5, with its reason.

    `phases`: what it can shorten; `skips`: it leaves its phases out."""

    key: str
    title: str
    phases: tuple[str, ...]
    effort: int
    effort_why: str
    risk: str
    lesson: str
    skips: bool = False
    fewer_bytes: bool = False  # moves less, or at another time: today's bytes are no floor for it


@dataclass(frozen=True)
class Evidence:
    """What was observed, and from where. `engaged=False` fails the trial with `how` as its
    reason."""

    technique: str
    engaged: bool
    how: str  # one sentence with the figures: "registry sent 353 MB of 353 MB before start"
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Artifact:
    """What `prepare` made. Content-addressed: the same inputs give the same `digest` and the same
    paths."""

    technique: str
    digest: str = ""
    paths: dict[str, str] = field(default_factory=dict)
    # at least prepare_s and size_bytes where it made something
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Subject:
    """What is started: a model directory (HF layout), an OCI image layout, and where a fresh node
    finds both.

    `registry`/`bucket`: base URLs of the running stores (http://127.0.0.1:PORT), "" when not
    served."""

    model_dir: Path
    image_layout: Path | None = None
    image_reference: str = ""  # name:tag in registry and bucket, "lab/subject:latest"
    registry: str = ""
    bucket: str = ""
    # s3://bucket/prefix or gs://…, outside of the lab: where a fresh node finds the weights instead
    store: str = ""
    model_key: str = ""  # key prefix of the checkpoint in the bucket, "models/small"
    preset: str = "small"
    # what the server is told; an artifact that holds compiled code is made for it
    device: str = "cpu"


@dataclass(frozen=True)
class Observation:
    """What the trial observed from outside, handed to `verify`. All paths and figures are raw.

    facts: step facts by phase · proc: {"io": {...}, "maps": [paths], "mounts": [mountinfo lines],
    "rss_bytes": n, "environ": {...}} of the server at the first token · stores: per plan.stat_urls,
    counters after minus before {"requests", "bytes_sent", "by_path": {...}} · log: tail of the
    server's output."""

    plan: LaunchPlan
    spans: tuple[Span, ...] = ()
    facts: JsonObject = field(default_factory=dict)
    proc: JsonObject = field(default_factory=dict)
    stores: dict[str, JsonObject] = field(default_factory=dict)
    residency: JsonObject = field(default_factory=dict)
    log: str = ""

    def phase_s(self, name: str) -> float:
        return sum(s.duration_s for s in self.spans if s.name == name)


@runtime_checkable
class Technique(Protocol):
    """The whole contract. A technique names this class as its base, for the defaults below the four
    questions."""

    name: str
    layer: str
    title: str  # one line for a menu
    lesson: str  # notebook that teaches it
    claims: tuple[Claim, ...] = ()

    def available(self, host: JsonObject) -> Availability: ...
    def prepare(self, subject: Subject, workspace: Workspace) -> Artifact: ...
    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan: ...
    def verify(self, seen: Observation) -> Evidence: ...

    #: Other layers' techniques without which this one means nothing: layer -> name.
    requires_layers: ClassVar[Mapping[str, str]] = {}
    #: Layers whose work is not done any more where this one is in the stack.
    replaces_layers: tuple[str, ...] = ()
    #: Scenarios in which it means nothing.
    excluded_scenarios: tuple[str, ...] = ()

    #: Its place in the article's order (`labkit.stack.ablate.ladder`); 0 for none.
    rung: int = 0
    #: The article's word for what it does, as a ladder names its rungs; "" for none.
    step: str = ""
    #: Label of the article's claim that it answers (`labkit.stack.claims.ROWS`); "" for none.
    claims_row: str = ""
    #: What a plan ranks it by (`labkit.decide.advise`); None: no plan names it.
    advice: Option | None = None

    def publish(self, artifact: Artifact, subject: Subject, roots: Mapping[str, Path]) -> None:
        """Put what a fresh node will fetch where it finds it. `roots`: the directories that the
        trial's "registry" and "store" serve. Called off the clock, once per artifact."""
        return


_REGISTRY: dict[str, Technique] = {}


def register(cls: type) -> type:
    """Class decorator: one instance, under its name. Names are unique over all layers."""
    instance = cls()
    if instance.layer not in LAYERS:
        raise ValueError(f"{cls.__name__}: layer {instance.layer!r} is not one of {LAYERS}")
    there = _REGISTRY.get(instance.name)
    if there and type(there).__qualname__ != cls.__qualname__:
        raise ValueError(f"two techniques named {instance.name!r}")
    _REGISTRY[instance.name] = instance
    return cls


def techniques(layer: str | None = None) -> list[Technique]:
    """All registered techniques (of one layer), in registration order; those of other packages
    last."""
    for module in MODULES:
        importlib.import_module(module)
    for name, cls in plugins.found(plugins.TECHNIQUES).items():
        if not any(type(t) is cls for t in _REGISTRY.values()):
            try:
                register(cls)
            except (TypeError, ValueError, AttributeError) as error:
                plugins.complain(name, plugins.TECHNIQUES, str(error))
    return [t for t in _REGISTRY.values() if layer is None or t.layer == layer]


def technique(name: str) -> Technique:
    """Look one up by name. Raises BadInput that lists the names of the family."""
    known = {t.name: t for t in techniques()}
    if name not in known:
        raise BadInput(
            f"no technique called {name!r}",
            why="a stack is made of registered techniques",
            fix="one of: " + ", ".join(sorted(known)),
        )
    return known[name]


def replaced_layers(snapshot: object) -> tuple[str, ...]:
    """The layers that a stack's snapshot replaces: what stands on them is not at work. () of no
    snapshot, and of another package's that is not installed here."""
    if not snapshot:
        return ()
    try:
        return technique(str(snapshot)).replaces_layers
    except BadInput:
        return ()

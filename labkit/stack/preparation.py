"""Everything of an experiment that is done before a clock starts: checkpoint, image, reference
tokens, every technique's artifact, the stores at the other end of the link, the launch plans.

    preparation = Preparation(spec, space, ledger, ends, progress)
    preparation.refuse(card)
    subject = preparation.serve(preparation.subject())
    plan = preparation.plan(stack, subject)      # of each arm when its first trial is due

Lesson: notebooks/01_anatomy."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core.beside import scratch
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan
from labkit.core.subprocess_call import run_in_subprocess
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError, MissingCapability
from labkit.net.link import parse as parse_link
from labkit.stack.compose import Stack, compose, prepare
from labkit.stack.progress import notify
from labkit.stack.spec import PROMPT, Experiment
from labkit.technique import Artifact, Subject, technique

if TYPE_CHECKING:
    from labkit.net.serving import Served


@dataclass
class Preparation:
    """What was prepared, arm by arm. `missing`: why an arm cannot run: this host lacks something,
    or something of the arm's could not be made. Its trials are recorded as unavailable, with the
    reason, and the other arms are measured."""

    spec: Experiment
    space: Workspace
    ledger: Ledger
    ends: ExitStack
    progress: object | None = None
    missing: dict[str, LabError] = field(default_factory=dict)
    roots: dict[str, Path] = field(default_factory=dict)  # what the stores serve, by kind
    served: Served | None = None
    tokens: tuple[int, ...] = ()  # what every arm has to answer
    # what the tokens are compared with, and where it was computed
    reference: JsonObject = field(default_factory=dict)

    def note(self, text: str) -> None:
        notify(self.progress, "note", text)

    def refuse(self, card: JsonObject) -> None:
        """Note the arms that cannot run on the host of this card. Raises BadInput for one that
        means nothing, MissingCapability where none can."""
        for stack in self.spec.stacks:
            stack.refuse_nonsense()
            if self.spec.store:
                self._refuse_store(stack)
            found = stack.available(card)
            if not found.ok:
                self.missing[stack.name] = MissingCapability(found.missing, found.why, found.fix)
        if len(self.missing) == len(self.spec.stacks):
            raise next(iter(self.missing.values()))

    def _refuse_store(self, stack: Stack) -> None:
        """Raises BadInput for what means nothing with weights from a bucket outside of the lab."""
        image, snapshot = stack.layers.get("image", ""), stack.layers.get("snapshot", "")
        store = self.spec.store
        if self.spec.scenario != "fresh-node":
            raise BadInput(
                f"nothing comes from {store}",
                why=f"on a {self.spec.scenario} all is on the node's disk",
                fix="--scenario fresh-node",
            )
        if parse_link(self.spec.link).shaped:
            raise BadInput(
                f"an emulated link in front of {store}",
                why="only the lab's own stores emulate one; a real bucket has its own",
                fix="leave --link out",
            )
        if snapshot or image.startswith("object-pull"):
            raise BadInput(
                f"{snapshot or image} cannot take its bytes from {store}",
                why="what an image or a snapshot moved is counted by the lab's own stores",
                fix=(
                    "another image technique and no snapshot; labkit image push --to and labkit"
                    " snapshot push move the bytes alone"
                ),
            )

    def subject(self) -> Subject:
        """What is started – checkpoint, image –, and `tokens`. Raises LabError without a
        checkpoint; without an image only the arms that start from one are unavailable."""
        spec = self.spec
        self.note(f"checkpoint: {spec.model_dir or spec.preset}")
        model, answer = run_in_subprocess(
            _model_and_answer,
            spec.model_dir,
            self.space,
            spec.preset,
            spec.max_tokens,
            spec.device,
            ledger=self.ledger,
        )
        self.reference = {
            k: v for k, v in answer.items() if k in ("device", "dtype", "torch", "tokens", "note")
        }
        self.tokens = tuple(answer["tokens"])
        layout, reference_name = None, ""
        imaged = [s for s in spec.stacks if s.layers.get("image") not in ("host-env", "", None)]
        if spec.image_extra_bytes and not imaged:
            raise BadInput(
                "no arm has an image to enlarge",
                why="host-env starts what is installed",
                fix="leave image_extra_bytes out, or image=full-pull",
            )
        if imaged:
            self.note("image of the subject")
            try:
                layout, reference_name = run_in_subprocess(
                    _image, self.space, spec.image_extra_bytes, ledger=self.ledger
                )
            except LabError as error:
                for stack in imaged:
                    self._unavailable(stack, error)
        return Subject(
            model_dir=model,
            image_layout=layout,
            image_reference=reference_name,
            preset=spec.preset,
            device=spec.device,
        )

    def _unavailable(self, stack: Stack, error: LabError) -> None:
        """An arm of which something could not be made: a result of that arm."""
        if stack.name not in self.missing:
            self.missing[stack.name] = error
            self.note(f"{stack.name} is unavailable: {error.what}")

    def serve(self, subject: Subject) -> Subject:
        """Serve what a fresh node finds at the other end of the link, from processes of their own:
        the image now, the rest as arms are prepared."""
        if self.spec.scenario != "fresh-node":
            return subject
        from labkit.image.publish import publish_image
        from labkit.net.serving import serving

        self.roots = {
            kind: self.ends.enter_context(scratch(f"{kind}-", self.space.artifacts))
            for kind in ("registry", "store")
        }
        if subject.image_layout:
            publish_image(self.roots["registry"], subject.image_layout, subject.image_reference)
        # One server for both, as the node has one link: two would carry twice its rate.
        self.served = self.ends.enter_context(
            serving(
                "store",
                self.roots["store"],
                link=self.spec.link,
                ledger=self.ledger,
                options=("--with-registry", str(self.roots["registry"])),
            )
        )
        return replace(
            subject, registry=self.served.url, bucket=self.served.url, store=self.spec.store
        )

    def plan(self, stack: Stack, subject: Subject) -> LaunchPlan | None:
        """An arm made ready: its artifacts, what a fresh node finds of them at the other end of the
        link, its launch plan. None: it is unavailable. `subject`: as `serve` returned it."""
        if stack.name in self.missing:
            return None
        self.note(f"preparing {stack.name}")
        spec = self.spec
        try:
            artifacts = run_in_subprocess(prepare, stack, subject, self.space, ledger=self.ledger)
            if self.roots:
                self._publish(artifacts, subject)
            plan = LaunchPlan(
                {},
                spec.scenario,
                spec.link,
                server_args=spec.server_args,
                device=spec.device,
                request={"prompt": PROMPT, "max_tokens": spec.max_tokens},
                expected_tokens=self.tokens,
                timeout_s=spec.timeout_s,
            )
            return compose(stack, artifacts, subject, plan)
        except LabError as error:
            self._unavailable(stack, error)
            return None

    def _publish(self, artifacts: Mapping[str, Artifact], subject: Subject) -> None:
        from labkit.objects.publish import publish_model, upload_model

        for artifact in artifacts.values():
            if key := artifact.facts.get("model_key"):
                directory = artifact.paths["model_dir"]
                if self.spec.store:
                    self.note(f"uploading {key} to {self.spec.store}")
                    upload_model(self.spec.store, directory, key)
                else:
                    publish_model(self.roots["store"], Path(directory), key)
            technique(artifact.technique).publish(artifact, subject, self.roots)


def _model_and_answer(
    model_dir: str, space: Workspace, preset: str, max_tokens: int, device: str = "cpu"
) -> tuple[Path, JsonObject]:
    """The checkpoint, and what it answers: computed once, by the reference, off the clock, on the
    kind of device that the servers run on – elsewhere sums round differently. A device that cannot
    compute it (no memory, no driver) leaves it to the CPU, and says so."""
    from labkit.subject import checkpoint, reference

    model = (
        Path(model_dir).expanduser().resolve() if model_dir else checkpoint.ensure(space, preset)
    )
    try:
        return model, reference.reference(model, PROMPT, max_tokens, device=device, workspace=space)
    except LabError as error:
        if device == "cpu":
            raise
        answer = reference.reference(model, PROMPT, max_tokens, workspace=space)
        return model, {
            **answer,
            "note": f"computed on the CPU, as {device} could not: {error.what}"[:300],
        }


def _image(space: Workspace, extra_bytes: int) -> tuple[Path, str]:
    from labkit.image import build

    return build.ensure_image(space, extra_bytes=extra_bytes)

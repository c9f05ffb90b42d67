"""An experiment: arms × repeats in randomised blocks, recorded after every trial, resumable.

    run = experiment(["naive", "image=estargz-lazy"], preset="small", blocks=5,
        scenario="fresh-node", link="1gbit")

Off the clock first: checkpoint, image, reference tokens, every technique's artifact, the stores at
the other end of the link, this host's floors. Then the blocks. A trial that fails is recorded with
its outcome and the experiment goes on; an interruption keeps what it had. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labkit.core import cold, floor, host, question, rates, records, secrets
from labkit.core.beside import scratch
from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan, device_arguments
from labkit.core.subprocess_call import run_in_subprocess
from labkit.core.trial import TrialOptions, run_trial
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError, MissingCapability
from labkit.net.link import parse as parse_link
from labkit.stack.compose import Stack, compose, judge, prepare
from labkit.stack.placement import place
from labkit.technique import Artifact, Subject

if TYPE_CHECKING:
    from labkit.net.serving import Served

PROMPT = "The first token of a cold start"


@dataclass
class Experiment:
    """What is measured. Arms are stacks; one scenario and one link for all of them, so that they
    may be compared."""

    stacks: Sequence[Stack]
    preset: str = "small"
    blocks: int = 5
    scenario: str = "fresh-node"
    link: str = "loopback"
    seed: int = 0
    max_tokens: int = 8
    timeout_s: float = 300.0
    server_args: tuple[str, ...] = ()
    device: str = "cpu"  # of all servers
    model_dir: str = ""  # a public model directory in place of the preset's synthetic checkpoint
    # s3://bucket/prefix or gs://…, with the environment's credentials: where a fresh node finds the
    # weights instead
    store: str = ""
    # unpacked bytes on top of the subject's image: the same start from a larger image
    image_extra_bytes: int = 0
    at_t0: str = ""
    port: int | None = None
    instrument: bool = True
    # how the device was chosen (labkit.stack.placement)
    placement: Mapping[str, Any] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def described(self) -> dict[str, Any]:
        return {
            "arms": [
                {
                    "name": s.name,
                    "stack": {k: v for k, v in s.layers.items() if v},
                    "scenario": self.scenario,
                    "link": self.link,
                }
                for s in self.stacks
            ],
            "blocks": self.blocks,
            "seed": self.seed,
            "preset": self.preset,
            "model_dir": self.model_dir,
            "max_tokens": self.max_tokens,
            **({"image_extra_bytes": self.image_extra_bytes} if self.image_extra_bytes else {}),
            **({"store": self.store} if self.store else {}),
            **({"placement": dict(self.placement)} if self.placement else {}),
            **({"notes": self.notes} if self.notes else {}),
            "conditions": self.conditions(),
        }

    def conditions(self) -> dict[str, Any]:
        """Everything that was chosen, for `labkit.core.question`: what of it differs makes another
        experiment."""
        return question.chosen(
            preset=self.preset,
            model_dir=self.model_dir,
            model_identity=question.identity(self.model_dir),
            image=question.LAB_IMAGE,
            image_extra_bytes=self.image_extra_bytes,
            store=self.store,
            server_args=[*self.server_args, *device_arguments(self.device)],
            device=self.device,
            timeout_s=float(self.timeout_s),
            prompt=PROMPT,
            max_tokens=self.max_tokens,
            at_t0=question.digest(self.at_t0),
            instrument=self.instrument,
        )


def _has_image(stack: Stack) -> bool:
    return stack.layers.get("image") not in ("host-env", "", None)


def experiment(
    stacks: Sequence[str | Stack],
    *,
    preset: str = "small",
    blocks: int = 5,
    scenario: str = "fresh-node",
    link: str = "loopback",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Any = None,
    workspace: Workspace | None = None,
    seed: int = 0,
    device: str = "",
    server_args: tuple[str, ...] = (),
    **more: Any,
) -> records.Run:
    """Run an experiment and return its record (also written to `out`, default in the workspace's
    runs/).

    A record that is there is gone on with (`resume`), replaced (`overwrite`), or refused before
    anything is prepared. `device`: cpu or cuda; by default a GPU where there is one that torch can
    use (labkit.stack.placement).

    progress: an object with `note(text)`, `trial_started(arm, block, blocks)`, `phase(name,
    seconds)`, `trial_done(trial)`; any may be missing. Raises BadInput, MissingCapability (no arm
    can run here), KeyboardInterrupt (the record is kept)."""
    records.refuse_overwriting(out, resume, overwrite)
    if blocks < 1 or not stacks:
        raise BadInput(
            f"{len(stacks)} stacks in {blocks} blocks",
            why="an experiment without a trial measures nothing",
            fix='experiment(["naive"], blocks=5)',
        )
    if "--device" in server_args:
        raise BadInput("--device among server_args", fix='experiment(…, device="cuda")')
    space = workspace or Workspace.default()
    parsed = [_parsed(s, space, scenario, link, preset) for s in stacks]
    placed = place(parsed, device)
    spec = Experiment(
        parsed,
        preset=preset,
        blocks=blocks,
        scenario=scenario,
        link=link,
        seed=seed,
        server_args=server_args,
        device=placed.device,
        placement=placed.as_json(),
        **more,
    )
    with Ledger.open(space) as ledger, ExitStack() as ends:
        return ExperimentRunner(
            spec, space, ledger, ends, progress, Path(out) if out else None, resume
        ).run()


@contextmanager
def prepared(
    stack: str | Stack, *, workspace: Workspace | None = None, progress: Any = None, **options: Any
) -> Iterator[Callable[..., records.Trial]]:
    """One stack made ready, as a function that runs one trial of it each call:
    `trial(instrument=True, link="200mbit")`.

    `link` (fresh node): the emulated link from this trial on, without preparing anything again. For
    benches that interleave trials with something else. Raises MissingCapability where the stack
    cannot run."""
    made = stack if isinstance(stack, Stack) else Stack.parse(stack)
    space = workspace or Workspace.default()
    with Ledger.open(space) as ledger, ExitStack() as ends:
        runner = ExperimentRunner(
            Experiment([made], **options), space, ledger, ends, progress, None, False
        )
        run, plans = runner.ready()
        count = 0

        def trial(instrument: bool = True, link: str = "") -> records.Trial:
            nonlocal count
            count += 1
            if link:
                runner.relink(link, plans)
            runner.spec.instrument = instrument
            return runner._one(runner.spec.stacks[0], plans, count - 1, 0, run.floors)

        yield trial


class ExperimentRunner:
    def __init__(
        self,
        spec: Experiment,
        space: Workspace,
        ledger: Ledger,
        ends: ExitStack,
        progress: Any,
        out: Path | None,
        resume: bool,
    ):
        self.spec, self.space, self.ledger, self.ends, self.progress, self.resume = (
            spec,
            space,
            ledger,
            ends,
            progress,
            resume,
        )
        self.card = host.card()
        created = datetime.now(timezone.utc)
        self.id = created.strftime("%Y%m%dT%H%M%S%f")[:-3]
        self.out = out or space.runs / f"{self.id}.json"
        self.created = created.isoformat(timespec="seconds")
        self.artifacts: dict[str, dict[str, Artifact]] = {}
        self.missing: dict[str, LabError] = {}
        # of them: could run here, but something of theirs could not be prepared
        self.unmade: dict[str, LabError] = {}
        self.roots: tuple[Path, ...] = ()
        self.served: Served | None = None
        # what the tokens are compared with, and where it was computed
        self.reference: dict[str, Any] = {}

    def notify(self, method: str, *args: Any) -> None:
        call: Callable[..., Any] | None = getattr(self.progress, method, None)
        if call:
            call(*args)

    def run(self) -> records.Run:
        run, plans = self.ready()
        records.write(run, self.out)
        return self._blocks(run, plans)

    def ready(self) -> tuple[records.Run, dict[str, LaunchPlan]]:
        """Everything off the clock: what can run here, artifacts, stores, floors, plans."""
        spec = self.spec
        # before they are described: the record names the runtime
        spec.stacks = [s.resolved(self.card) for s in spec.stacks]
        run = self._resumed()
        for stack in spec.stacks:
            stack.refuse_nonsense()
            if spec.store:
                self._refuse_store(stack)
            found = stack.available(self.card)
            if not found.ok:
                self.missing[stack.name] = MissingCapability(found.missing, found.why, found.fix)
        if len(self.missing) == len(spec.stacks):
            raise next(iter(self.missing.values()))
        subject, tokens = self._subject()
        run = self._of_this_image(run, subject)
        for stack in spec.stacks:
            if stack.name not in self.missing:
                self.notify("note", f"preparing {stack.name}")
                try:
                    self.artifacts[stack.name] = run_in_subprocess(
                        prepare, stack, subject, self.space, ledger=self.ledger
                    )
                except LabError as error:
                    # an arm that cannot be made is a result of that arm; the others are measured
                    if len(self.missing) == len(spec.stacks) - 1:
                        raise
                    self.unmade[stack.name] = self.missing[stack.name] = error
        subject = self._serve(subject)
        self.notify("note", "measuring this host's floors")
        run = replace(run, floors=run.floors or rates.measure(self.space))
        return run, {
            s.name: self._plan(s, subject, tokens)
            for s in spec.stacks
            if s.name not in self.missing
        }

    def _resumed(self) -> records.Run:
        run = records.Run(
            id=self.id,
            created=self.created,
            host=self.card,
            experiment=secrets.masked(self.spec.described()),
        )
        if self.resume and self.out.exists():
            before = records.read(self.out)
            question.refuse_mixing(before, run, self.out)
            new = [arm for arm in run.experiment["arms"] if arm["name"] not in before.arm_names]
            image = {
                k: v for k, v in before.experiment["conditions"].items() if k == "image_digest"
            }
            run = replace(
                before,
                experiment={
                    **run.experiment,
                    "arms": [*before.arms, *new],
                    "conditions": {**run.experiment["conditions"], **image},
                },
            )
        return run

    def _of_this_image(self, run: records.Run, subject: Subject) -> records.Run:
        """The record names the image that its trials start from. Raises BadInput where those of a
        resumed one started from another."""
        from labkit.image.oci_layout import Layout

        made = (
            Layout(subject.image_layout).manifest_descriptor(subject.image_reference).digest
            if subject.image_layout
            else ""
        )
        before = run.experiment["conditions"].get("image_digest", "")  # "": no arm had one
        now = replace(
            run,
            experiment={
                **run.experiment,
                "conditions": {**run.experiment["conditions"], "image_digest": made or before},
            },
        )
        if made and before:
            question.refuse_mixing(run, now, self.out)
        return replace(now, experiment={**now.experiment, "reference": self.reference})

    def _subject(self) -> tuple[Subject, tuple[int, ...]]:
        self.notify("note", f"checkpoint: {self.spec.model_dir or self.spec.preset}")
        model, answer = run_in_subprocess(
            _model_and_answer,
            self.spec.model_dir,
            self.space,
            self.spec.preset,
            self.spec.max_tokens,
            self.spec.device,
            ledger=self.ledger,
        )
        tokens, self.reference = (
            tuple(answer["tokens"]),
            {
                k: v
                for k, v in answer.items()
                if k in ("device", "dtype", "torch", "tokens", "note")
            },
        )
        layout, reference_name = None, ""
        imaged = [s for s in self.spec.stacks if _has_image(s)]
        if self.spec.image_extra_bytes and not imaged:
            raise BadInput(
                "no arm has an image to enlarge",
                why="host-env starts what is installed",
                fix="leave image_extra_bytes out, or image=full-pull",
            )
        if imaged:
            self.notify("note", "image of the subject")
            layout, reference_name = run_in_subprocess(
                _image, self.space, self.spec.image_extra_bytes, ledger=self.ledger
            )
        return (
            Subject(
                model_dir=model,
                image_layout=layout,
                image_reference=reference_name,
                preset=self.spec.preset,
                device=self.spec.device,
            ),
            tokens,
        )

    def _serve(self, subject: Subject) -> Subject:
        """Publish what a fresh node finds at the other end of the link, and serve it from processes
        of their own."""
        if self.spec.scenario != "fresh-node":
            return subject
        if self.spec.store:
            self._upload()
        from labkit.image.publish import publish_image
        from labkit.net.serving import serving
        from labkit.objects.publish import publish_model

        roots = {
            kind: self.ends.enter_context(scratch(f"{kind}-", self.space.artifacts))
            for kind in ("registry", "store")
        }
        self.roots = tuple(roots.values())
        if subject.image_layout:
            publish_image(roots["registry"], subject.image_layout, subject.image_reference)
        for made in self.artifacts.values():
            for artifact in made.values():
                if "model_key" in artifact.facts and not self.spec.store:
                    publish_model(
                        roots["store"],
                        Path(artifact.paths["model_dir"]),
                        artifact.facts["model_key"],
                    )
                _technique(artifact.technique).publish(artifact, subject, roots)
        # One server for both, as the node has one link: two would carry twice its rate.
        self.served = self.ends.enter_context(
            serving(
                "store",
                roots["store"],
                link=self.spec.link,
                ledger=self.ledger,
                options=("--with-registry", str(roots["registry"])),
            )
        )
        return replace(
            subject, registry=self.served.url, bucket=self.served.url, store=self.spec.store
        )

    def _refuse_store(self, stack: Stack) -> None:
        """Raises BadInput for what means nothing with weights from a bucket outside of the lab."""
        image, snapshot, store = (
            stack.layers.get("image", ""),
            stack.layers.get("snapshot", ""),
            self.spec.store,
        )
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

    def _upload(self) -> None:
        """Every checkpoint in its loader's format into the bucket outside of the lab, once."""
        from labkit.objects.publish import upload_model

        for made in self.artifacts.values():
            for artifact in made.values():
                if "model_key" in artifact.facts:
                    self.notify(
                        "note", f"uploading {artifact.facts['model_key']} to {self.spec.store}"
                    )
                    upload_model(
                        self.spec.store, artifact.paths["model_dir"], artifact.facts["model_key"]
                    )

    def relink(self, link: str, plans: dict[str, LaunchPlan]) -> None:
        """Another emulated link for the trials to come."""
        if self.served is None:
            raise BadInput(
                "no link to change",
                why=f"on a {self.spec.scenario} nothing comes over one",
                fix="--scenario fresh-node",
            )
        self.served.set_link(link)
        plans.update({name: replace(plan, link=link) for name, plan in plans.items()})

    def _plan(self, stack: Stack, subject: Subject, tokens: tuple[int, ...]) -> LaunchPlan:
        return compose(
            stack,
            self.artifacts[stack.name],
            scenario=self.spec.scenario,
            link=self.spec.link,
            subject=subject,
            request={"prompt": PROMPT, "max_tokens": self.spec.max_tokens},
            expected_tokens=tokens,
            timeout_s=self.spec.timeout_s,
            server_args=self.spec.server_args,
            device=self.spec.device,
        )

    def _blocks(self, run: records.Run, plans: dict[str, LaunchPlan]) -> records.Run:
        order = random.Random(self.spec.seed)
        done = {(t.arm, t.block) for t in run.trials if t.outcome != "interrupted"}
        for block in range(self.spec.blocks):
            if self.roots:
                # the stores stand for other machines: their disks are not what is measured
                cold.warm(self.roots)
            arms = list(self.spec.stacks)
            order.shuffle(arms)
            for position, stack in enumerate(arms):
                if (stack.name, block) in done:
                    continue
                self.notify("trial_started", stack.name, block, self.spec.blocks)
                try:
                    trial = self._one(stack, plans, block, position, run.floors)
                except KeyboardInterrupt:
                    stopped = records.Trial(stack.name, block, position, outcome="interrupted")
                    records.write(replace(run, trials=(*run.trials, stopped)), self.out)
                    raise
                run = replace(run, trials=(*run.trials, trial))
                records.write(run, self.out)
                self.notify("trial_done", trial)
        return run

    def _one(
        self,
        stack: Stack,
        plans: dict[str, LaunchPlan],
        block: int,
        position: int,
        rates: dict[str, Any],
    ) -> records.Trial:
        if stack.name in self.missing:
            outcome = "crashed" if stack.name in self.unmade else "unavailable"
            return records.Trial(
                stack.name,
                block,
                position,
                outcome=outcome,
                error=self.missing[stack.name].as_json(),
            )
        plan = plans[stack.name]
        trial = run_trial(
            plan,
            arm=stack.name,
            workspace=self.space,
            ledger=self.ledger,
            block=block,
            order=position,
            options=TrialOptions(
                judge=lambda seen: judge(stack, seen),
                instrument=self.spec.instrument,
                on_phase=(lambda name, s: self.notify("phase", name, s)) if self.progress else None,
                at_t0=self.spec.at_t0,
                port=self.spec.port,
            ),
        )
        return replace(
            trial,
            floors=floor.phase_floors(
                plan.floors_bytes, rates, parse_link(plan.link), plan.scenario
            ),
        )


def _model_and_answer(
    model_dir: str, space: Workspace, preset: str, max_tokens: int, device: str = "cpu"
) -> tuple[Path, dict[str, Any]]:
    """The checkpoint, and what it answers: computed once, by the reference, off the clock, on the
    kind of device that the servers run on – elsewhere sums round differently. A device that cannot
    compute it (no room, no driver) leaves it to the CPU, and says so."""
    from labkit.subject import checkpoint, reference

    model = Path(model_dir) if model_dir else checkpoint.ensure(space, preset)
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


def _parsed(stack: str | Stack, space: Workspace, scenario: str, link: str, preset: str) -> Stack:
    if isinstance(stack, Stack):
        return stack
    if stack.strip() == "best-here":
        from labkit.stack.best_here import best_here

        return best_here(space, scenario, link, preset)
    return Stack.parse(stack)


def _technique(name: str) -> Any:
    from labkit.technique import technique

    return technique(name)

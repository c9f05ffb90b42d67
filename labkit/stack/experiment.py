"""An experiment: arms × repeats in randomised blocks, recorded after every trial, resumable.

    run = experiment(["naive", "image=estargz-lazy"], preset="small", blocks=5,
        scenario="fresh-node", link="1gbit")

Off the clock first: checkpoint, image, reference tokens, the stores at the other end of the link,
this host's floors; before the block that an arm is first in, its techniques' artifacts. A trial
that fails is recorded with its outcome and the experiment goes on; one that other work on the
machine disturbed is kept, marked and measured again at once (`again` a block); an interruption
keeps what it had. Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from labkit.core import cold, floor, host, question, rates, records, secrets
from labkit.core.json_types import JsonMapping
from labkit.core.ledger import Ledger
from labkit.core.plan import LaunchPlan
from labkit.core.trend import trend
from labkit.core.trial import TrialOptions, run_trial
from labkit.core.turn import beside, turn
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.net.link import parse as parse_link
from labkit.stack.compose import Stack, judge
from labkit.stack.placement import place
from labkit.stack.preparation import Preparation
from labkit.stack.progress import notify
from labkit.stack.spec import Experiment
from labkit.technique import Subject

#: The arms of block n, by name, given the trials before it; none: the experiment is over. It tells
#: the watcher which trials are to come, as only it knows.
Schedule = Callable[[int, records.Run], Sequence[str]]


def experiment(
    stacks: Sequence[str | Stack],
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: object | None = None,
    workspace: Workspace | None = None,
    device: str = "",
    schedule: Schedule | None = None,
    floors: JsonMapping | None = None,
    **chosen: Any,
) -> records.Run:
    """Run an experiment and return its record (also written to `out`, default in the workspace's
    runs/). `chosen`: preset, blocks, scenario, link, seed and all else that `Experiment` has.

    A record that is there is gone on with (`resume`), replaced (`overwrite`), or refused before
    anything is prepared. `device`: cpu or cuda; by default a GPU where there is one that torch can
    use (labkit.stack.placement). `schedule`: which arms each block has; by default all of them,
    `blocks` times. `floors`: this host's, of a record made just before; by default they are
    measured.

    progress: an object with the methods of `labkit.stack.progress`; any may be missing. Raises
    BadInput, MissingCapability (no arm can run here), KeyboardInterrupt (the record is kept)."""
    records.refuse_overwriting(out, resume, overwrite)
    spec = Experiment([], **chosen)
    if spec.blocks < 1 or not stacks:
        raise BadInput(
            f"{len(stacks)} stacks in {spec.blocks} blocks",
            why="an experiment without a trial measures nothing",
            fix='experiment(["naive"], blocks=5)',
        )
    if "--device" in spec.server_args:
        raise BadInput("--device among server_args", fix='experiment(…, device="cuda")')
    space = workspace or Workspace.default()
    parsed = [_parsed(s, space, spec) for s in stacks]
    placed = place(parsed, device)
    spec = replace(spec, stacks=parsed, device=placed.device, placement=placed.as_json())
    with _turn(progress), Ledger.open(space) as ledger, ExitStack() as ends:
        preparation = Preparation(spec, space, ledger, ends, progress)
        runner = ExperimentRunner(preparation, Path(out) if out else None, resume, schedule, floors)
        return runner.run()


@contextmanager
def prepared(
    stack: str | Stack,
    *,
    workspace: Workspace | None = None,
    progress: object | None = None,
    **chosen: Any,
) -> Iterator[Callable[..., records.Trial]]:
    """One stack made ready, as a function that runs one trial of it each call:
    `trial(instrument=True, link="200mbit")`. `chosen`: as for `experiment`.

    `link` (fresh node): the emulated link from this trial on, without preparing anything again. For
    benches that interleave trials with something else. Raises MissingCapability where the stack
    cannot run, LabError where it cannot be prepared."""
    spec = Experiment([stack if isinstance(stack, Stack) else Stack.parse(stack)], **chosen)
    space = workspace or Workspace.default()
    with _turn(progress), Ledger.open(space) as ledger, ExitStack() as ends:
        runner = ExperimentRunner(Preparation(spec, space, ledger, ends, progress))
        run, (arm,) = runner.ready(), runner.spec.stacks
        runner.prepare([arm])
        for error in runner.preparation.missing.values():
            raise error
        numbers = itertools.count()

        def trial(instrument: bool = True, link: str = "") -> records.Trial:
            if link:
                runner.relink(link)
            return runner.trial(arm, next(numbers), 0, run, instrument)

        yield trial


def _turn(progress: object | None) -> AbstractContextManager[None]:
    """One measurement at a time on a machine."""
    return turn(lambda text: notify(progress, "note", text))


class ExperimentRunner:
    """Carries out what `preparation` specifies, and keeps the record. `out`: by default a new file
    in the workspace's runs/."""

    def __init__(
        self,
        preparation: Preparation,
        out: Path | None = None,
        resume: bool = False,
        schedule: Schedule | None = None,
        floors: JsonMapping | None = None,
    ):
        self.card = host.card()
        # before they are described: the record names the runtime
        self.spec = preparation.spec = replace(
            preparation.spec, stacks=[s.resolved(self.card) for s in preparation.spec.stacks]
        )
        self.preparation, self.resume = preparation, resume
        self.schedule = schedule or self._every_arm
        self.floors = floors or {}
        self.subject: Subject | None = None
        self.plans: dict[str, LaunchPlan] = {}  # of the arms that are prepared and can run
        created = datetime.now(timezone.utc)
        self.id = created.strftime("%Y%m%dT%H%M%S%f")[:-3]
        self.out = out or preparation.space.runs / f"{self.id}.json"
        self.created = created.isoformat(timespec="seconds")

    def run(self) -> records.Run:
        run = self.ready()
        records.write(run, self.out)
        return self._blocks(run)

    def ready(self) -> records.Run:
        """What all arms have in common, off the clock: the record that trials are added to."""
        preparation, run = self.preparation, self._resumed()
        preparation.refuse(self.card)
        subject = preparation.subject()
        run = self._of_this_image(run, subject)
        self.subject = preparation.serve(subject)
        floors = run.floors or dict(self.floors)
        if not floors:
            preparation.note("measuring this host's floors")
            floors = rates.measure(preparation.space)
        return replace(run, floors=floors)

    def prepare(self, stacks: Iterable[Stack]) -> None:
        """What each of these arms needs, off the clock, unless it was made before. `ready` comes
        first."""
        assert self.subject
        for stack in stacks:
            if stack.name not in self.plans:
                plan = self.preparation.plan(stack, self.subject)
                if plan:
                    self.plans[stack.name] = plan

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

        digest = ""
        if subject.image_layout:
            layout = Layout(subject.image_layout)
            digest = layout.manifest(subject.image_reference).digest
        before = run.experiment["conditions"].get("image_digest", "")  # "": no arm had one
        now = replace(
            run,
            experiment={
                **run.experiment,
                "conditions": {**run.experiment["conditions"], "image_digest": digest or before},
            },
        )
        if digest and before:
            question.refuse_mixing(run, now, self.out)
        return replace(now, experiment={**now.experiment, "reference": self.preparation.reference})

    def relink(self, link: str) -> None:
        """Another emulated link for the trials to come."""
        if self.preparation.served is None:
            raise BadInput(
                "no link to change",
                why=f"on a {self.spec.scenario} nothing comes over one",
                fix="--scenario fresh-node",
            )
        self.preparation.served.set_link(link)
        self.plans = {name: replace(plan, link=link) for name, plan in self.plans.items()}

    def _every_arm(self, block: int, run: records.Run) -> Sequence[str]:
        names = [s.name for s in self.spec.stacks]
        if block == 0:
            done = _done(run)
            each = [(name, n) for n in range(self.spec.blocks) for name in names]
            to_come = [name for name, n in each if (name, n) not in done]
            notify(self.preparation.progress, "plan", to_come)
        return names if block < self.spec.blocks else []

    def _blocks(self, run: records.Run) -> records.Run:
        order, progress = random.Random(self.spec.seed), self.preparation.progress
        done = _done(run)
        by_name = {s.name: s for s in self.spec.stacks}
        for block in itertools.count():
            arms = [by_name[name] for name in self.schedule(block, run)]
            if not arms:
                break
            self.prepare(arm for arm in arms if (arm.name, block) not in done)
            if roots := self.preparation.roots:
                # the stores stand for other machines: their disks are not what is measured
                cold.warm(roots.values())
            order.shuffle(arms)
            again = 0 if beside() else self.spec.again
            for position, stack in enumerate(arms):
                if (stack.name, block) in done:
                    continue
                notify(progress, "trial_started", stack.name, block, self.spec.blocks)
                try:
                    trial = self.trial(stack, block, position, run, self.spec.instrument)
                except KeyboardInterrupt:
                    stopped = records.Trial(stack.name, block, position, outcome="interrupted")
                    records.write(replace(run, trials=(*run.trials, stopped)), self.out)
                    raise
                run = self._recorded(run, trial)
                if trial.ok and trial.disturbed and again:
                    again -= 1
                    notify(progress, "trial_started", stack.name, block, self.spec.blocks)
                    trial = self.trial(stack, block, position, run, self.spec.instrument)
                    run = self._recorded(run, trial)
        if found := trend(run):
            notify(progress, "note", found.words)
        return run

    def _recorded(self, run: records.Run, trial: records.Trial) -> records.Run:
        run = replace(run, trials=(*run.trials, trial))
        records.write(run, self.out)
        notify(self.preparation.progress, "trial_done", trial)
        return run

    def trial(
        self,
        stack: Stack,
        block: int,
        position: int,
        run: records.Run,
        instrument: bool,
    ) -> records.Trial:
        """One trial of an arm, with its floors at the rates of `run`; one that cannot run here says
        why."""
        preparation = self.preparation
        if error := preparation.missing.get(stack.name):
            return records.Trial(
                stack.name, block, position, outcome="unavailable", error=error.as_json()
            )
        plan, progress = self.plans[stack.name], preparation.progress
        trial = run_trial(
            plan,
            arm=stack.name,
            workspace=preparation.space,
            ledger=preparation.ledger,
            block=block,
            order=position,
            options=TrialOptions(
                judge=lambda seen: judge(stack, seen),
                instrument=instrument,
                on_phase=(lambda name, s: notify(progress, "phase", name, s)) if progress else None,
                at_t0=self.spec.at_t0,
                port=self.spec.port,
            ),
        )
        link = parse_link(plan.link)
        begins = {s["name"]: s["start_s"] for s in reversed(trial.spans)}
        floors = floor.phase_floors(plan.floors_bytes, run.floors, link, plan.scenario, begins)
        return replace(trial, floors=floors)


def _done(run: records.Run) -> set[tuple[str, int]]:
    """Arm and block of each trial that is not to be run again."""
    return {(t.arm, t.block) for t in run.trials if t.outcome != "interrupted"}


def _parsed(stack: str | Stack, space: Workspace, spec: Experiment) -> Stack:
    if isinstance(stack, Stack):
        return stack
    if stack.strip() == "best-here":
        from labkit.stack.best_here import best_here

        return best_here(space, spec.scenario, spec.link, spec.preset)
    return Stack.parse(stack)

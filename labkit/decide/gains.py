"""What a technique gained where it was measured: two arms of one run that differ by it alone,
paired within blocks.

    for gain in gains(run):
        gain.technique, gain.arm, gain.against, gain.ratio(("build", "load"))["median"]

A technique alone on the naive stack is one such pair, a rung of the ladder against the rung below
it another: the same technique gains less where a part of its work is already done, and `on` says on
which stack it was added. A study names its pairs itself (`notes.study.steps`), as a rung may bring
what its technique requires of other layers. Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from labkit.core import question, stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.errors import BadInput, LabError
from labkit.study.record import ALONE, NAIVE, RUNG, of_run
from labkit.technique import LAYERS, technique


@dataclass(frozen=True)
class Gain:
    """`arm` has `technique` in `layer`, `against` has not; nothing else was chosen otherwise."""

    run: Run
    technique: str
    layer: str
    arm: str
    against: str

    @property
    def on(self) -> Mapping[str, str]:
        """The stack that the technique was added to."""
        return self.run.arm_named(self.against).get("stack", {})

    @property
    def words(self) -> str:
        return f"{self.technique} ÷ {self.on.get(self.layer) or 'none'} in run {self.run.id}"

    def ratio(self, phases: Sequence[str]) -> JsonObject | None:
        """`stats.paired_ratio` over these phases; None where no block holds both. Time moved into
        other phases counts against a technique, so a whole-start difference is set over the phases
        of `against`."""
        ours = {t.block: t for t in reversed(self.run.of_arm(self.arm)) if t.total_s}
        pairs = []
        for theirs in self.run.of_arm(self.against):
            base = sum(theirs.phases.get(p, 0.0) for p in phases)
            mine = ours.pop(theirs.block, None)
            if mine and theirs.total_s and base > 0:
                pairs.append((max(base + mine.first_token_s - theirs.first_token_s, 0.0), base))
        try:
            return stats.paired_ratio(pairs) if pairs else None
        except LabError:
            return None


def gains(run: Run) -> list[Gain]:
    """Every pair of arms of a run that differ in one technique, and those that its study names."""
    stacks = {a["name"]: a["stack"] for a in run.arms}
    found = [
        Gain(run, stack[layer], layer, arm, against)
        for arm, stack in stacks.items()
        for against, base in stacks.items()
        for layer in _changed(stack, base)
        if stack.get(layer) and len(_changed(stack, base)) == 1
    ]
    found += [g for g in _of_steps(run, stacks) if g not in found]
    return [g for g in found if not question.not_from_one_start(run, g.arm, g.against)]


def _of_steps(run: Run, stacks: Mapping[str, Mapping[str, str]]) -> Iterator[Gain]:
    """Each rung against the one below it, each technique alone against naive."""
    try:
        steps = of_run(run).steps
    except BadInput:
        return
    naive = below = next((s.arm for s in steps if s.kind == NAIVE), "")
    for step in steps:
        if step.kind not in (RUNG, ALONE) or step.arm not in stacks:
            continue
        against = below if step.kind == RUNG else naive
        below = step.arm if step.kind == RUNG else below
        if against not in stacks or against == step.arm:
            continue
        try:
            added = technique(step.technique)
        except BadInput:  # several at once, or one that this version does not know
            continue
        allowed = {added.layer, "process", *added.requires_layers}
        if set(_changed(stacks[step.arm], stacks[against])) <= allowed:
            yield Gain(run, step.technique, added.layer, step.arm, against)


def _changed(one: Mapping[str, str], other: Mapping[str, str]) -> list[str]:
    return [layer for layer in LAYERS if (one.get(layer) or "") != (other.get(layer) or "")]

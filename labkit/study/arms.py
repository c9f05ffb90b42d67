"""Which arms a study has on a host: naive, the article's ladder, each technique alone, challengers.

    chosen = planned(host.card(), device="cpu")
    chosen.steps, chosen.stacks["estargz-lazy + safetensors"], chosen.left_out

A rung keeps the rungs before it that can run here and exchanges one layer; the first of a layer is
at once its technique alone. What cannot run here keeps its step, with the reason in `left_out`.
Challengers are the ladder's end with the other image technique: on a fast link a whole pull out of
an object store may beat a lazy mount. Lesson: notebooks/08_stacking."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from labkit.core.json_types import JsonObject
from labkit.stack.ablate import ladder, named, put
from labkit.stack.compose import Stack
from labkit.stack.placement import not_on
from labkit.study.record import ALONE, CHALLENGER, NAIVE, RUNG, Step
from labkit.technique import technique

#: Alone on the naive stack, in the order in which time is given to them; the image's techniques are
#: alone on their rungs.
ALONE_TOO = ("criu-container", "safetensors", "labkit-streamer", "runai-streamer")
#: Exchanged in at the ladder's end.
OTHER_IMAGE = "object-pull"


@dataclass(frozen=True)
class Arms:
    """`steps`: every row, in the ladder's order; `stacks`: of those that can run here, by arm;
    `left_out`: why the others cannot, by arm."""

    steps: tuple[Step, ...]
    stacks: dict[str, Stack]
    left_out: dict[str, str]

    def of_kind(self, *kinds: str) -> list[str]:
        """Arms that can run here, of these kinds, in order."""
        found = dict.fromkeys(s.arm for s in self.steps if s.kind in kinds)
        return [arm for arm in found if arm in self.stacks]

    def kind_of(self, arm: str) -> str:
        return next(s.kind for s in self.steps if s.arm == arm)


def planned(card: JsonObject, device: str = "cpu", store: str = "") -> Arms:
    """The study's arms on the host of this card, its servers on `device`, weights out of `store`
    where one is given."""
    steps, stacks, left_out = [], {}, {}
    for step, stack in _every(card, device, store):
        steps.append(step)
        if why := lacking(stack, card, device, store):
            left_out[step.arm] = why
        else:
            stacks[step.arm] = stack
    return Arms(tuple(steps), stacks, left_out)


def _every(card: JsonObject, device: str, store: str) -> Iterator[tuple[Step, Stack]]:
    naive = top = Stack.parse("naive")
    yield Step("naive", "", naive.name, NAIVE), naive
    rungs = []
    for name in on_a_fresh_node():
        rung = named(put(top, name))
        yield Step(technique(name).step, name, rung.name, RUNG), rung
        rungs.append(rung)
        if not lacking(rung, card, device, store):
            top = rung
    for name in ALONE_TOO:
        alone = named(put(naive, name))
        if alone.name not in (r.name for r in rungs):  # without an image technique it is a rung
            yield Step(technique(name).step, name, alone.name, ALONE), alone
    for name, rung in list(zip(on_a_fresh_node(), rungs, strict=True))[-2:]:
        other = named(put(rung, OTHER_IMAGE))
        if other.name != rung.name:
            label = f"{technique(name).step}, {technique(OTHER_IMAGE).step}"
            yield Step(label, name, other.name, CHALLENGER), other


def on_a_fresh_node() -> list[str]:
    """The ladder's techniques, but for those that need the host's own interpreter: nothing of it is
    on a fresh node."""
    return [n for n in ladder() if technique(n).requires_layers.get("image") != "host-env"]


def lacking(stack: Stack, card: JsonObject, device: str, store: str = "") -> str:
    """Why a stack cannot run here, with what would change it; "" where it can."""
    for layer, name in stack.layers.items():
        if name and (away := not_on(device, layer)):
            return f"{name}: {away}"
    moved = stack.layers.get("snapshot") or (
        stack.layers["image"] if stack.layers["image"].startswith("object-pull") else ""
    )
    if store and moved:
        return f"{moved}: what it moves is counted by the lab's own stores, not by {store}"
    found = stack.available(card)
    return "" if found.ok else found.missing + (f" ({found.fix})" if found.fix else "")

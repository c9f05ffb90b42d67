"""Ablation: which techniques add up, which overlap.

Arms of one experiment, so that every difference is paired within a block:
  add-one    each technique alone on the naive stack; beside an init technique also each format with
             naive's initialisation
  ladder     the article's order, one more each rung
  drop-one   each technique taken out of the best stack
  factorial  every combination, where there are few

    run = ablate(kinds=("add-one", "ladder"), scenario="fresh-node", link="1gbit", blocks=3)
    for row in effects(run): print(row.arm, row.ratio["median"], row.saved_s)
    predict(run, "ladder-3")      # sum of separate gains and critical path against the measured

Percentages of separate gains are never multiplied: `predict` shows how wrong that would be. Lesson:
notebooks/08_stacking."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from labkit.core import question, stats
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.stack.compose import Stack
from labkit.stack.placement import not_on, place
from labkit.technique import LAYERS, replaced_layers, technique, techniques
from labkit.weights.catalog import LOADERS

KINDS = ("add-one", "drop-one", "ladder", "factorial")
RUNG = "ladder: "  # how the name of a ladder's arm begins

#: Which layer's technique decides a phase's length; a phase not named here belongs to the server
#: and stays as it was.
PHASE_OWNER = {
    "pull": "image",
    "unpack": "image",
    "mount": "image",
    "start": "image",
    "import": "image",
    "build": "weights",
    "load": "weights",
    "context": "device",
    "warmup": "device",
    "restore": "snapshot",
}


@dataclass(frozen=True)
class Effect:
    """One arm against the base, paired within blocks. saved_s: medians' difference in seconds,
    positive = faster."""

    arm: str
    stack: Mapping[str, str]
    ratio: JsonMapping
    saved_s: float
    phases: Mapping[str, float] = field(default_factory=dict)
    n: int = 0
    failed: int = 0
    missing: str = ""


def ladder() -> list[str]:
    """The article's order: image pull, then model load, then start itself."""
    return [t.name for t in sorted(techniques(), key=lambda t: t.rung) if t.rung]


def candidates(
    host: JsonObject,
    layers: Iterable[str] = LAYERS,
    scenario: str = "fresh-node",
    only: Sequence[str] = (),
    device: str = "",
) -> tuple[list[str], dict[str, str]]:
    """Techniques that can run here and differ from naive, and those that cannot with the reason.
    `device`: of the servers, by default what `placement` chooses.

    `only` keeps the named ones; an unknown one raises BadInput. `container` alternatives of the
    process layer are not techniques against cold start."""
    for name in only:
        technique(name)  # a misspelt one would leave nothing to compare
    base = Stack.parse("naive").resolved(host)
    device = place((), device).device
    here, missing = [], {}
    for t in techniques():
        if (
            t.layer not in layers
            or t.name in (*base.layers.values(), base.initialisation())
            or t.name in ("host-env", "runc", "userns", "process")
        ):
            continue
        if only and t.name not in only:
            continue
        if scenario in t.excluded_scenarios:
            missing[t.name] = f"means nothing on a {scenario}"
            continue
        if scenario == "fresh-node" and t.requires_layers.get("image") == "host-env":
            missing[t.name] = (
                "uses the host's own interpreter and libraries, and on a fresh node nothing of the"
                " stack is there (--scenario warm-node)"
            )
            continue
        if away := not_on(device, t.layer):
            missing[t.name] = away
            continue
        found = t.available(host)
        if found.ok:
            here.append(t.name)
        else:
            missing[t.name] = f"{found.missing} ({found.fix})" if found.fix else found.missing
    return here, missing


def put(stack: Stack, name: str, label: str = "") -> Stack:
    """`stack` with one technique exchanged. What it requires of other layers
    (`requires_layers`) comes along."""
    found = technique(name)
    layers = {**stack.layers, **found.requires_layers, found.layer: name}
    return Stack(label or name, layers)


def named(stack: Stack) -> Stack:
    """The stack, called after what differs from naive. What a snapshot replaces is naive's again:
    it is not at work."""
    naive, layers = Stack.parse("naive").layers, dict(stack.layers)
    if snapshot := layers.get("snapshot"):
        found = technique(snapshot)
        for layer in set(found.replaces_layers) - set(found.requires_layers):
            layers[layer] = naive.get(layer, "")
    parts = [layers[n] for n in LAYERS if n != "process" and layers.get(n, "") != naive.get(n, "")]
    return Stack(" + ".join(parts) or "naive", layers)


def arms(
    kinds: Sequence[str], names: Sequence[str], best: Stack | None = None, most: int = 64
) -> list[Stack]:
    """Stacks of the requested kinds over the techniques `names`, the naive one first, none twice.
    Raises BadInput for an unknown kind."""
    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise BadInput(f"no ablation called {unknown[0]!r}", fix="any of: " + ", ".join(KINDS))
    naive = Stack.parse("naive")
    stacks = [naive]
    if "add-one" in kinds:
        stacks += [put(naive, n) for n in names]
        stacks += apart_from_initialisation(naive, names)
    if "ladder" in kinds:
        rung, on = naive, [n for n in ladder() if n in names]
        snapshots = [n for n in on if technique(n).layer == "snapshot"]
        for n in (n for n in on if n not in snapshots[1:]):
            rung = named(put(rung, n))
            stacks.append(Stack(RUNG + rung.name, rung.layers))
    if "drop-one" in kinds:
        if best is None:
            raise BadInput(
                "drop-one needs a best stack",
                why="it takes one technique at a time out of it",
                fix="labkit ablate --search first, or --best STACK",
            )
        stacks.append(Stack("best", dict(best.layers)))
        for layer in LAYERS:
            if best.layers.get(layer, "") != naive.layers.get(layer, ""):
                without = {**best.layers, layer: naive.layers.get(layer, "")}
                stacks.append(Stack(f"best without {best.layers[layer]}", without))
    if "factorial" in kinds:
        by_layer: dict[str, list[str]] = {}
        for n in names:
            layer = technique(n).layer
            by_layer.setdefault(layer, [naive.layers.get(layer, "")]).append(n)
        count = math.prod(map(len, by_layer.values()))
        if count > most:
            raise BadInput(
                f"the full factorial has {count} arms",
                why=f"more than {most} would not finish in a sitting",
                fix="--only TECHNIQUE,… or --kinds add-one,ladder",
            )
        for combination in itertools.product(*by_layer.values()):
            if all(
                v == options[0] for v, options in zip(combination, by_layer.values(), strict=True)
            ):
                continue
            stack = naive
            for name in combination:
                if name and technique(name).name not in stack.layers.values():
                    stack = put(stack, name)
            label = " + ".join(v for v in combination if v and v not in naive.layers.values())
            stacks.append(Stack(label, stack.layers))
    return distinct(stacks)


def apart_from_initialisation(base: Stack, names: Sequence[str]) -> list[Stack]:
    """Where an init technique is among `names`: each format's plain loader with the model built as
    `base` builds it, so that a format is not credited with what its loader's initialisation
    saves."""
    if not any(technique(n).layer == "init" for n in names):
        return []
    init = base.initialisation()
    return [
        Stack(f"init={init},weights={n}", {**base.layers, "init": init, "weights": n})
        for n in names
        if n in LOADERS and LOADERS[n].format == n and LOADERS[n].init != init
    ]


def distinct(stacks: Iterable[Stack]) -> list[Stack]:
    """The first of each combination; a snapshot makes the loader moot, so two that differ only
    there are one arm, and so are two of which one names the initialisation that its loader does
    anyway."""
    seen, kept = set(), []
    for s in stacks:
        moot = replaced_layers(s.layers.get("snapshot"))
        layers = {**s.layers, "init": s.initialisation()}
        key = tuple((k, v) for k, v in sorted(layers.items()) if k not in moot)
        if key not in seen:
            seen.add(key)
            kept.append(s)
    return kept


def effects(run: Run, against: str = "naive") -> list[Effect]:
    """Every arm of a run against one of them, in the run's order."""
    base = {t.block: t for t in run.of_arm(against)}
    found = []
    for arm in run.arms:
        name, stack = arm["name"], arm["stack"]
        every, good = run.of_arm(name, only_ok=False), run.of_arm(name)
        pairs = [(t.first_token_s, base[t.block].first_token_s) for t in good if t.block in base]
        apart = question.not_from_one_start(run, name, against) if pairs else ""
        if not pairs or apart:
            reasons = [apart] if apart else sorted({t.error.get("what", t.outcome) for t in every})
            missing = "; ".join(reasons) or "not run"
            found.append(Effect(name, stack, {}, 0.0, failed=len(every), missing=missing))
            continue
        before_s = stats.median([t.first_token_s for t in base.values()])
        saved_s = before_s - stats.median([t.first_token_s for t in good])
        ratio, failed = stats.paired_ratio(pairs), len(every) - len(good)
        found.append(Effect(name, stack, ratio, saved_s, phases(good), len(good), failed))
    return found


def phases(trials: Sequence[Trial]) -> dict[str, float]:
    names = {p for t in trials for p in t.phases}
    return {p: stats.median([t.phases.get(p, 0.0) for t in trials]) for p in names}


@dataclass(frozen=True)
class Prediction:
    """Seconds to first token of a combined arm. sum_s: naive minus each technique's separate gain;
    path_s: phases put together from the arms that own them (the critical-path model); measured_s:
    what really happened."""

    arm: str
    sum_s: float
    path_s: float
    measured_s: float

    @property
    def sum_error(self) -> float:
        return self.sum_s / self.measured_s - 1

    @property
    def path_error(self) -> float:
        return self.path_s / self.measured_s - 1


def predict(run: Run, arm: str) -> Prediction | None:
    """Predicted against measured for one arm made of techniques that were also measured alone; None
    where one was not."""
    by_name = {e.arm: e for e in effects(run) if not e.missing}
    target, naive = by_name.get(arm), by_name.get("naive")
    if not target or not naive:
        return None
    parts = {
        layer: name
        for layer, name in target.stack.items()
        if name != naive.stack.get(layer) and name in by_name
    }
    changed = [layer for layer, name in target.stack.items() if name != naive.stack.get(layer)]
    if not parts or len(parts) < len([c for c in changed if c != "process"]):
        return None
    naive_s = sum(naive.phases.values())
    sum_s = naive_s - sum(by_name[name].saved_s for name in parts.values())
    path = dict(naive.phases)
    owner = {**PHASE_OWNER, "build": "init"} if "init" in parts else PHASE_OWNER
    for layer, name in parts.items():
        alone = by_name[name].phases
        for phase in set(path) | set(alone):
            if owner.get(phase) == layer:
                path[phase] = alone.get(phase, 0.0)
    if "snapshot" in parts:
        restored = by_name[parts["snapshot"]].phases
        # the restored process still starts from the image that the image technique brings
        brought = ("pull", "unpack", "mount") if "image" in parts else ()
        path = {
            p: path.get(p, 0.0) if p in brought else restored.get(p, 0.0)
            for p in {*path, *restored}
        }
    measured = stats.median([t.first_token_s for t in run.of_arm(arm)])
    return Prediction(arm, max(sum_s, 0.0), sum(path.values()), measured)

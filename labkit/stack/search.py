"""`best-here` is found, not declared: a search over what this host allows, on measured trials, that
says how sure it is.

Three rounds, each one experiment in randomised blocks: (1) every technique alone on naive, few
blocks; (2) the best of each layer put together, each runner-up exchanged in, and whatever made no
clear difference alone – reading weights ahead gains nothing while a whole pull fills the link, and
seconds beside a lazy mount; (3) the two leaders against naive with more blocks. The result names
its probability of being the best of the leaders (paired bootstrap) – where the leaders are inside
the noise it says so and takes the simpler one.

    found = search(SearchOptions(scenario="fresh-node", link="1gbit", preset="small"))
    found.stack, found.confidence, found.runs

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from labkit.core import host, records, stats
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError, MissingCapability
from labkit.stack.ablate import candidates, distinct, effects, put
from labkit.stack.best_here import Found, key_of, save
from labkit.stack.compose import Stack
from labkit.stack.experiment import experiment
from labkit.technique import LAYERS, replaced_layers, technique

#: Of few blocks, a ratio this near to 1 tells no gain from a loss.
UNCLEAR = 0.15


@dataclass(frozen=True, kw_only=True)
class SearchOptions:
    """Where the best stack is looked for. `only`: the techniques tried, all by default; `blocks`:
    of the three rounds; `device`: as for `labkit.stack.experiment`."""

    scenario: str = "fresh-node"
    link: str = "loopback"
    preset: str = "small"
    device: str = ""
    only: tuple[str, ...] = ()
    blocks: tuple[int, int, int] = (2, 2, 5)
    seed: int = 0


def search(
    options: SearchOptions,
    *,
    workspace: Workspace | None = None,
    progress: object | None = None,
) -> Found:
    """Search and save the result for `best-here`. Raises MissingCapability when nothing but naive
    can run here."""
    space = workspace or Workspace.default()
    scenario, link, preset = options.scenario, options.link, options.preset
    names, missing = candidates(
        host.card(), scenario=scenario, only=options.only, device=options.device
    )
    if not names:
        raise MissingCapability(
            "nothing but the naive stack can run here",
            why="; ".join(f"{k}: {v}" for k, v in missing.items()),
            fix="labkit doctor",
        )
    naive = Stack.parse("naive")
    files: list[str] = []

    def round_of(stacks: Sequence[Stack]) -> records.Run:
        """The next round: these beside naive."""
        number = len(files)
        out = space.runs / f"search-{key_of(scenario, link, preset)}-round-{number + 1}.json"
        files.append(str(out))
        return experiment(
            [naive, *stacks],
            preset=preset,
            scenario=scenario,
            link=link,
            device=options.device,
            blocks=options.blocks[number],
            seed=options.seed + number,
            out=out,
            overwrite=True,
            workspace=space,
            progress=progress,
        )

    alone = [put(naive, name) for name in names]
    first = round_of(alone)
    together = distinct(combined(first, names))
    second = round_of(together)
    pool = [*_measured(first, alone), *_measured(second, together)]
    leaders = distinct([stack for _, stack in sorted(pool, key=lambda pair: pair[0])])[:2]
    if not leaders:
        raise LabError(
            "no technique passed a trial",
            why="the records of the rounds say what happened",
            fix=f"labkit show {space.runs}",
        )
    winner = verdict(round_of(leaders), leaders)
    found = Found(*winner, runs=tuple(files), tried=len(names) + len(together), missing=missing)
    save(found, space, scenario, link, preset)
    return found


def _measured(run: records.Run, stacks: Sequence[Stack]) -> list[tuple[float, Stack]]:
    """Those of the stacks that the run has an effect of, each with its median ratio to naive."""
    ratios = {e.arm: e.ratio["median"] for e in effects(run) if not e.missing and e.arm != "naive"}
    return [(ratios[s.name], s) for s in stacks if s.name in ratios]


def combined(run: records.Run, names: list[str]) -> list[Stack]:
    """From the separate effects: the best of each layer together; with each layer's runner-up
    exchanged in; and with each technique whose separate effect is unclear, as that says nothing of
    what it does beside the others."""
    gains: dict[str, list[tuple[float, str]]] = {}
    alone = {e.arm: e.ratio["median"] for e in effects(run) if e.arm in names and not e.missing}
    for name, ratio in alone.items():
        if ratio < 1:
            gains.setdefault(technique(name).layer, []).append((ratio, name))
    ranked = {layer: [n for _, n in sorted(options)] for layer, options in gains.items()}
    winners = {layer: options[0] for layer, options in ranked.items()}

    def assemble(chosen: dict[str, str]) -> Stack:
        moot = replaced_layers(chosen.get("snapshot"))
        stack = Stack.parse("naive")
        for layer in LAYERS:
            if layer in chosen and layer not in moot:
                stack = put(stack, chosen[layer])
        # A technique that another one brought its own companion for is not in the stack, nor in its
        # name.
        return Stack(
            " + ".join(
                chosen[layer]
                for layer in LAYERS
                if chosen.get(layer) and stack.layers.get(layer) == chosen[layer]
            ),
            stack.layers,
        )

    without_snapshot = {k: v for k, v in winners.items() if k != "snapshot"}
    choices = [winners, without_snapshot]
    for layer, options in ranked.items():
        beside = winners if layer == "snapshot" else without_snapshot
        choices += [{**beside, layer: runner_up} for runner_up in options[1:2]]
    if without_snapshot:
        unclear = [name for name, ratio in alone.items() if abs(ratio - 1) <= UNCLEAR]
        layers = {name: technique(name).layer for name in unclear}
        choices += [{**without_snapshot, v: k} for k, v in layers.items() if v != "snapshot"]
    return [s for s in map(assemble, filter(None, choices)) if _means_something(s)]


def _means_something(stack: Stack) -> bool:
    try:
        stack.refuse_nonsense()
    except BadInput:
        return False
    return True


def verdict(run: records.Run, leaders: list[Stack]) -> tuple[Stack, float, JsonObject, str]:
    """The faster leader, how sure, its ratio against naive, and the other's name."""
    times = {s.name: {t.block: t.first_token_s for t in run.of_arm(s.name)} for s in leaders}
    times = {k: v for k, v in times.items() if v}
    if not times:
        raise LabError(
            "no leader passed the last round", fix="labkit show on the record of the round"
        )
    ranked = sorted(times, key=lambda n: stats.median(times[n].values()))
    best, other = ranked[0], ranked[1] if len(ranked) > 1 else ""
    shared = [b for b in times[best] if b in times[other]] if other else []
    pairs = [(times[best][b], times[other][b]) for b in shared]
    confidence = stats.sureness(pairs) if pairs else 1.0
    ratio = next(e.ratio for e in effects(run) if e.arm == best)
    return next(s for s in leaders if s.name == best), confidence, dict(ratio), other

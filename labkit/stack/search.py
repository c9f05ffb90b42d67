"""`best-here` is found, not declared: a search over what this host allows, on measured trials, that
says how sure it is.

Three rounds, each one experiment in randomised blocks: (1) every technique alone on naive, few
blocks; (2) the best of each layer put together, each runner-up exchanged in, and whatever made no
clear difference alone – reading weights ahead gains nothing while a whole pull fills the link, and
seconds beside a lazy mount; (3) the two leaders against naive with more blocks. The result names
its probability of being the best of the leaders (paired bootstrap) – where the leaders are inside
the noise it says so and takes the simpler one.

    found = search(scenario="fresh-node", link="1gbit", preset="small")
    found.stack, found.confidence, found.runs

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from labkit.core import host, records, stats
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError, MissingCapability
from labkit.stack.ablate import candidates, distinct, effects, put
from labkit.stack.best_here import Found, key_of, save
from labkit.stack.compose import Stack
from labkit.stack.experiment import experiment
from labkit.technique import LAYERS, technique

#: Of few blocks, a ratio this near to 1 tells no gain from a loss.
UNCLEAR = 0.15


def search(
    *,
    scenario: str = "fresh-node",
    link: str = "loopback",
    preset: str = "small",
    workspace: Workspace | None = None,
    progress: Any = None,
    only: tuple[str, ...] = (),
    blocks: tuple[int, int, int] = (2, 2, 5),
    seed: int = 0,
    device: str = "",
) -> Found:
    """Search and save the result for `best-here`. Raises MissingCapability when nothing but naive
    can run here."""
    space = workspace or Workspace.default()
    names, missing = candidates(host.card(), scenario=scenario, only=only, device=device)
    if not names:
        raise MissingCapability(
            "nothing but the naive stack can run here",
            why="; ".join(f"{k}: {v}" for k, v in missing.items()),
            fix="labkit doctor",
        )
    options: dict[str, Any] = {
        "preset": preset,
        "scenario": scenario,
        "link": link,
        "workspace": space,
        "progress": progress,
        "device": device,
    }
    naive = Stack.parse("naive")
    first = experiment(
        [naive, *(put(naive, n) for n in names)],
        blocks=blocks[0],
        seed=seed,
        out=_file(space, "round-1", options),
        overwrite=True,
        **options,
    )
    second_arms = distinct(combined(first, names))
    second = experiment(
        [naive, *second_arms],
        blocks=blocks[1],
        seed=seed + 1,
        out=_file(space, "round-2", options),
        overwrite=True,
        **options,
    )
    pool = [
        (e.ratio["median"], s)
        for r, arms in ((first, [put(naive, n) for n in names]), (second, second_arms))
        for e in effects(r)
        for s in arms
        if e.arm == s.name and not e.missing and e.arm != "naive"
    ]
    pool.sort(key=lambda pair: pair[0])
    leaders = distinct([s for _, s in pool])[:2]
    if not leaders:
        raise LabError(
            "no technique came through a trial",
            why="the records of the rounds say what happened",
            fix=f"labkit show {space.runs}",
        )
    last = experiment(
        [naive, *leaders],
        blocks=blocks[2],
        seed=seed + 2,
        out=_file(space, "round-3", options),
        overwrite=True,
        **options,
    )
    found = verdict(last, leaders, seed)
    made = Found(
        found[0],
        found[1],
        found[2],
        found[3],
        tuple(str(_file(space, f"round-{i}", options)) for i in (1, 2, 3)),
        len(names) + len(second_arms),
        missing,
    )
    save(made, space, scenario, link, preset)
    return made


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
        moot = technique(chosen["snapshot"]).replaces_layers if "snapshot" in chosen else ()
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
    made = [assemble(winners)] if winners else []
    if without_snapshot:
        made.append(assemble(without_snapshot))
    for layer, options in ranked.items():
        made += [
            assemble({**(without_snapshot if layer != "snapshot" else winners), layer: other})
            for other in options[1:2]
        ]
    if without_snapshot:
        made += [
            assemble({**without_snapshot, technique(n).layer: n})
            for n, ratio in alone.items()
            if abs(ratio - 1) <= UNCLEAR and technique(n).layer != "snapshot"
        ]
    return [s for s in made if _means_something(s)]


def _means_something(stack: Stack) -> bool:
    try:
        stack.refuse_nonsense()
    except BadInput:
        return False
    return True


def verdict(
    run: records.Run, leaders: list[Stack], seed: int
) -> tuple[Stack, float, dict[str, Any], str]:
    """The faster leader, how sure, its ratio against naive, and the other's name."""
    times = {s.name: [t.first_token_s for t in run.of_arm(s.name)] for s in leaders}
    times = {k: v for k, v in times.items() if v}
    if not times:
        raise LabError(
            "no leader passed the last round", fix="labkit show on the record of the round"
        )
    ranked = sorted(times, key=lambda n: stats.median(times[n]))
    best, other = ranked[0], ranked[1] if len(ranked) > 1 else ""
    confidence = 1.0
    if other:
        draw = random.Random(seed)
        wins = sum(
            stats.median(draw.choices(times[best], k=len(times[best])))
            <= stats.median(draw.choices(times[other], k=len(times[other])))
            for _ in range(2000)
        )
        confidence = wins / 2000
    ratio = next(e.ratio for e in effects(run) if e.arm == best)
    return next(s for s in leaders if s.name == best), confidence, dict(ratio), other


def _file(space: Workspace, name: str, options: dict[str, Any]) -> Path:
    return (
        space.runs
        / f"search-{key_of(options['scenario'], options['link'], options['preset'])}-{name}.json"
    )

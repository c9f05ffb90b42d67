"""`best-here`: the stack that a search found on this host, kept for one scenario, link and preset.

    best_here(space, "warm-node", "loopback", "small").layers

Limit: it holds for the kind of host that it was found on; on another it is not known.
Lesson: notebooks/08_stacking."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core import host
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.stack.compose import Stack


@dataclass(frozen=True)
class Found:
    stack: Stack
    confidence: float  # share of bootstrap resamples in which it is the fastest of the last round
    ratio: JsonObject  # paired against naive
    runner_up: str = ""
    runs: tuple[str, ...] = ()  # record files of the rounds
    tried: int = 0
    missing: dict[str, str] = field(default_factory=dict)


def key_of(scenario: str, link: str, preset: str) -> str:
    return f"{scenario}-{link}-{preset}".replace("/", "_")


def _saved(space: Workspace, scenario: str, link: str, preset: str) -> Path:
    return space.artifacts / f"best-here-{key_of(scenario, link, preset)}.json"


def save(found: Found, space: Workspace, scenario: str, link: str, preset: str) -> None:
    _saved(space, scenario, link, preset).write_text(
        json.dumps(
            {
                "host": host.card()["id"],
                "name": found.stack.name,
                "layers": dict(found.stack.layers),
                "confidence": found.confidence,
                "ratio": found.ratio,
                "runner_up": found.runner_up,
                "runs": found.runs,
                "tried": found.tried,
            },
            indent=1,
        )
    )


def best_here(space: Workspace, scenario: str, link: str, preset: str) -> Stack:
    """What the search found on this host for this scenario and link. Raises BadInput where no
    search has run."""
    path = _saved(space, scenario, link, preset)
    try:
        doc = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        doc = {}
    layers = (
        doc.get("layers")
        if isinstance(doc, dict) and doc.get("host") == host.card()["id"]
        else None
    )
    if not isinstance(layers, dict) or not all(
        isinstance(k, str) and isinstance(v, str) for k, v in layers.items()
    ):
        raise BadInput(
            f"best-here is not known for {scenario} on {link} with {preset}",
            why="it is found by measuring, on this host, not declared",
            fix=f"labkit ablate --search --scenario {scenario} --link {link} --preset {preset}",
        )
    return Stack("best-here", layers)

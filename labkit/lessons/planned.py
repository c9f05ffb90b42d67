"""What a notebook will measure, read from its cells before anything runs.

    planned(path, {"blocks": 2})     # (Planned(arms=("naive",), chosen={"preset": "small",
        "blocks": 2, …}, parameters={"blocks": "blocks", …}, unknown=()),)

Each call of `experiment` is one: its arms and options where they are literals, or names that only
the parameters cell assigns. An option that is computed is unknown, and so is the whole notebook
(`None`) where a cell is no plain Python, hands `experiment` on, or measures by another function of
the lab. Limit: a function of the reader's own module is not looked into. Lesson: none; see
docs/ci.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonObject
from labkit.errors import LabError
from labkit.lessons import canonical

MEASURES = "experiment"
#: Modules whose functions measure on their caller's behalf.
MEASURING = ("labkit.byo", "labkit.decide.measure", "labkit.stack.search", "labkit.viz.stack_bench")
#: Options of an experiment that make it another question, or give it its number of trials.
OPTIONS = (
    "preset",
    "blocks",
    "scenario",
    "link",
    "device",
    "timeout_s",
    "max_tokens",
    "model_dir",
    "store",
    "image_extra_bytes",
    "server_args",
    "at_t0",
    "instrument",
)


@dataclass(frozen=True)
class Planned:
    """One call of `experiment`. `arms`: None where they are computed. `chosen`: options whose value
    is known, those not given at their default left out. `parameters`: option -> the notebook's
    parameter that it comes from. `unknown`: options that are computed."""

    arms: tuple[str, ...] | None
    chosen: JsonObject = field(default_factory=dict)
    parameters: dict[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()


def planned(path: Path, values: JsonObject) -> tuple[Planned, ...] | None:
    """The calls in a notebook whose parameters are set to `values`; None where they cannot be
    read."""
    doc = canonical.load(path)
    known = {**canonical.parameters(doc), **values}
    try:
        trees = [ast.parse(source) for source in sources(doc)]
    except (SyntaxError, ValueError):
        return None
    nodes = [node for tree in trees for node in ast.walk(tree)]
    called = [node for node in nodes if isinstance(node, ast.Call) and _named(node.func)]
    if len(called) < sum(map(_named, nodes)) or any(map(_elsewhere, nodes)):
        return None
    fixed = {name: value for name, value in known.items() if name not in set(_assigned(nodes))}
    return tuple(_call(node, fixed) for node in called)


def sources(doc: JsonObject) -> Iterator[str]:
    """Code cells, but for the one of the parameters."""
    for cell in doc["cells"]:
        if cell["cell_type"] == "code" and "parameters" not in cell["metadata"].get("tags", []):
            yield cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])


def _named(node: ast.AST) -> bool:
    return MEASURES in (getattr(node, "attr", ""), getattr(node, "id", ""))


def _elsewhere(node: ast.AST) -> bool:
    """Whether a node imports what measures by itself, or `experiment` under another name."""
    if not isinstance(node, (ast.Import, ast.ImportFrom)):
        return False
    module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
    return any(
        f"{module}{alias.name}.".startswith(tuple(f"{name}." for name in MEASURING))
        or (alias.name == MEASURES and alias.asname)
        for alias in node.names
    )


def _assigned(nodes: list[ast.AST]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, (ast.Global, ast.Nonlocal)):
            yield from node.names


def _call(call: ast.Call, known: JsonObject) -> Planned:
    chosen: JsonObject = {}
    parameters: dict[str, str] = {}
    unknown = [] if all(keyword.arg for keyword in call.keywords) else list(OPTIONS)
    for keyword in call.keywords:
        name = keyword.arg or ""
        if name not in OPTIONS:
            continue
        try:
            chosen[name] = _value(keyword.value, known)
        except ValueError:
            unknown.append(name)
        if isinstance(keyword.value, ast.Name) and name in chosen:
            parameters[name] = keyword.value.id
    stacks = [*call.args[:1], *(k.value for k in call.keywords if k.arg == "stacks")]
    return Planned(_arms(stacks, known), chosen, parameters, tuple(unknown))


def _arms(stacks: list[ast.expr], known: JsonObject) -> tuple[str, ...] | None:
    """Names of the stacks; None where they are computed, or what they are depends on the host."""
    from labkit.stack.compose import Stack

    try:
        texts = [str(text) for text in _value(stacks[0], known)]
        return tuple(Stack.parse(text).name for text in texts)
    except (IndexError, TypeError, ValueError, LabError):
        return None


def _value(node: ast.expr, known: JsonObject) -> Any:
    """Raises ValueError for what is neither a literal nor a parameter."""
    if isinstance(node, ast.Name) and node.id in known:
        return known[node.id]
    return ast.literal_eval(node)

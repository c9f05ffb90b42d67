"""What notebooks take from the lab is there: a name that moved would fail only when somebody runs
them."""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest

NOTEBOOKS = sorted((Path(__file__).resolve().parents[3] / "notebooks").glob("*.ipynb"))


def code_of(path: Path) -> str:
    cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
    lines = "\n".join("".join(c["source"]) for c in cells).split("\n")
    return "\n".join("pass" if line.startswith(("%", "!")) else line for line in lines)


def missing(source: str) -> list[str]:
    """Names that the source imports from labkit, or asks an imported module of labkit for, and that
    are not there."""
    tree, modules, gone = ast.parse(source), {}, []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("labkit"):
            for alias in node.names:
                found = _attribute(importlib.import_module(str(node.module)), alias.name)
                if found is None:
                    gone.append(f"{node.module}.{alias.name}")
                elif isinstance(found, ModuleType):
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            module = modules.get(node.value.id)
            if module is not None and _attribute(module, node.attr) is None:
                gone.append(f"{module.__name__}.{node.attr}")
    return gone


def _attribute(module: ModuleType, name: str) -> object | None:
    if hasattr(module, name):
        return getattr(module, name)
    try:
        return importlib.import_module(f"{module.__name__}.{name}")
    except ModuleNotFoundError:
        return None


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_name_that_a_notebook_takes_from_the_lab_is_there(path):
    assert missing(code_of(path)) == []


def test_a_name_that_is_gone_is_found():
    source = (
        "from labkit.core import stats, nothing\n"
        "from labkit.core.units import show_q\n"
        "stats.mean([1])"
    )
    assert missing(source) == [
        "labkit.core.nothing",
        "labkit.core.units.show_q",
        "labkit.core.stats.mean",
    ]

"""The house stands as STYLE.md says: imports go one way, modules open with what they model, import labkit is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "labkit").rglob("*.py"))

#: Rooms by height. A module may import from its own room and from lower ones; rooms of one height do not know each other,
#: but for the pairs in BESIDE.
HEIGHT = {"errors": 0, "core": 1, "net": 2, "technique": 3, "objects": 4, "subject": 5, "image": 5, "weights": 5, "device": 5, "snapshot": 5,
          "stack": 6, "bench": 7, "decide": 7, "byo": 7, "face": 8, "lessons": 9, "cli": 10}
BESIDE = {
    ("weights", "subject"),  # loaders fill the subject's model; formats are checked against it
    ("snapshot", "device"),  # a CUDA checkpoint inside a CRIU one
    ("snapshot", "image"),  # a container checkpoint is taken through the image's runtime
    ("snapshot", "subject"),
    ("snapshot", "weights"),  # what is dumped was loaded by a loader, from a checkpoint in its format
    ("device", "subject"),
    ("image", "subject"),
    ("bench", "decide"),
    ("bench", "face"),  # labkit.face.live: progress of a bench that takes minutes
    ("face", "lessons"),  # the stack widget replays a recorded run where the host cannot do a technique
}
#: Text output, the types of arguments and the error family are the ground floor's, wherever they are used.
GROUND = {"labkit.cli.output", "labkit.cli.arguments", "labkit.errors"}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path):
    """Names of labkit modules a file imports, anywhere in it, but under TYPE_CHECKING."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("labkit."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("labkit") and not node.level:
            if node.module == "labkit":
                yield from (f"labkit.{a.name}" for a in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = room("labkit." + ".".join(path.relative_to(ROOT / "labkit").with_suffix("").parts))
    if own not in HEIGHT or own in ("__init__", "__main__"):
        return
    for name in imports(path):
        other = room(name)
        if name in GROUND or other not in HEIGHT or other == own:
            continue
        assert HEIGHT[other] < HEIGHT[own] or (own, other) in BESIDE, f"{path.relative_to(ROOT)} imports {name}: {own} may not know {other}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.stat().st_size], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_opens_with_what_it_models(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), f"{path.relative_to(ROOT)} has no docstring"


def test_every_room_has_a_height():
    rooms = {p.relative_to(ROOT / "labkit").parts[0].removesuffix(".py") for p in MODULES} - {"__init__", "__main__"}
    assert rooms <= set(HEIGHT), rooms - set(HEIGHT)


def test_only_the_face_knows_plots_and_widgets():
    for path in MODULES:
        if "face" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for banned in ("matplotlib", "ipywidgets"):
            tree = ast.parse(text)
            names = [a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names] + [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            assert not any(n.split(".")[0] == banned for n in names), f"{path.relative_to(ROOT)} imports {banned}"


def test_importing_labkit_loads_nothing_heavy():
    code = "import sys, labkit; print([m for m in ('torch', 'numpy', 'matplotlib', 'IPython', 'ipywidgets') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_resolves():
    import labkit

    for name in labkit.__all__:
        getattr(labkit, name)


def test_no_room_has_a_name_that_says_nothing():
    assert not [p for p in MODULES if p.stem in ("utils", "util", "helpers", "helper", "common", "misc", "manager", "base")]

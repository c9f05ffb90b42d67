"""The house stands as STYLE.md says: imports go one way, modules open with what they model, import
labkit is light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted((ROOT / "labkit").rglob("*.py"))

#: Rooms from the ground up. A module may import from its own room and from lower ones.
ROOMS = [
    "errors",
    "core",
    "net",
    "technique",
    "formats",
    "objects",
    "subject",
    "image",
    "weights",
    "device",
    "snapshot",
    "stack",
    "study",
    "decide",
    "viz",
    "bench",
    "byo",
    "lessons",
    "cli",
]
HEIGHT = {name: height for height, name in enumerate(ROOMS)}


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


NAMES = {name_of(p) for p in MODULES}


def imports(path: Path):
    """labkit modules that a file imports, anywhere in it, but under TYPE_CHECKING, and for
    `python -m`, which runs another module than the one of that name."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    elsewhere = {
        below
        for node in ast.walk(tree)
        if isinstance(node, ast.If)
        and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'")
        for above in node.body
        for below in ast.walk(above)
    }
    for node in ast.walk(tree):
        if node in elsewhere:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("labkit."))
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "labkit":
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in NAMES else node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path):
    own = room(name_of(path))
    if own not in HEIGHT:
        return
    for name in imports(path):
        other = room(name)
        if other in HEIGHT and other != own:
            assert HEIGHT[other] < HEIGHT[own], (
                f"{path.relative_to(ROOT)} imports {name}: {own} may not know {other}"
            )


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Modules that reach themselves by imports, in their groups."""

    def reached(start: str) -> set[str]:
        found: set[str] = set()
        waiting = [start]
        while waiting:
            new = graph.get(waiting.pop(), set()) - found
            found |= new
            waiting += new
        return found

    reach = {module: reached(module) for module in graph}
    groups = {
        tuple(sorted(other for other in reach[module] if module in reach.get(other, ())))
        for module in graph
        if module in reach[module]
    }
    return [list(group) for group in sorted(groups)]


def test_no_module_imports_itself_on_a_way_around():
    """Imports within functions count, too: a circle that is only postponed is one."""
    graph = {name_of(p): set(imports(p)) - {name_of(p)} for p in MODULES}
    assert circles(graph) == []


def test_a_circle_is_found():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [["b", "c"]]


@pytest.mark.parametrize(
    "path", [p for p in MODULES if p.stat().st_size], ids=lambda p: str(p.relative_to(ROOT))
)
def test_a_module_opens_with_what_it_models(path):
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), (
        f"{path.relative_to(ROOT)} has no docstring"
    )


def test_every_room_has_a_height():
    rooms = {p.relative_to(ROOT / "labkit").parts[0].removesuffix(".py") for p in MODULES} - {
        "__init__",
        "__main__",
    }
    assert rooms <= set(HEIGHT), rooms - set(HEIGHT)


def test_only_the_face_knows_plots_and_widgets():
    for path in MODULES:
        if "viz" in path.parts:
            continue
        text = path.read_text(encoding="utf-8")
        for banned in ("matplotlib", "ipywidgets"):
            tree = ast.parse(text)
            names = [
                a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names
            ] + [n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)]
            assert not any(n.split(".")[0] == banned for n in names), (
                f"{path.relative_to(ROOT)} imports {banned}"
            )


def test_importing_labkit_loads_nothing_heavy():
    code = (
        "import sys, labkit; print([m for m in ('torch', 'numpy', 'matplotlib', 'IPython',"
        " 'ipywidgets') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_public_name_resolves():
    import labkit

    for name in labkit.__all__:
        getattr(labkit, name)


def test_no_room_has_a_name_that_says_nothing():
    assert not [
        p
        for p in MODULES
        if p.stem in ("utils", "util", "helpers", "helper", "common", "misc", "manager", "base")
    ]


#: What a killed run leaves is found by its mark and by its ledger. A file is here with the reason
#: for which it does without.
UNNOTED_NAMES = {
    "labkit/cli/__init__.py": (
        "the traceback of a mistake of the lab: it is left on purpose, and its path said"
    ),
    "labkit/core/beside.py": "the one place that gives and notes such names",
    "labkit/net/fetch.py": (
        "a fetch that was killed is resumed from its .part: it is left on purpose, and the node or"
        " layout it is in is noted"
    ),
    "labkit/image/lazyfs/stats.py": "beside the counters on a node, which is noted",
    "labkit/snapshot/criu_images.py": "in a directory of links on a node, which is noted",
    "labkit/weights/loaders/download.py": (
        "in a trial's server, whose TMPDIR is on its node; importing the ledger there would cost"
        " the measured start"
    ),
    "labkit/weights/loaders/sdk.py": "the same",
}
UNMARKED_STARTS = {
    "labkit/core/ledger.py": "the watchdog must outlive the marked",
    "labkit/device/compile_cache.py": "its environment is os.environ and more",
    "labkit/device/standalone.py": "its environment is made by marked()",
    "labkit/image/runtimes/resident.py": "a server to be: the plan's environment has the mark",
    "labkit/image/runtimes/server.py": "a server of a trial: the plan's environment has the mark",
    "labkit/snapshot/subject_server.py": "marked outside, and not inside of what is dumped",
    "labkit/lessons/execute.py": "its environment is os.environ and more",
    "labkit/net/serving.py": "its environment is os.environ and more",
}


def unnoted_names(tree: ast.AST):
    """Temporary names that a module gives itself: tempfile's (but for files without a name), and
    hidden or half ones beside a target."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "tempfile"
            and node.attr not in ("TemporaryFile", "gettempdir")
        ) or (isinstance(node, ast.ImportFrom) and node.module == "tempfile"):
            yield node.lineno
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("with_name", "with_suffix", "joinpath")
        ):
            said = "".join(ast.unparse(a) for a in node.args)
            if (
                node.func.attr == "with_name" and said.startswith(('".', 'f".', "'.", "f'."))
            ) or any(end in said for end in (".part", ".tmp", ".partial", ".new")):
                yield node.lineno


def unmarked_starts(tree: ast.AST):
    """Processes given an environment that is not seen to carry the mark."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in ("subprocess", "os")
        ):
            for keyword in node.keywords:
                if keyword.arg == "env" and not any(
                    word in ast.unparse(keyword.value) for word in ("os.environ", "marked(")
                ):
                    yield node.lineno


@pytest.mark.parametrize(
    "search,excused",
    [(unnoted_names, UNNOTED_NAMES), (unmarked_starts, UNMARKED_STARTS)],
    ids=["names", "starts"],
)
def test_nothing_is_made_or_started_past_the_ledger(search, excused):
    found = {
        str(p.relative_to(ROOT)): lines
        for p in MODULES
        if (lines := list(search(ast.parse(p.read_text(encoding="utf-8")))))
    }
    assert set(found) - set(excused) == set(), (
        "labkit.core.beside gives noted names, labkit.core.ledger.marked an environment with the"
        " mark"
    )
    assert set(excused) - set(found) - {"labkit/core/beside.py"} == set(), (
        "an excuse that nobody needs any more"
    )


@pytest.mark.parametrize(
    "code",
    [
        "tempfile.mkdtemp()",
        "from tempfile import mkstemp",
        "p.with_name(f'.{p.name}.x')",
        "p.with_name(p.name + '.part')",
        "subprocess.Popen(a, env={})",
    ],
)
def test_the_search_for_what_goes_past_the_ledger_finds_it(code):
    assert [*unnoted_names(ast.parse(code)), *unmarked_starts(ast.parse(code))] == [1]

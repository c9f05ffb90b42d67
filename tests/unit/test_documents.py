"""What a stranger reads is true: links lead somewhere, named files exist, commands are commands."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("[0-9a-z]*.ipynb"))
PAGES = sorted(
    p for p in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "binder").glob("*.md")]
) + [p for p in NOTEBOOKS if ".ipynb_checkpoints" not in p.parts]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
#: A path of this tree, as prose writes it: `docs/LOG.md`, `notebooks/01_anatomy.ipynb`,
#: `tests/support/`.
NAMED = re.compile(
    r"`((?:labkit|notebooks|tests|data|docs|scripts|binder|\.devcontainer)/[\w./-]+)`"
)
COMMAND = re.compile(r"(?:^|`)((?:\.venv/bin/)?labkit [a-z][^`\n#]*)", re.M)
#: What prose says of an outcome, not to be typed.
MADE_BY_A_RUN = ("report/", "site/")


def text_of(page: Path) -> str:
    """The words of a page; of a notebook those of its markdown cells."""
    if page.suffix == ".md":
        return page.read_text(encoding="utf-8")
    return "\n\n".join(
        "".join(c["source"])
        for c in json.loads(page.read_text(encoding="utf-8"))["cells"]
        if c["cell_type"] == "markdown"
    )


def _name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """Headings as a forge links them."""
    return {
        re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        for heading in re.findall(r"^#+ (.+)$", text_of(page), re.M)
    }


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_relative_links_lead_to_a_file_and_its_heading(page):
    dead = []
    for target in LINK.findall(text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, heading = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        if not found.exists() or (
            heading and found.suffix in (".md", ".ipynb") and heading not in anchors(found)
        ):
            dead.append(target)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_files_named_in_prose_exist(page):
    if page.name == "LOG.md":
        return  # it speaks of what was
    missing = [
        name
        for name in NAMED.findall(text_of(page))
        if not (ROOT / name).exists() and "<" not in name and not name.endswith("measured.json")
    ]
    assert not missing


def _commands() -> list[tuple[str, str]]:
    found = []
    for page in PAGES:
        for line in COMMAND.findall(text_of(page)):
            for part in re.split(r"\s*(?:&&|;|\|)\s*(?=labkit )", line.strip()):
                found.append((_name(page), part.removeprefix(".venv/bin/").strip()))
    return sorted(set(found))


@pytest.mark.parametrize(("page", "line"), _commands())
def test_commands_in_prose_are_understood(page, line):
    from labkit import cli
    from labkit.errors import BadInput

    if (
        "…" in line.replace("'transformers serve …'", "")
        or line.endswith("/")
        or page == "docs/LOG.md"
    ):
        pytest.skip("an abbreviation")
    words = shlex.split(line)[1:]
    words = words[: next((i for i, w in enumerate(words) if w in ("&&", "|", ">", ";")), None)]
    if (len(words) == 1 and words[0] in cli.COMMANDS) or (len(words) == 2 and words[1].isupper()):
        return  # the name of a command, not a call
    assert words[0] in cli.COMMANDS, line
    try:
        cli.parser(words[0]).parse_args(words)
    except SystemExit as wrong:  # --help
        assert not wrong.code, line
    except BadInput as wrong:
        assert "the following arguments are required" in wrong.what and len(words) == 2, (
            f"{line}: {wrong}"
        )


def test_targets_of_make_in_prose_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))
    said = {t for page in PAGES for t in re.findall(r"(?:^|`)make ([a-z-]+)", text_of(page), re.M)}
    assert said - targets == set()


def test_each_notebook_stands_alone():
    """It imports what it uses, reads nothing that another notebook left, and says where to go
    next."""
    for page in (p for p in NOTEBOOKS if p.parent.name == "notebooks"):
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        code = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
        assert not re.search(r"%run|%store|nbimporter", code), page.name
        last = "".join(cells[-1]["source"])
        assert LINK.search(last), page.name


def test_the_spelling_is_checked_with_the_style():
    lint = (ROOT / "Makefile").read_text(encoding="utf-8").split("lint:")[1].split("\n\n")[0]
    spelt = (
        next(line for line in lint.splitlines() if "codespell" in line)
        .split("codespell", 1)[1]
        .split()
    )
    done = subprocess.run(
        [sys.executable, "-m", "codespell_lib", *spelt], cwd=ROOT, capture_output=True, text=True
    )
    if "No module named" in done.stderr:
        pytest.skip("codespell is not installed: pip install -e '.[dev]'")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readmes_tree_is_the_tree():
    tree = (ROOT / "README.md").read_text(encoding="utf-8").split("## The tree")[1].split("```")[1]
    labkit = tree.split("labkit/\n")[1].split("\nnotebooks/")[0]
    listed = set(re.findall(r"^  ([a-z_]+(?:/|\.py)) ", labkit, re.M))
    packages = {f"{p.parent.name}/" for p in (ROOT / "labkit").glob("*/__init__.py")}
    assert packages <= listed and all((ROOT / "labkit" / name).exists() for name in listed)
    scripts = re.search(r"^scripts/ +(.*)$", tree, re.M)
    assert scripts and all(p.name in scripts[1] for p in (ROOT / "scripts").iterdir())
    kinds = {p.name for p in (ROOT / "tests").iterdir() if p.is_dir() and p.name[0] != "_"}
    tests = tree.split("\ntests/\n")[1].split("\ndata/")[0]
    assert {kind for kind in kinds if f"{kind}/" not in tests} <= {"support", "fakecuda"}

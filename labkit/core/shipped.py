"""Where what ships with the lab lies: notebooks, recorded runs, and the folder labkit is imported
from.

In a checkout they stand at its top level; a wheel carries copies of them below the package
(`labkit/_lab/`, put there by setup.py). Limit: what is shipped is read only; a reader's copy of the
notebooks is `copy_notebooks`.

    shipped.notebooks() / "01_anatomy.ipynb"
    shipped.recorded()                       # data/recorded

Lesson: none.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from labkit.errors import BadInput

PACKAGE = Path(__file__).resolve().parents[1]
#: What is on sys.path when labkit is imported: the checkout, or site-packages.
IMPORTED_FROM = PACKAGE.parent
#: The folder below the package that a wheel carries.
CARRIED = "_lab"


def checkout() -> Path | None:
    """The checkout that labkit is imported from, None for an installed wheel."""
    return IMPORTED_FROM if (IMPORTED_FROM / "pyproject.toml").is_file() else None


def notebooks() -> Path:
    return _lies("notebooks")


def recorded() -> Path:
    return _lies("data") / "recorded"


def _lies(name: str) -> Path:
    top = checkout()
    return top / name if top else PACKAGE / CARRIED / name


def import_path(more: str = "") -> str:
    """PYTHONPATH for a process that is to import this labkit, `more` (a PYTHONPATH) behind it. A
    package in site-packages is found without one, and that folder is never put in front of the
    standard library."""
    mine = os.fspath(IMPORTED_FROM)
    found = [os.path.abspath(p) for p in more.split(os.pathsep) if p]
    if IMPORTED_FROM.name not in ("site-packages", "dist-packages"):
        found.insert(0, mine)
    return os.pathsep.join(dict.fromkeys(found))


def copy_notebooks(into: str | os.PathLike[str]) -> tuple[list[Path], list[Path]]:
    """The notebooks in a directory of the reader's: (written, left alone because a file of that
    name is there). Raises BadInput where nothing can be written, or no notebook is shipped."""
    # Every process of the lab imports this module; only a command judges arguments.
    from labkit.core.arguments import output_directory

    folder, target = notebooks(), output_directory(into, "labkit lab")
    sources = [p for p in sorted(folder.rglob("*.ipynb")) if ".ipynb_checkpoints" not in p.parts]
    if not sources:
        raise BadInput(f"no notebook in {folder}", fix="install labkit again")
    written, kept = [], []
    for source in sources:
        copy = target / source.relative_to(folder)
        if os.path.lexists(copy):
            kept.append(copy)
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        written.append(copy)
    return written, kept

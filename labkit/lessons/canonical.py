"""The canonical format of a notebook: what may be committed, so that diffs show what was taught,
not what was clicked.

No outputs, no execution counts, no metadata but the lab's own; kernel `python3`; one cell tagged
`parameters` that assigns plain values; at most 15 lines of code in a cell; a title, minutes and a
question; an exercise has its header above and its check below. `--fix` puts right what has one
right answer; the rest is named with file, cell and reason.

    problems = look(Path("notebooks/01_anatomy.ipynb"))     # [] when canonical
    fix(path)                                               # True when the file changed

Notebook metadata the lab keeps: labkit.minutes, labkit.question, labkit.presets ({"ci": {parameter:
value}})."""

from __future__ import annotations

import ast
import copy
import json
from dataclasses import dataclass
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

MOST_LINES = 15
TAGS = ("parameters", "predict", "exercise", "hint", "solution", "host")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


@dataclass(frozen=True)
class Problem:
    path: str
    cell: int  # from 1; 0 = the notebook as a whole
    text: str
    fixable: bool = False

    def __str__(self) -> str:
        place = f"cell {self.cell}: " if self.cell else ""
        return f"{self.path}: {place}{self.text}" + ("  (--fix)" if self.fixable else "")


def load(path: Path) -> JsonObject:
    """The notebook as a document. Raises BadInput for what is no notebook of format 4."""
    try:
        doc = json.loads(path.read_text(encoding="utf-8"))
        if doc["nbformat"] != 4 or not isinstance(doc["cells"], list):
            raise KeyError("nbformat 4 with cells")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(
            f"{path} is not a notebook: {error}", fix="give a .ipynb file of format 4"
        ) from None
    for cell in doc["cells"]:
        if isinstance(cell.get("source"), list):
            cell["source"] = "".join(cell["source"])
    return doc


def canonical(doc: JsonObject) -> JsonObject:
    """A copy with everything that has one right form in that form. Same cells, same text."""
    fixed = copy.deepcopy(doc)
    lab = fixed.get("metadata", {}).get("labkit", {})
    fixed["metadata"] = {
        "kernelspec": dict(KERNEL),
        "labkit": lab,
        "language_info": {"name": "python"},
    }
    fixed["nbformat_minor"] = 5
    seen: set[str] = set()
    for i, cell in enumerate(fixed["cells"]):
        kept = cell.get("metadata", {})
        cell["metadata"] = {
            k: sorted(set(kept[k])) if k == "tags" else kept[k]
            for k in ("labkit", "tags")
            if kept.get(k)
        }
        if not cell.get("id") or cell["id"] in seen:
            cell["id"] = f"cell-{i + 1:02d}"
        seen.add(cell["id"])
        cell["source"] = (
            "\n".join(line.rstrip() for line in cell["source"].split("\n")).strip("\n")
            if cell["cell_type"] == "code"
            else cell["source"].strip("\n")
        )
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
        else:
            cell.pop("outputs", None)
            cell.pop("execution_count", None)
        if not cell.get("attachments"):
            cell.pop("attachments", None)
    for i, cell in enumerate(fixed["cells"]):
        name = _exercise_id(cell)
        header = _header(name) if name else ""
        above = fixed["cells"][i - 1] if i else None
        if header and above and above["cell_type"] == "markdown":
            above["source"] = _with_header(above["source"], header)
    return fixed


def _with_header(text: str, header: str) -> str:
    """The header stands above the task, which is the last paragraph; one that its author put
    elsewhere below a heading stays there."""
    paragraphs = list(text.split("\n\n"))
    at = next((n for n, p in enumerate(paragraphs) if p.startswith("**Exercise:")), None)
    if at is not None:
        misplaced = at == 0 and any(p.startswith("#") for p in paragraphs[1:])
        rest = paragraphs[at].split("\n")[1:]
        if not misplaced:
            paragraphs[at] = "\n".join([header, *rest])
            return "\n\n".join(paragraphs)
        paragraphs[at : at + 1] = ["\n".join(rest)] if rest else []
    paragraphs.insert(max(len(paragraphs) - 1, 0), header)
    return "\n\n".join(paragraphs)


def dumps(doc: JsonObject) -> str:
    """As nbformat writes it: sources as lists of lines, sorted keys, one space of indent."""
    written = copy.deepcopy(doc)
    for cell in written["cells"]:
        cell["source"] = cell["source"].splitlines(keepends=True)
    return json.dumps(written, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def fix(path: Path) -> bool:
    """Rewrite in canonical form; True when the file changed."""
    text = dumps(canonical(load(path)))
    if path.read_text(encoding="utf-8") == text:
        return False
    path.write_text(text, encoding="utf-8")
    return True


def look(path: Path) -> list[Problem]:
    """Everything that keeps a notebook from being canonical."""
    doc, name = load(path), str(path)
    problems: list[Problem] = []
    if path.read_text(encoding="utf-8") != dumps(canonical(doc)):
        problems += [Problem(name, i, text, True) for i, text in _differences(doc)] or [
            Problem(name, 0, "not in canonical form", True)
        ]
    cells = doc["cells"]
    if not cells or cells[0]["cell_type"] != "markdown" or not cells[0]["source"].startswith("# "):
        problems.append(
            Problem(name, 1, "the first cell is the title: markdown beginning with '# '")
        )
    lab = doc["metadata"].get("labkit", {})
    code = [(i, c) for i, c in enumerate(cells, 1) if c["cell_type"] == "code"]
    for key in ("minutes", "question"):
        if not lab.get(key):
            problems.append(Problem(name, 0, f"metadata labkit.{key} is missing"))
    if code:
        problems += _parameters(name, code, lab)
    for i, cell in code:
        lines = sum(1 for line in cell["source"].split("\n") if line.strip())
        if lines > MOST_LINES:
            problems.append(
                Problem(
                    name,
                    i,
                    f"{lines} lines of code; at most {MOST_LINES}: move the mechanism into labkit",
                )
            )
        problems += _cell(name, i, cell, cells)
    return problems


def _differences(doc: JsonObject) -> list[tuple[int, str]]:
    """What differs, cell by cell, in words; used only to explain."""
    fixed = canonical(doc)
    found: list[tuple[int, str]] = []
    for i, (was, now) in enumerate(zip(doc["cells"], fixed["cells"], strict=True), 1):
        if was.get("outputs"):
            found.append((i, "has outputs"))
        if was.get("execution_count") is not None:
            found.append((i, "has an execution count"))
        if was.get("metadata", {}) != now["metadata"]:
            found.append((i, "has metadata beyond tags and labkit"))
        if was["source"] != now["source"]:
            found.append(
                (
                    i,
                    (
                        "its exercise header is out of step"
                        if was["cell_type"] == "markdown" and "**Exercise:" in now["source"]
                        else "has stray white space"
                    ),
                )
            )
        if was.get("id") != now["id"]:
            found.append((i, "has no id of its own"))
    if doc.get("metadata") != fixed["metadata"]:
        found.append((0, "metadata is not the lab's (kernelspec python3, labkit, language_info)"))
    return found


def _parameters(name: str, code: list[tuple[int, JsonObject]], lab: JsonObject) -> list[Problem]:
    tagged = [(i, c) for i, c in code if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        return [Problem(name, 0, f"{len(tagged)} cells tagged `parameters`; exactly one")]
    try:
        known = parameters({"cells": [tagged[0][1]]})
    except BadInput as error:
        return [Problem(name, tagged[0][0], error.what)]
    unknown = sorted({k for preset in lab.get("presets", {}).values() for k in preset} - set(known))
    return (
        [Problem(name, 0, f"preset names parameters that do not exist: {', '.join(unknown)}")]
        if unknown
        else []
    )


def _cell(name: str, i: int, cell: JsonObject, cells: list[JsonObject]) -> list[Problem]:
    problems = []
    try:
        ast.parse(
            "\n".join(
                line
                for line in cell["source"].split("\n")
                if not line.lstrip().startswith(("%", "!"))
            )
        )
    except SyntaxError as error:
        problems.append(Problem(name, i, f"does not parse: {error.msg}, line {error.lineno}"))
    unknown = sorted(set(cell["metadata"].get("tags", [])) - set(TAGS))
    if unknown:
        problems.append(
            Problem(name, i, f"unknown tag {', '.join(unknown)}; tags are {', '.join(TAGS)}")
        )
    exercise_id = _exercise_id(cell)
    if "exercise" in cell["metadata"].get("tags", []) and not exercise_id:
        problems.append(Problem(name, i, "tagged `exercise` without metadata labkit.exercise"))
    if exercise_id:
        if not _header(exercise_id):
            problems.append(
                Problem(
                    name,
                    i,
                    f"names exercise {exercise_id!r}, which labkit.lessons.exercises does not hold",
                )
            )
        elif i < 2 or cells[i - 2]["cell_type"] != "markdown":
            problems.append(Problem(name, i, "an exercise needs its text in a markdown cell above"))
        if not any(f'check("{exercise_id}"' in c["source"] for c in cells[i:]):
            problems.append(Problem(name, i, f'no later cell calls check("{exercise_id}", …)'))
    return problems


def _exercise_id(cell: JsonObject) -> str:
    return str(cell.get("metadata", {}).get("labkit", {}).get("exercise", ""))


def _header(name: str) -> str:
    from labkit.lessons.check import exercise

    try:
        return exercise(name).header
    except BadInput:
        return ""


def parameters(doc: JsonObject) -> JsonObject:
    """Names and default values of the parameters cell. Parsed here, as papermill's own parser loses
    defaults that hold a "=".

    Raises BadInput where a line is not `name = literal`."""
    cell = next(
        (c for c in doc["cells"] if "parameters" in c.get("metadata", {}).get("tags", [])), None
    )
    if cell is None:
        return {}
    source = cell["source"] if isinstance(cell["source"], str) else "".join(cell["source"])
    values: JsonObject = {}
    for node in ast.parse(source).body:
        targets: list[ast.expr] = []
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AnnAssign):
            targets = [node.target]
        target = targets[0] if len(targets) == 1 else None
        if not isinstance(target, ast.Name):
            raise BadInput(
                f"line {node.lineno} of the parameters cell is not `name = value`",
                fix="move it into a cell of its own",
            )
        try:
            values[target.id] = ast.literal_eval(node.value) if node.value is not None else None  # type: ignore[attr-defined]
        except ValueError:
            raise BadInput(
                f"the parameter {target.id} is not a plain value", fix="compute it in a later cell"
            ) from None
    return values

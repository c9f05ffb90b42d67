"""Parameters of a notebook, as they are injected: the preset's values, then those given, each of
the type of the notebook's own default.

    parameters_for(Path("notebooks/01_anatomy.ipynb"), "ci", {"blocks": "3"})

Unknown names are an error before anything runs; papermill would warn and run with the defaults.
Lesson: none; see STYLE.md, Notebooks."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from labkit.core.json_types import JsonMapping, JsonObject
from labkit.errors import BadInput
from labkit.lessons import canonical


def parse_parameter(text: str) -> tuple[str, str]:
    """`k=v`; the value may hold further "=". Raises BadInput."""
    name, equals, value = text.partition("=")
    if not equals or not name.strip().isidentifier():
        raise BadInput(f"not a parameter: {text!r}", fix="-p blocks=3")
    return name.strip(), value


def presets(path: Path) -> JsonObject:
    return dict(canonical.load(path)["metadata"].get("labkit", {}).get("presets", {}))


def reads_a_study(path: Path) -> bool:
    """Whether the notebook takes a study's record in place of measuring."""
    return "study" in canonical.parameters(canonical.load(path))


def refuse_nothing(paths: Sequence[Path], preset: str) -> None:
    """Raises BadInput where there is no notebook, or none of them knows the preset: nothing shown
    must not read as all is well."""
    if not paths:
        raise BadInput(
            "no notebook to run",
            why="with none executed, none has passed",
            fix="labkit notebooks run, from a checkout of the lab",
        )
    known = sorted({name for path in paths for name in presets(path)})
    if preset and preset not in known:
        raise BadInput(
            f"no notebook has a preset {preset!r}",
            why="they would run with their own defaults, for much longer",
            fix="one of: " + (", ".join(known) or "none here"),
        )


def parameters_for(
    path: Path, preset: str, given: JsonMapping, offered: JsonMapping | None = None
) -> JsonObject:
    """What is injected: the preset's values; those `offered` that the notebook has a parameter for
    (a study, which not every notebook reads); then those given, read with the type of the
    notebook's own defaults.

    Raises BadInput for a given name that the notebook does not have, or a value of another kind."""
    doc = canonical.load(path)
    known = canonical.parameters(doc)
    values = dict(presets(path).get(preset, {}))
    values |= {name: value for name, value in (offered or {}).items() if name in known}
    for name, text in given.items():
        if name not in known:
            raise BadInput(
                f"{path.stem} has no parameter {name!r}",
                why="papermill would warn and run with the defaults",
                fix=f"its parameters: {', '.join(known) or 'none'}",
            )
        values[name] = _typed(name, text, known[name])
    return values


def _typed(name: str, text: Any, default: Any) -> Any:
    if not isinstance(text, str) or isinstance(default, str):
        return text
    try:
        value = ast.literal_eval({"true": "True", "false": "False", "null": "None"}.get(text, text))
    except (ValueError, SyntaxError):
        value = text
    fits = (
        default is None
        or isinstance(value, type(default))
        or (isinstance(default, float) and isinstance(value, int))
        or value is None
    )
    if not fits or (
        isinstance(value, bool) and not isinstance(default, bool) and default is not None
    ):
        raise BadInput(
            f"parameter {name} is {text!r}; its default is {default!r}",
            fix=f"give a {type(default).__name__}",
        )
    return value

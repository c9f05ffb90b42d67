"""A size of model and image, as written by a person: the model is a preset or bytes; after a plus,
what is added to the subject's image – unpacked bytes of packages that nobody imports.

    parse_size("tiny+400MB")          # ("tiny", 400_000_000)
    model_dir_of(space, "80MB")       # a checkpoint of that many bytes, made once; "" for a preset

Lesson: notebooks/09_decide."""

from __future__ import annotations

import subprocess

from labkit.core.interpreter import module
from labkit.core.units import parse_bytes
from labkit.core.workspace import Workspace
from labkit.errors import BadInput


def parse_size(text: str) -> tuple[str, int]:
    """`"80MB"` → ("80MB", 0); `"tiny+400MB"` → ("tiny", 400_000_000): model, and bytes added to the
    image. Raises BadInput."""
    from labkit.subject.presets import PRESETS

    model, plus, extra = text.strip().partition("+")
    if model not in PRESETS:
        parse_bytes(model)
    return model, parse_bytes(extra) if plus else 0


def model_dir_of(space: Workspace, model: str) -> str:
    """The directory of a model's checkpoint of so many bytes, made where it is not there yet; "" of
    a preset, which is made by its name. Raises BadInput."""
    from labkit.subject.presets import PRESETS

    if model in PRESETS:
        return ""
    size_bytes = parse_bytes(model)
    target = space.models / f"bytes-{size_bytes}"
    # in a process of its own: torch mapped here would keep its pages warm
    if not (target / "config.json").exists():
        done = subprocess.run(
            [*module("labkit"), "model", "make", "--bytes", str(size_bytes), str(target)],
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise BadInput(
                f"no checkpoint of {size_bytes} bytes",
                why=done.stderr.strip()[-400:],
                fix="labkit model make --bytes 80MB DIR",
            )
    return str(target)

"""The type of `--preset` for argparse; the checkpoints are imported when one is named.

Lesson: none."""

from __future__ import annotations

from labkit.errors import BadInput


def preset(text: str) -> str:
    """The name of a checkpoint."""
    from labkit.subject.presets import PRESETS

    if text not in PRESETS:
        raise BadInput(
            f"no preset {text!r}",
            why="it names the checkpoint that is started",
            fix="one of: " + ", ".join(PRESETS),
        )
    return text

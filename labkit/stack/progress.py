"""Telling a watcher how a run goes on, as far as it wants to know.

    notify(progress, "trial_started", "naive", block, blocks)

Lesson: notebooks/01_anatomy."""

from __future__ import annotations


def notify(progress: object | None, event: str, *args: object) -> None:
    """Call the watcher's method of this name: `plan(arms)` and `replan(arms)` with the arm of each
    trial to come, `note(text)`, `trial_started(arm, block, blocks)`, `phase(name, seconds)` or
    `trial_done(trial)`. One that it has not is passed over."""
    if listener := getattr(progress, event, None):
        listener(*args)

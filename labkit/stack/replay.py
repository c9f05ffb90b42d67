"""Replay: runs recorded on other hosts stand in where this host cannot measure, and every figure of
one says so.

    run = live_or_recorded(lambda: experiment(["weights=runai-streamer"], …), "device-load")
    waterfall(run)          # live, or boxed "replayed from 16 × …, NVIDIA H100"

Records lie in data/recorded/<host>/<name>.json, with their host card inside; those of GPU trials
are read by labkit.lessons.gpu_record. Only a missing capability is replaced: a failed trial, wrong
tokens or missing evidence are this host's own result and stay. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from labkit.core import printable, question, records, shipped
from labkit.core.records import Run
from labkit.errors import BadInput, MissingCapability

ENV = "LABKIT_RECORDED"


def folder() -> Path:
    """The recorded runs that ship with the lab, or where LABKIT_RECORDED says (a workshop pack)."""
    return Path(os.environ.get(ENV) or shipped.recorded())


def of_gpu_trials(path: Path) -> bool:
    """Whether a file says that it is a record of GPU trials (labkit.lessons.gpu_record) and no run,
    by its head; the rest may be damaged."""
    with contextlib.suppress(OSError):
        if path.is_file():
            with open(path, "rb") as file:
                return b'"kind": "gpu-trials"' in file.read(400)
    return False


def names() -> list[str]:
    """Every recorded run as "<host>/<name>"."""
    return sorted(
        str(p.relative_to(folder()).with_suffix(""))
        for p in folder().glob("*/*.json")
        if not of_gpu_trials(p)
    )


def replay(name: str) -> Run:
    """A recorded run, marked as one: "<host>/<name>", or "<name>" of the first host that has it.
    Raises BadInput with what there is."""
    found = [n for n in names() if n == name or n.split("/", 1)[1] == name]
    if not found:
        raise BadInput(
            f"no recorded run {name!r}",
            fix="one of: " + (", ".join(names()) or f"none in {folder()}"),
        )
    run = printable.every(records.read(folder() / f"{found[0]}.json"))
    return marked(run, found[0].split("/", 1)[0])


def marked(run: Run, host: str = "") -> Run:
    """The run, with the stamp that figures, captions and comparisons show."""
    return replace(
        run,
        experiment={
            **run.experiment,
            "replayed_from": str(
                run.host.get("title") or run.host.get("name") or host or run.host.get("id")
            ),
        },
    )


def live_or_recorded(
    measure: Callable[[], Run], recorded: str, say: Callable[[str], object] = print
) -> Run:
    """Measure here; where a capability is missing, replay, and say what was missing and what would
    change it."""
    run: Run | None = None
    try:
        run = measure()
    except MissingCapability as missing:
        reason = missing
    else:
        gone = [t for t in run.trials if t.outcome == "unavailable"]
        if len(gone) < len(run.trials):
            return run
        reason = MissingCapability(
            gone[0].error.get("what", "not available here"),
            gone[0].error.get("why", ""),
            gone[0].error.get("fix", ""),
        )
    stand_in = replay(recorded)
    say(
        f"Not measured here: {reason.what}."
        + (f" To change that: {reason.fix}" if reason.fix else "")
        + f"\nWhat follows was recorded on: {stand_in.experiment['replayed_from']}."
        + _otherwise(run, stand_in)
    )
    return stand_in


def _otherwise(wanted: Run | None, stand_in: Run) -> str:
    """What was asked for here and is not what was recorded there, in a sentence; "" where all is
    the same, or nobody knows what was asked."""
    if wanted is None:
        return ""
    common = [n for n in wanted.arm_names if n in stand_in.arm_names]
    different = dict.fromkeys(
        d
        for n in common
        for d in question.differences(
            question.conditions_of(wanted, n), question.conditions_of(stand_in, n), but=("host",)
        ).different
    )
    return f"\nAsked for here against recorded there: {'; '.join(different)}." if different else ""


def beside(run: Run, recorded: Sequence[str]) -> list[Run]:
    """A live run and recorded ones, each marked: to be shown one under the other, never compared as
    if they were one host's."""
    return [run, *(replay(name) for name in recorded)]

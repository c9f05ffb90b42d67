"""Syllabi as data: which notebooks, in which order, with minutes that come from the notebooks
themselves.

    schedule([Part("00_start_here", "must"), Pause(10), Part("01_anatomy", "must", "sections 1 and
        4", minutes=25)], start="09:00")

Minutes of a whole notebook are its own (metadata `labkit.minutes`, the time a learner takes), and
never fewer than its machine took; a part of one names its minutes here. Slack is added to every
part, as somebody's machine always needs a second try. What the machine takes is measured, on the
host named in the file:

    labkit notebooks run --save-seconds notebooks/syllabi/measured.json                  at the
        defaults, as a learner runs them
    labkit notebooks run --preset report --save-seconds notebooks/syllabi/measured.json      at the
        size of a page for people; `--preset ci`: at the smallest

Lesson: notebooks/syllabi.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core import printable, record_schema, shipped
from labkit.core.json_types import JsonObject
from labkit.errors import BadInput

if TYPE_CHECKING:
    from labkit.lessons.execute import Result
    from labkit.viz.table import Table

RANKS = ("must", "should", "could")


@dataclass(frozen=True)
class SyllabusPart:
    """A notebook, or some sections of one. rank: must (the goal depends on it), should, could
    (first to be left out)."""

    notebook: str
    rank: str
    contents: str = "all of it"
    minutes: int | None = None


@dataclass(frozen=True)
class Pause:
    minutes: int
    contents: str = "break"


@dataclass(frozen=True)
class Talk:
    """Something without a notebook: a welcome, a discussion."""

    contents: str
    minutes: int
    rank: str = "must"


def folder() -> Path:
    return shipped.notebooks()


def minutes_of(notebook: str) -> int:
    """The learner's minutes from the notebook's metadata. Raises BadInput for one that is not
    there."""
    from labkit.lessons import canonical

    path = folder() / f"{notebook}.ipynb"
    if not path.exists():
        raise BadInput(
            f"no notebook {notebook!r}",
            fix="one of: " + ", ".join(sorted(p.stem for p in folder().glob("*.ipynb"))),
        )
    return int(canonical.load(path)["metadata"]["labkit"]["minutes"])


DEFAULTS = "defaults"


def measured() -> JsonObject:
    """{"host", "seconds": {preset: {notebook: s}}} of what was measured last, or {}."""
    return _read(folder() / "syllabi" / "measured.json")


def _read(path: Path) -> JsonObject:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def refuse_overwriting(path: str | Path) -> None:
    """Raises BadInput where the file holds anything but such seconds. Asked before anything
    runs."""
    if os.path.lexists(path):
        doc, fix = (
            record_schema.document(path, "give --save-seconds another name"),
            "give --save-seconds another name, or move the file away",
        )
        try:
            record_schema.shaped(
                {
                    "host": record_schema.text,
                    "seconds": record_schema.mapped(record_schema.mapped(record_schema.time_s)),
                },
                ("host", "seconds"),
            )(doc, "")
        except record_schema.InvalidField as wrong:
            raise BadInput(
                f"{printable.line(path)} holds no seconds of notebooks: {wrong}",
                why="it would be lost",
                fix=fix,
            ) from None


def save_measured(path: str | Path, results: Sequence[Result], preset: str) -> None:
    """Keep the machine's seconds of notebooks that passed; what the file has of others on the
    same host stays."""
    from labkit.core.host import card

    refuse_overwriting(path)
    before, host = _read(Path(path)), card()["title"]
    seconds = before.get("seconds", {}) if before.get("host") == host else {}
    seconds[preset or DEFAULTS] = seconds.get(preset or DEFAULTS, {}) | {
        r.name: round(r.seconds, 1) for r in results if r.outcome == "ok"
    }
    Path(path).write_text(
        json.dumps({"host": host, "seconds": seconds}, indent=1, sort_keys=True) + "\n",
        encoding="utf-8",
    )


def machine_s(notebook: str) -> tuple[float | None, str]:
    """Seconds of a whole notebook and the preset they were measured at: the defaults before a
    report's, and that before a test's. (None, "") where nobody measured."""
    seconds = measured().get("seconds", {})
    for preset in (DEFAULTS, *sorted(seconds, reverse=True)):
        if notebook in seconds.get(preset, {}):
            return seconds[preset][notebook], preset
    return None, ""


def planned(
    parts: Sequence[SyllabusPart | Pause | Talk], slack: float = 0.1
) -> list[tuple[SyllabusPart | Pause | Talk, int]]:
    """Each part with the minutes to plan for it: what a learner takes, at least what the machine
    took; slack on everything but pauses, rounded up to whole minutes."""
    plan = []
    for part in parts:
        if part.minutes is not None:
            base: float = part.minutes
        else:
            base = minutes_of(part.notebook)
            took_s, preset = machine_s(part.notebook)
            base = max(base, took_s / 60) if took_s and preset == DEFAULTS else base
        with_slack = math.ceil(round(base * (1 + slack), 6))
        plan.append((part, part.minutes if isinstance(part, Pause) else with_slack))
    return plan


def total_minutes(parts: Sequence[SyllabusPart | Pause | Talk], slack: float = 0.1) -> int:
    return sum(minutes for _, minutes in planned(parts, slack))


def schedule(
    parts: Sequence[SyllabusPart | Pause | Talk], start: str = "09:00", slack: float = 0.1
) -> Table:
    """The table of a day."""
    from labkit.core.units import show_s
    from labkit.viz.table import Table

    hour, _, minute = start.partition(":")
    at, rows = int(hour) * 60 + int(minute), []
    for part, minutes in planned(parts, slack):
        clock = f"{at // 60:02d}:{at % 60:02d}"
        if isinstance(part, SyllabusPart):
            took_s, preset = machine_s(part.notebook)
            machine = (
                ""
                if took_s is None
                else show_s(took_s) + ("" if preset == DEFAULTS else f" ({preset})")
            )
            rows.append((clock, str(minutes), part.rank, part.notebook, part.contents, machine))
        else:
            rows.append((clock, str(minutes), getattr(part, "rank", ""), "", part.contents, ""))
        at += minutes
    rows.append((f"{at // 60:02d}:{at % 60:02d}", "", "", "", "end", ""))
    host = measured().get("host")
    note = f"Minutes hold {slack:.0%} slack." + (
        " Machine: what the whole notebook took at its defaults, or at the preset named, on"
        f" {host}."
        if host
        else ""
    )
    return Table(("at", "minutes", "rank", "notebook", "what", "machine"), tuple(rows), note)


NINETY = (
    Talk("welcome: what a cold start is, and who waited for one", 8),
    SyllabusPart("00_start_here", "must", "sections 1 and 2", 20),
    SyllabusPart("01_anatomy", "must", "sections 1, 2 and 4", 25),
    SyllabusPart("08_stacking", "must", "section 1, in pairs: guess, run, explain", 15),
    SyllabusPart("08_stacking", "could", "section 3: a fast phase and the whole", 6),
    Talk("what each team does first, and how it will know", 6),
)

HALF_DAY = (
    Talk("welcome: what a cold start is, and who waited for one", 10),
    SyllabusPart("00_start_here", "must"),
    SyllabusPart("01_anatomy", "must", "without section 5", 32),
    Pause(10),
    SyllabusPart("03_lazy_pull", "should", "live part", 30),
    SyllabusPart("05_streaming", "should", "live part", 30),
    Pause(10),
    SyllabusPart("08_stacking", "must", "sections 1 to 4", 35),
    SyllabusPart("09_decide", "could", "with the numbers of one team", 15),
    Talk("what each team does first, and how it will know", 8),
)

ONE_DAY = (
    Talk("welcome: what a cold start is, and who waited for one", 10),
    SyllabusPart("00_start_here", "must"),
    SyllabusPart("01_anatomy", "must"),
    Pause(10),
    SyllabusPart("02_image_pull", "should", "live part", 30),
    SyllabusPart("03_lazy_pull", "must", "live part", 30),
    Pause(60, "lunch"),
    SyllabusPart("04_model_formats", "should", "live part", 30),
    SyllabusPart("05_streaming", "must", "live part", 30),
    Pause(10),
    SyllabusPart("06_gpu_init", "could", "live or replayed", 25),
    SyllabusPart("07_checkpoints", "should", "live part", 30),
    Pause(10),
    SyllabusPart("08_stacking", "must"),
    SyllabusPart("09_decide", "must", "each team its own numbers", 25),
    Talk("what each team does first, and how it will know", 15),
)

SYLLABI = {"90_minutes": (NINETY, 90), "half_day": (HALF_DAY, 220), "one_day": (ONE_DAY, 510)}

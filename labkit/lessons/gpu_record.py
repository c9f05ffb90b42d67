"""Records of GPU trials (`make gpu`): read, chosen, and shown – stamped with the host that they
were made on.

    records = gpu_record.recorded()              # those of the newest recorded GPU host; () where
        there is none
    gpu_checkpoints.parked(records)                   # a table, on any host
    python -m labkit.lessons.gpu_record --into docs/h100.md --figure docs/h100.png      # every
        table as Markdown, and a waterfall

A record holds the last thing that each trial said, also of one that failed, timed out or was
skipped, so nothing in a result is sure to be there: what is missing is "not measured", with the
trial's outcome and reason. Records of two hosts never stand in one table. Limit: some trials are
one look (n is said). Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labkit.core import printable, question, record_schema, records
from labkit.core.json_types import JsonMapping
from labkit.core.record_schema import (
    InvalidField,
    listed,
    mapped,
    maybe,
    number,
    shaped,
    text,
    whole,
)
from labkit.core.records import Run
from labkit.core.units import show_bytes
from labkit.errors import BadInput
from labkit.stack import replay
from labkit.stack.replay import folder, of_gpu_trials

KIND = "gpu-trials"
SCHEMA = 2
MOST_CHARS = 240
_TRIAL = shaped(
    {
        "name": text,
        "outcome": text,
        "seconds": maybe(number("a time", 0, 1e9)),
        "error": text,
        "result": mapped(),
    },
    ("name", "outcome"),
)
_RECORD = shaped(
    {
        "schema": whole("a schema", 1, SCHEMA),
        "kind": text,
        "plan": text,
        "preset": text,
        "created": text,
        "host": mapped(),
        "trials": listed(_TRIAL),
    },
    ("schema", "kind", "host", "trials"),
)


@dataclass(frozen=True)
class Record:
    """`name`: "<host>/<file>". `doc`: as in the file, every string fit to be shown."""

    name: str
    doc: JsonMapping

    @property
    def host(self) -> JsonMapping:
        return self.doc["host"]

    @property
    def title(self) -> str:
        return str(self.host.get("title") or self.host.get("id") or self.name.partition("/")[0])

    @property
    def preset(self) -> str:
        return str(self.doc.get("preset", ""))

    @property
    def plan(self) -> str:
        return str(self.doc.get("plan", ""))

    @property
    def created(self) -> str:
        return str(self.doc.get("created", ""))

    @property
    def trials(self) -> list[JsonMapping]:
        return list(self.doc["trials"])

    def trial(self, name: str) -> JsonMapping:
        """The last trial of this name; one that was not in the plan is "not tried"."""
        return next(
            (t for t in reversed(self.trials) if t["name"] == name),
            {"name": name, "outcome": "not tried"},
        )

    def result(self, name: str) -> JsonMapping:
        found = self.trial(name).get("result")
        return found if isinstance(found, Mapping) else {}


def read(path: Path, name: str = "") -> Record:
    """Raises BadInput for what is none, is damaged, or of a newer schema."""
    shown, fix = printable.line(path), "make gpu on a GPU host makes one"
    doc = record_schema.document(path, fix=fix)
    if not isinstance(doc, dict) or doc.get("kind") != KIND:
        raise BadInput(f"{shown} is no record of GPU trials", fix=fix)
    if isinstance(doc.get("schema"), int) and doc["schema"] > SCHEMA:
        raise BadInput(f"{shown} is of a newer schema than {SCHEMA}", fix="upgrade labkit")
    try:
        record_schema.sound(doc)
        _RECORD(doc, "")
    except InvalidField as wrong:
        raise BadInput(
            f"{shown} is a damaged record of GPU trials: {wrong}",
            why="nothing is read from a record that is not sound",
            fix="restore the file, or make gpu again",
        ) from None
    return Record(name or f"{path.parent.name}/{path.stem}", printable.every(doc, many_lines=True))


def refuse_unsound(path: Path) -> None:
    """Raises BadInput unless a file holds a run or GPU trials that can be shown."""
    if of_gpu_trials(path):
        read(path)
    else:
        records.read(path)


def names() -> list[str]:
    """Every recorded one as "<host>/<name>"."""
    return sorted(
        str(p.relative_to(folder()).with_suffix(""))
        for p in folder().glob("*/*.json")
        if of_gpu_trials(p)
    )


def recorded(host: str = "") -> tuple[Record, ...]:
    """All sound records of a host's folder – by default the one with the newest – oldest first."""
    found = []
    for name in names():
        with contextlib.suppress(BadInput):  # the gallery names what is damaged
            found.append(read(folder() / f"{name}.json", name))
    found.sort(key=lambda r: (r.created, r.name))
    wanted = host or (found[-1].name.partition("/")[0] if found else "")
    return tuple(r for r in found if r.name.partition("/")[0] == wanted)


#: By size, for which of several runs is shown.
PRESETS = ("tiny", "small", "1b", "8b")


def runs(kind: str = "", host: str = "") -> list[Run]:
    """Recorded runs whose servers were on a GPU, of the host whose GPU trials are newest, marked as
    replayed, the largest model last.

    `kind`: only files that begin with it ("stack")."""
    found = recorded(host)
    where = host or (found[-1].name.partition("/")[0] if found else "")
    gpu_runs = []
    for name in replay.names():
        if name.partition("/")[0] == where and name.partition("/")[2].startswith(kind):
            with contextlib.suppress(BadInput):
                run = replay.replay(name)
                if str(question.conditions_of(run).get("device", "")).startswith("cuda") and any(
                    t.ok for t in run.trials
                ):
                    gpu_runs.append(run)
    size = {preset: i for i, preset in enumerate(PRESETS)}
    return sorted(gpu_runs, key=lambda r: size.get(str(r.experiment.get("preset")), -1))


def stamp(of: Sequence[Record]) -> str:
    """What stands on everything shown of them; "" without one."""
    return f"replayed from {of[-1].title}" if of else ""


# ---- what may be missing -------------------------------------------------------------------------


def number_at(doc: object, *path: object) -> float | None:
    """The finite number at a path of keys and indices, or None."""
    value = at(doc, *path)
    return (
        float(value)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        else None
    )


def at(doc: Any, *path: object) -> Any:
    for step in path:
        if isinstance(doc, Mapping):
            doc = doc.get(step)
        elif isinstance(doc, list) and isinstance(step, int) and -len(doc) <= step < len(doc):
            doc = doc[step]
        else:
            return None
    return doc


def items(doc: object, *path: object) -> list[JsonMapping]:
    """The objects in the list at a path."""
    found = at(doc, *path)
    return [x for x in found if isinstance(x, Mapping)] if isinstance(found, list) else []


def numbers(rows: Sequence[object], *path: object) -> list[float]:
    return [n for n in (number_at(row, *path) for row in rows) if n is not None]


def words(value: object, most: int = MOST_CHARS) -> str:
    """As one line, short."""
    line = printable.line(" ".join(str(value).split()))
    return line if len(line) <= most else line[: most - 1] + "…"


def reason(trial: JsonMapping, most: int = MOST_CHARS) -> str:
    """Why there is no more of a trial: outcome, and what it said at the end."""
    error = str(trial.get("error") or "")
    lines = [line for line in error.splitlines() if line.strip()]
    last = error
    if len(error) > most:
        last = lines[-1] if lines else ""
    # what stands behind it is where it was interrupted
    if trial["outcome"] == "timeout" and error.startswith("it did not end within"):
        last = error.partition(". ")[0] + (
            "; what it had measured is kept" if trial.get("result") else ""
        )
    return words(f"{trial['outcome']}: {last}" if last else trial["outcome"], most)


def each(of: Sequence[Record], name: str) -> Iterator[tuple[Record, JsonMapping]]:
    """Results of a trial in every record that has any."""
    for record in of:
        if found := record.result(name):
            yield record, found


def gaps(of: Sequence[Record], name: str) -> list[tuple[str, str]]:
    """(model, reason) of every record in which a trial left nothing."""
    return [(record.preset, reason(record.trial(name))) for record in of if not record.result(name)]


def model_bytes(of: Sequence[Record]) -> dict[str, float]:
    """Bytes of each preset's weights, as its checkpoint was of."""
    return {
        record.preset: size
        for record, found in each(of, "model")
        if (size := number_at(found, "safetensors", "bytes")) is not None
    }


def model_words(of: Sequence[Record]) -> str:
    return ", ".join(f"{preset}: {show_bytes(size)}" for preset, size in model_bytes(of).items())


if __name__ == "__main__":  # another module than this one, so no circle
    from labkit.lessons.gpu_page import main

    sys.exit(main())

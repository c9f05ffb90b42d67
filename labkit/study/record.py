"""A study's record: a directory of ordinary run records, so that every tool that reads one reads
these.

    ladder.json        one run: naive, each technique of the article alone, the ladder, challengers
    size-NAME.json     naive again, at another size of model and image: what a plan is fitted from

Which arm stands for which step of the article is in the run itself (`experiment.notes.study`):

    {"steps": [{"label": "lazy pull", "technique": "estargz-lazy", "arm": "estargz-lazy",
                "kind": "rung"}, …], "minutes": 12.0, "left_out": {"safetensors": "…"}}

Lesson: notebooks/08_stacking."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from labkit.core import host, records
from labkit.core.json_types import JsonObject
from labkit.core.records import Run, Trial
from labkit.core.workspace import Workspace
from labkit.errors import BadInput, LabError
from labkit.stack import replay

LADDER = "ladder.json"
NAIVE, ALONE, RUNG, CHALLENGER = "naive", "alone", "rung", "challenger"
KINDS = (NAIVE, ALONE, RUNG, CHALLENGER)


@dataclass(frozen=True)
class Step:
    """One row of the study. `label`: the article's word for it; `technique`: what is added here
    ("" of naive); `arm`: its arm in the run; `kind`: one of KINDS. A rung of the ladder keeps all
    rungs before it that can run here; the first rung is at once its technique alone."""

    label: str
    technique: str
    arm: str
    kind: str


@dataclass(frozen=True)
class Study:
    """`run`: the ladder, five blocks or more; `sizes`: naive at other sizes, one run each."""

    run: Run
    sizes: tuple[Run, ...] = ()
    path: Path | None = None
    notes: JsonObject = field(default_factory=dict)

    @property
    def steps(self) -> tuple[Step, ...]:
        return tuple(Step(**step) for step in self.notes.get("steps", ()))

    @property
    def rungs(self) -> tuple[Step, ...]:
        """Naive, then the article's ladder from the bottom up."""
        return tuple(s for s in self.steps if s.kind in (NAIVE, RUNG))

    @property
    def naive(self) -> str:
        """The arm that stands for the article's starting point."""
        return next((s.arm for s in self.steps if s.kind == NAIVE), "naive")

    @property
    def failed(self) -> list[Trial]:
        """Trials that failed; of an arm that cannot run here, none did."""
        return [t for t in self.run.failed if t.outcome != "unavailable"]

    @property
    def left_out(self) -> dict[str, str]:
        """Arms that were not given five blocks, each with the reason."""
        return dict(self.notes.get("left_out", {}))

    @property
    def runs(self) -> tuple[Run, ...]:
        """What a forecast of naive is fitted from: the ladder's size, then the others."""
        return (self.run, *self.sizes)


def of_run(run: Run, sizes: tuple[Run, ...] = (), path: Path | None = None) -> Study:
    """Raises BadInput for a run that is no study's."""
    notes = run.experiment.get("notes") or {}
    study = notes.get("study") if isinstance(notes, dict) else None
    if not isinstance(study, dict):
        raise BadInput(
            f"run {run.id} is no study's",
            why="it does not say which arm stands for which step of the article",
            fix="labkit study makes one",
        )
    return Study(run, sizes, path, study)


def read(path: str | Path) -> Study:
    """A study's directory. Raises BadInput for one that is none, or a record that is not sound."""
    folder = Path(path)
    if not (folder / LADDER).is_file():
        raise BadInput(
            f"{folder} holds no {LADDER}",
            why="a study is a directory with that record in it",
            fix=f"labkit study --out {folder}",
        )
    sizes = tuple(records.read(p) for p in sorted(folder.glob("size-*.json")))
    return of_run(records.read(folder / LADDER), sizes, folder)


def recorded() -> dict[str, Study]:
    """The studies that ship with the lab, by host: data/recorded/<host>/study/, each run marked as
    recorded elsewhere. One that cannot be read is left out."""
    found = {}
    for ladder in sorted(replay.folder().glob(f"*/study/{LADDER}")):
        host_name = ladder.parent.parent.name
        with contextlib.suppress(LabError):
            study = read(ladder.parent)
            sizes = tuple(replay.marked(run, host_name) for run in study.sizes)
            found[host_name] = replace(study, run=replay.marked(study.run, host_name), sizes=sizes)
    return found


def latest(workspace: Workspace | None = None) -> Study | None:
    """The newest study of this host in the workspace's runs/, or None."""
    space, here = workspace or Workspace.default(), host.card()["id"]
    for ladder in sorted(space.runs.glob(f"study-*/{LADDER}"), reverse=True):
        try:
            found = read(ladder.parent)
        except LabError:
            continue
        if found.run.host.get("id") == here and found.run.trials:
            return found
    return None

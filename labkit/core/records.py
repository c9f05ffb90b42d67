"""Records: measurement as data. One run = one JSON file, written after every trial, raw points
only.

File format history
  1  first: run{schema, id, created, lab_version, host, experiment, floors, trials[]}
     since 2026-11-27 also experiment.conditions: everything that was chosen for the run
         (labkit.core.question)
     since 2026-11-28 also trials[].disturbed, and a disturbed trial may be repeated in its block:
         `Run.of_arm` counts one of them. Of an older trial it is judged as it is read

A record is immutable once written but for trials appended to it (`--resume`), and none is written
over another unasked (`refuse_overwriting`). What is read is sound (labkit.core.record_schema), or
refused with the place of what is not. Readers refuse a newer schema. Records that ask different
questions refuse comparison (labkit.core.question). Lesson: notebooks/01_anatomy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import labkit
from labkit.core import disturbance, printable, record_list, record_schema, secrets
from labkit.core.beside import replacing
from labkit.core.json_types import JsonObject
from labkit.core.record_schema import OUTCOMES as OUTCOMES
from labkit.errors import BadInput

SCHEMA = 1


@dataclass(frozen=True)
class Trial:
    """One cold start. Seconds on CLOCK_MONOTONIC relative to t0 (the request that found zero
    replicas)."""

    arm: str
    block: int
    order: int  # position within the block
    outcome: str = "ok"
    total_s: float | None = None  # t0 to first token at the client
    phases: dict[str, float] = field(default_factory=dict)
    unaccounted_s: float | None = None
    # name, start_s, end_s, source, detail; relative to t0
    spans: list[JsonObject] = field(default_factory=list)
    # state, method, files, total_bytes, resident_bytes
    cache: JsonObject = field(default_factory=dict)
    evidence: list[JsonObject] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)  # phase -> seconds
    tokens: list[int] = field(default_factory=list)
    samples: JsonObject = field(default_factory=dict)
    disturbed: str = ""  # by other work on the machine: the reason with its figures
    facts: JsonObject = field(default_factory=dict)
    error: dict[str, str] = field(default_factory=dict)
    log_tail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"

    @property
    def place(self) -> str:
        """Which trial it is, for people: "naive, block 2"."""
        return f"{self.arm}, block {self.block + 1}"

    @property
    def failure(self) -> str:
        """What became of it, in a line: "naive, block 2: timeout – no token within 300 s"."""
        what = self.error.get("what")
        return f"{self.place}: {self.outcome}" + (f" – {what}" if what else "")

    @property
    def first_token_s(self) -> float:
        """`total_s` of a trial that reached its first token. Raises BadInput for one that did
        not."""
        if self.total_s is None:
            raise BadInput(f"a trial of {self.arm} has no first token: {self.outcome}")
        return self.total_s


@dataclass(frozen=True)
class Run:
    """arms: [{"name", "stack": {layer: technique}, "scenario", "link"}]; floors:
    {"disk_read_bytes_per_s": …}."""

    id: str
    created: str  # ISO 8601, UTC
    host: JsonObject = field(default_factory=dict)
    # arms, blocks, seed, preset, conditions (labkit.core.question)
    experiment: JsonObject = field(default_factory=dict)
    floors: JsonObject = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    lab_version: str = labkit.__version__
    schema: int = SCHEMA

    def of_arm(self, arm: str, only_ok: bool = True) -> list[Trial]:
        """The trials of an arm that count: of those of one block that succeeded, a disturbed one
        only where none is undisturbed, and then the first. `only_ok=False`: those that failed,
        too."""
        mine = [t for t in self.trials if t.arm == arm]
        quiet = {t.block for t in mine if t.ok and not t.disturbed}
        counted: list[Trial] = []
        for t in mine:
            if t.ok and t.disturbed:
                if t.block in quiet:
                    continue
                quiet.add(t.block)
            if t.ok or not only_ok:
                counted.append(t)
        return counted

    def repeated(self, arm: str) -> list[Trial]:
        """The disturbed trials of an arm that another one of their block stands for."""
        counted = self.of_arm(arm, only_ok=False)
        return [t for t in self.trials if t.arm == arm and not any(t is c for c in counted)]

    @property
    def disturbed(self) -> list[Trial]:
        return [t for t in self.trials if t.disturbed]

    @property
    def arms(self) -> list[JsonObject]:
        """Each with name, stack, scenario and link; what an arm does not tell is empty. A record
        without arms has those of its trials."""
        written = self.experiment.get("arms") or [
            {"name": name} for name in sorted({t.arm for t in self.trials})
        ]
        return [{"stack": {}, "scenario": "", "link": "", **arm} for arm in written]

    @property
    def arm_names(self) -> list[str]:
        return [a["name"] for a in self.arms]

    def arm_named(self, name: str) -> JsonObject:
        """What the record itself says of an arm; {} where it says nothing."""
        return next((a for a in self.experiment.get("arms", []) if a["name"] == name), {})

    def narrowed(self, arms: Iterable[str]) -> Run:
        """These arms of it and their trials; everything else stays as it was recorded."""
        kept = set(arms)
        written = [a for a in self.experiment.get("arms", []) if a["name"] in kept]
        return replace(
            self,
            experiment={**self.experiment, "arms": written},
            trials=tuple(t for t in self.trials if t.arm in kept),
        )

    @property
    def failed(self) -> list[Trial]:
        return [t for t in self.trials if not t.ok]


def write(run: Run, path: str | os.PathLike[str]) -> Path:
    """Replace the file in one step: a kill leaves the old record or the new one, never half of
    either.

    Secrets are masked (`labkit.core.secrets`); where one was, or where a command of the user's was
    measured, the file is its owner's only."""
    target = Path(path)
    text = json.dumps(secrets.masked(asdict(run)), indent=1)
    private = secrets.MASK in text or any(
        "server" in (arm.get("stack") or {}) for arm in run.experiment.get("arms", [])
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with open(
            temporary, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600)
        ) as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o600 if private else 0o644)
    record_list.note(target)
    return target


def read(path: str | os.PathLike[str]) -> Run:
    """Raises BadInput for a file that is not a run, is torn, damaged or of a newer schema."""
    return of_document(record_schema.document(path), path)


def of_document(doc: Any, name: str | os.PathLike[str]) -> Run:
    """The run in a parsed document; `name` is what messages call it. Raises BadInput."""
    # other kinds have schemas of their own
    schema = doc.get("schema") if isinstance(doc, dict) and "kind" not in doc else None
    if isinstance(schema, int) and schema > SCHEMA:
        raise BadInput(
            f"{printable.line(name)} has schema {schema if schema < 10**9 else 'beyond any'}, this"
            f" labkit reads up to {SCHEMA}",
            fix="upgrade labkit",
        )
    record_schema.check(doc, name)
    known_trial, known_run = set(Trial.__dataclass_fields__), set(Run.__dataclass_fields__)
    trials = tuple(
        Trial(
            **{
                "disturbed": disturbance.disturbed(t.get("samples", {})),
                **{k: v for k, v in t.items() if k in known_trial},
            }
        )
        for t in doc["trials"]
    )
    return Run(**{**{k: v for k, v in doc.items() if k in known_run}, "trials": trials})


def refuse_overwriting(
    path: str | os.PathLike[str] | None, resume: bool = False, overwrite: bool = False
) -> None:
    """Raises BadInput unless a run may be written here: to a new file, to a record that is gone on
    with, or over a record when asked to. Without a path it goes to a new file, and neither option
    has anything to speak of.

    What is not a run record is never replaced: a record is made for hours, and so may be whatever
    this is. Asked before anything is prepared."""
    if not path:
        if resume or overwrite:
            raise BadInput(
                f"--{'resume' if resume else 'overwrite'} without --out",
                why="it names no record",
                fix="--out FILE",
            )
        return
    name = printable.line(path)
    if resume and overwrite:
        raise BadInput(
            "--resume and --overwrite",
            why="one goes on with the record, the other begins it anew",
            fix="give one of them",
        )
    if not os.path.lexists(path):
        parent = next(p for p in Path(path).absolute().parents if os.path.lexists(p))
        if not parent.is_dir() or not os.access(parent, os.W_OK):
            raise BadInput(
                f"{name} cannot be written",
                why=f"{printable.line(parent)} is no directory that you may write to",
                fix="give another --out",
            )
        return
    try:
        read(path)
    except BadInput as error:
        raise BadInput(
            f"{name} exists, and it is not a run record that can be"
            f" {'gone on with' if resume else 'replaced'}",
            why=error.what,
            fix="give another --out, or move it away",
        ) from None
    if not resume and not overwrite:
        raise BadInput(
            f"{name} exists: a run is recorded there",
            why="its trials would be lost",
            fix="--resume to go on with it, another --out, or --overwrite",
        )

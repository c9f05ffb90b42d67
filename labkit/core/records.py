"""Records: measurement as data. One run = one JSON file, written after every trial, raw points only.

File format history
  1  first: run{schema, id, created, lab_version, host, experiment, floors, trials[]}

A record is immutable once written but for trials appended to it (`--resume`). Readers refuse a newer schema. Records of
different hosts, scenarios, cache states or links refuse comparison (`comparable`). Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from labkit.core.beside import replacing
from labkit.errors import BadInput, IncomparableRecords

SCHEMA = 1
OUTCOMES = ("ok", "timeout", "oom", "killed", "crashed", "wrong_tokens", "no_evidence", "cache_unproven", "interrupted",
            "unavailable")


@dataclass(frozen=True)
class Trial:
    """One cold start. Seconds on CLOCK_MONOTONIC relative to t0 (the request that found zero replicas)."""

    arm: str
    block: int
    order: int  # position within the block
    outcome: str = "ok"
    total_s: float | None = None  # t0 to first token at the client
    phases: dict[str, float] = field(default_factory=dict)
    unaccounted_s: float | None = None
    spans: list[dict[str, Any]] = field(default_factory=list)  # name, start_s, end_s, source, detail; relative to t0
    cache: dict[str, Any] = field(default_factory=dict)  # state, method, files, total_bytes, resident_bytes
    evidence: list[dict[str, Any]] = field(default_factory=list)
    floors: dict[str, float] = field(default_factory=dict)  # phase -> seconds
    tokens: list[int] = field(default_factory=list)
    samples: dict[str, Any] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    error: dict[str, str] = field(default_factory=dict)
    log_tail: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == "ok"


@dataclass(frozen=True)
class Run:
    """arms: [{"name", "stack": {layer: technique}, "scenario", "link"}]; floors: {"disk_read_bytes_per_s": …}."""

    id: str
    created: str  # ISO 8601, UTC
    host: dict[str, Any] = field(default_factory=dict)
    experiment: dict[str, Any] = field(default_factory=dict)  # arms, blocks, seed, preset, subject
    floors: dict[str, Any] = field(default_factory=dict)
    trials: tuple[Trial, ...] = ()
    lab_version: str = "0.1.0"
    schema: int = SCHEMA

    def of_arm(self, arm: str, only_ok: bool = True) -> list[Trial]:
        return [t for t in self.trials if t.arm == arm and (t.ok or not only_ok)]

    @property
    def arm_names(self) -> list[str]:
        return [a["name"] for a in self.experiment.get("arms", [])] or sorted({t.arm for t in self.trials})

    @property
    def failed(self) -> list[Trial]:
        return [t for t in self.trials if not t.ok]


def write(run: Run, path: str | os.PathLike[str]) -> Path:
    """Replace the file in one step: a kill leaves the old record or the new one, never half of either."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        with open(temporary, "w", encoding="utf-8") as out:
            json.dump(asdict(run), out, indent=1, default=str)
            out.flush()
            os.fsync(out.fileno())
        os.chmod(temporary, 0o644)
    return target


def read(path: str | os.PathLike[str]) -> Run:
    """Raises BadInput for a file that is not a run, is torn, or is of a newer schema."""
    try:
        doc = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BadInput(f"no run at {path}", fix="labkit run naive --out FILE makes one") from None
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(f"{path} is not a run record: {error}", fix="give the JSON file that labkit run --out wrote") from None
    if not isinstance(doc, dict) or "trials" not in doc or "schema" not in doc:
        raise BadInput(f"{path} is JSON but not a run record", fix="give the JSON file that labkit run --out wrote")
    if doc["schema"] > SCHEMA:
        raise BadInput(f"{path} has schema {doc['schema']}, this labkit reads up to {SCHEMA}", fix="upgrade labkit")
    known_trial, known_run = set(Trial.__dataclass_fields__), set(Run.__dataclass_fields__)
    try:
        trials = tuple(Trial(**{k: v for k, v in t.items() if k in known_trial}) for t in doc["trials"])
        return Run(**{**{k: v for k, v in doc.items() if k in known_run}, "trials": trials})
    except (TypeError, AttributeError) as error:
        raise BadInput(f"{path} is a damaged run record: {error}", fix="run it again, or restore the file") from None


def comparable(a: Run, b: Run) -> None:
    """Raise IncomparableRecords, naming every difference, unless both speak of the same host, scenarios and links."""
    def facts(run: Run) -> dict[str, Any]:
        arms = run.experiment.get("arms", [])
        return {"host": run.host.get("id"), "scenarios": sorted({x.get("scenario", "") for x in arms}),
                "links": sorted({x.get("link", "") for x in arms}), "preset": run.experiment.get("preset"),
                "cache states": sorted({t.cache.get("state", "unverified") for t in run.trials if t.ok})}
    one, other = facts(a), facts(b)
    different = [f"{k}: {one[k]} against {other[k]}" for k in one if one[k] != other[k]]
    if different:
        raise IncomparableRecords("these runs do not measure the same thing: " + "; ".join(different),
                                  why="a difference between them would not be the technique's",
                                  fix="run both arms in one experiment: labkit run A B --blocks 5")

"""Baseline: did a stack get slower than it was on this host, beyond the noise – and in which phase?

A baseline is a JSON list of run records. Every phase of every stack is compared
(`labkit.lessons.shift`), and so is the total; the chance that a rerun of unchanged code raises any
alarm is held at 0.4 %, shared out among all comparisons of that rerun, so that ten reruns raise one
in fewer than one case of twenty. Losses below 5 % or 30 ms are never called. Two sessions on one
machine differ: what most phases of a stack have in common, up to 10 %, is taken for the machine's,
and said. Both sides must answer the same question – host, stack, scenario, link, sizes, proven
cache state and all else that was chosen (labkit.core.question); what has no counterpart is left
out, and what a side does not tell is said.

    write(collect(records), "baseline.json"); judged = judge(read("baseline.json"), collect(newer))
    judged.slower    # ["naive (fresh-node, loopback, small): load took 1.31 s, was 1.10 s (+19 %)"]
    judged.visible   # ["naive (fresh-node, loopback, small): n = 5; would have shown: load +82 ms,
        total +0.9 s, …"]

No alarm is no proof: a busy machine hides a loss, so what would have shown is said with every
verdict. 200 ms on a load of 1.6 s show in five trials where trials differ by 2 %, in twelve at 5 %,
in seventy at 15 % (simulated, 90 % of the time).

Lesson: notebooks/syllabi, and docs/facilitator.md for CI on a team's own host.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labkit.core import printable, question, record_schema, records, secrets
from labkit.core.json_types import JsonObject
from labkit.core.records import Run, Trial
from labkit.core.units import show_s
from labkit.errors import BadInput, IncomparableRecords
from labkit.lessons.shift import LEAST_S, Shift, common_drift, compare

#: Chance of any false alarm in one rerun.
FALSE_ALARMS = 0.004
MIN_TRIALS = 3
#: The most that is put down to the machine.
MOST_DRIFT = 0.10
TOTAL = "total"

Key = tuple[str, str, tuple[tuple[str, str], ...]]  # arm, how it is called, its question


@dataclass(frozen=True)
class Judged:
    """`slower`: one line a stack that got slower, the phase that is to blame first. `visible`: one
    line a stack, what would have shown.

    `shifts`: every comparison, by stack and phase. `left_out`: what the baseline holds and this
    side does not."""

    slower: tuple[str, ...]
    visible: tuple[str, ...]
    shifts: dict[str, dict[str, Shift]]
    alarm: float  # chance of a false alarm in each comparison
    left_out: tuple[str, ...] = ()  # stacks of the baseline that were not measured often enough now

    @property
    def slower_phases(self) -> dict[str, tuple[str, ...]]:
        """What got slower of each stack that did: phases by seconds lost, then the total."""
        found = {stack: tuple(p for p, _ in _slower(of)) for stack, of in self.shifts.items()}
        return {stack: phases for stack, phases in found.items() if phases}

    def as_json(self) -> JsonObject:
        return {
            "slower": list(self.slower),
            "visible": list(self.visible),
            "false_alarms": FALSE_ALARMS,
            "left_out": list(self.left_out),
            "compared": {
                stack: {phase: asdict(s) for phase, s in of.items()}
                for stack, of in self.shifts.items()
            },
        }


FIX = "labkit notebooks run --save-baseline FILE makes one"


def collect(paths: Iterable[Path]) -> list[Run]:
    return [records.read(p) for p in paths]


def write(runs: Sequence[Run], path: str | Path) -> Path:
    """Raises IncomparableRecords where no later run could be compared with these."""
    measured = [len(trials) for _, trials in groups(runs).values()]
    if max(measured, default=0) < MIN_TRIALS:
        raise IncomparableRecords(
            f"{printable.line(path)}: no stack was measured {MIN_TRIALS} times, so no baseline is"
            " written",
            why="a later run would have nothing to be compared with",
            fix="more blocks (-p blocks=8) of a notebook that measures, such as 01_anatomy",
        )
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(
        json.dumps({"baseline": secrets.masked([asdict(r) for r in runs])}) + "\n", encoding="utf-8"
    )
    return target


def read(path: str | Path) -> list[Run]:
    """A baseline, or a single run record. Raises BadInput that names the place of what is not
    sound."""
    doc = record_schema.document(path, FIX)
    if isinstance(doc, dict) and "trials" in doc:
        return [records.of_document(doc, path)]
    runs = doc.get("baseline") if isinstance(doc, dict) else None
    if not isinstance(runs, list):
        raise BadInput(f"{printable.line(path)} is no baseline", fix=FIX)
    return [
        records.of_document(run, f"{printable.line(path)}: baseline[{i}]")
        for i, run in enumerate(runs)
    ]


def refuse_overwriting(path: str | Path) -> None:
    """Raises BadInput where a baseline would replace what is none. Asked before anything runs."""
    if os.path.lexists(path):
        doc = record_schema.document(path, FIX)
        if not isinstance(doc, dict) or not isinstance(doc.get("baseline"), list):
            raise BadInput(
                f"{printable.line(path)} exists, and it is no baseline",
                why="it would be lost",
                fix="give --save-baseline another name, or move the file away",
            )


def groups(runs: Iterable[Run]) -> dict[Key, tuple[JsonObject, list[Trial]]]:
    """Good trials by what they measure, each with its question. Trials of one arm in different
    cache states answer different ones."""
    found: dict[Key, tuple[JsonObject, list[Trial]]] = {}
    for run in runs:
        for name in run.arm_names:
            conditions = question.conditions_of(run, name)
            for t in (t for t in run.of_arm(name) if t.total_s):
                state = str(t.cache.get("state", "unverified"))
                of_trial = {**conditions, question.CACHE: state}
                label = ", ".join(
                    printable.line(part)
                    for part in (
                        conditions.get("scenario", ""),
                        conditions.get("link", ""),
                        _sizes(run),
                        state,
                    )
                    if part
                )
                found.setdefault(
                    (name, f"{printable.line(name)} ({label})", question.key(of_trial)),
                    (of_trial, []),
                )[1].append(t)
    return found


def _counterparts(
    old: dict[Key, Any], new: dict[Key, Any]
) -> dict[Key, tuple[Key, tuple[str, ...]]]:
    """New key -> (old key, what is unknown): the same question, or the one old question that
    differs in nothing known. Of two such, neither."""
    counterparts: dict[Key, tuple[Key, tuple[str, ...]]] = {}
    for key, (conditions, trials) in new.items():
        found = {
            k: question.differences(o, conditions) for k, (o, _) in old.items() if k[0] == key[0]
        }
        fitting = {
            k: d.unknown
            for k, d in found.items()
            if not d.different and min(len(trials), len(old[k][1])) >= MIN_TRIALS
        }
        if key in fitting:
            counterparts[key] = (key, fitting[key])
        elif len(fitting) == 1:
            counterparts[key] = next(iter(fitting.items()))
    return counterparts


def _sizes(run: Run) -> str:
    """The preset, and a model or image in place of its own."""
    own = [Path(str(run.experiment["model_dir"])).name] if run.experiment.get("model_dir") else []
    larger = (
        [f"image +{run.experiment['image_extra_bytes']} B"]
        if run.experiment.get("image_extra_bytes")
        else []
    )
    return ", ".join([str(run.experiment.get("preset", "")), *own, *larger])


def regressions(before: Sequence[Run], now: Sequence[Run]) -> list[str]:
    return list(judge(before, now).slower)


def judge(before: Sequence[Run], now: Sequence[Run]) -> Judged:
    """Compare every stack that both sides measured. Raises IncomparableRecords when nothing can
    be compared."""
    old, new = groups(before), groups(now)
    pairs = _counterparts(old, new)
    if not pairs:
        raise IncomparableRecords(
            "nothing to compare with the baseline",
            why=(
                f"no stack was measured at least {MIN_TRIALS} times on both sides on the same host,"
                f" scenario, link and preset{_nearest(old, new)}"
            ),
            fix="more blocks, or --save-baseline FILE on this host",
        )
    names = _named(pairs)
    sides = {
        names[key]: _durations(old[other][1], new[key][1]) for key, (other, _) in pairs.items()
    }
    unknown = {names[key]: question.said_unknown(untold) for key, (_, untold) in pairs.items()}
    alarm = FALSE_ALARMS / sum(len(of) for of in sides.values())
    drifts = {
        stack: common_drift((side for phase, side in of.items() if phase != TOTAL), MOST_DRIFT)
        for stack, of in sides.items()
    }
    shifts = {
        stack: {phase: compare(a, b, alarm, drifts[stack]) for phase, (a, b) in of.items()}
        for stack, of in sides.items()
    }
    slower = tuple(f"{stack}: {found}" for stack, of in shifts.items() if (found := _blamed(of)))
    visible = tuple(
        f"{stack}: {_visible(of, alarm)}{_forgiven(drifts[stack])}"
        + (f"; {unknown[stack]}" if unknown[stack] else "")
        for stack, of in shifts.items()
    )
    matched = {other for other, _ in pairs.values()}
    return Judged(
        slower,
        visible,
        shifts,
        alarm,
        tuple(_named(key for key in old if key not in matched).values()),
    )


def _durations(
    before: Sequence[Trial], now: Sequence[Trial]
) -> dict[str, tuple[list[float], list[float]]]:
    phases = sorted({p for t in (*before, *now) for p in t.phases})
    durations = {
        p: ([t.phases.get(p, 0.0) for t in before], [t.phases.get(p, 0.0) for t in now])
        for p in phases
    }
    return durations | {
        TOTAL: ([t.total_s or 0.0 for t in before], [t.total_s or 0.0 for t in now])
    }


def _named(keys: Iterable[Key]) -> dict[Key, str]:
    """How each is called; two questions that are called alike get a number."""
    names: dict[Key, str] = {}
    for key in keys:
        alike = sum(name.startswith(key[1]) for name in names.values())
        names[key] = key[1] + (f" #{alike + 1}" if alike else "")
    return names


def _nearest(old: dict[Key, Any], new: dict[Key, Any]) -> str:
    """Where an arm was measured on both sides, what keeps it from being compared."""
    for key, (conditions, _) in new.items():
        for other, (past, _) in old.items():
            if other[0] == key[0] and (found := question.differences(past, conditions).different):
                return f" – {printable.line(key[0])}: {'; '.join(found[:4])}"
    return ""


def _slower(of: dict[str, Shift]) -> list[tuple[str, Shift]]:
    """Phases that got slower by seconds lost, then the total."""
    return sorted(
        ((p, s) for p, s in of.items() if s.slower),
        key=lambda one: (one[0] == TOTAL, -one[1].lost_s),
    )


def _blamed(of: dict[str, Shift]) -> str:
    return "; ".join(
        f"{p} took {show_s(s.now_s)}, was {show_s(s.before_s)}"
        f" (+{s.lost_s / max(s.before_s, 1e-6):.0%})"
        for p, s in _slower(of)
    )


def _visible(of: dict[str, Shift], alarm: float) -> str:
    """What would have shown in each phase, the longest first; and how many trials would show a
    tenth of the total."""
    phases = [TOTAL, *sorted((p for p in of if p != TOTAL), key=lambda p: -of[p].before_s)]
    losses = [
        f"{p} +{show_s(of[p].visible_s)} of {show_s(of[p].before_s)}"
        for p in phases
        if of[p].visible_s > LEAST_S
    ]
    sharp = [p for p in phases if of[p].visible_s <= LEAST_S]
    losses += [f"+{show_s(LEAST_S)} in {', '.join(sharp)}"] if sharp else []
    more = of[TOTAL].blocks_for(0.1 * of[TOTAL].before_s, alarm)
    enough = f"; 10 % of the total would take {more} trials" if more > min(of[TOTAL].n) else ""
    return f"{min(of[TOTAL].n)} trials; a loss would have shown from {'; '.join(losses)}{enough}"


def _forgiven(drift: float) -> str:
    share = math.expm1(drift)
    return (
        f"; most phases took {share:.0%} longer alike: taken for the machine's"
        if share >= 0.005
        else ""
    )

"""What a study answers, as data: from nothing to the first token so long naive, so long with the
best stack here; each rung of the ladder between them; the least that is left; the article's claims.

    answer = answered(study)
    answer.naive.median_s, answer.best.median_s, answer.floor_s, answer.sure
    for rung in answer.rungs: print(rung.step.label, rung.here or rung.why_not)

An arm's floor is its bytes over the link ÷ the link's rate: phases may overlap, but all of its
bytes share one link, so no start of that stack is faster. Who is best is a paired bootstrap over
the blocks that both leaders have. What this host cannot run has a recorded run beside it, which is
never compared with this host's. Lesson: notebooks/08_stacking."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

from labkit.core import stats
from labkit.core.json_types import JsonMapping
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, LabError
from labkit.net.link import parse as parse_link
from labkit.stack import replay
from labkit.stack.claims import OTHER, ROWS, Row, claims
from labkit.stack.compose import Stack
from labkit.study import record
from labkit.study.record import Step, Study
from labkit.technique import LAYERS, replaced_layers

#: Phases whose bytes come over the link on a fresh node (labkit.core.floor).
OVER_THE_LINK = ("pull", "mount", "load", "restore")


@dataclass(frozen=True)
class Timed:
    """One arm of a run, request to first token. `ratio`: its time ÷ naive's, paired; {} where they
    share no block. `floor_s`: 0 where the record does not tell. `trial`: the one whose total is the
    median. `recorded_on`: the host of a replayed run, "" of a live one."""

    run: Run
    arm: str
    trial: Trial
    n: int
    failed: int
    disturbed: int  # of the n, by other work on the machine
    median_s: float
    low_s: float
    high_s: float
    ratio: JsonMapping
    floor_s: float
    recorded_on: str = ""

    @property
    def enough(self) -> bool:
        return self.n >= stats.MIN_PAIRS

    @property
    def scenario(self) -> str:
        return str(self.run.arm_named(self.arm).get("scenario", ""))

    @property
    def link(self) -> str:
        return str(self.run.arm_named(self.arm).get("link", ""))


@dataclass(frozen=True)
class Rung:
    """A row of the ladder: measured here, or why not, with a recorded run beside it."""

    step: Step
    here: Timed | None = None
    why_not: str = ""
    beside: Timed | None = None


@dataclass(frozen=True)
class Claimed:
    """A row of the article's table: what was measured here, what was recorded elsewhere, and why
    nothing was where `here` is empty. `low`, `high`: the claimed ratio, new ÷ old."""

    label: str
    claim: str
    low: float | None = None
    high: float | None = None
    here: tuple[Row, ...] = ()
    recorded: tuple[Row, ...] = ()
    why_not: str = ""
    published: tuple[dict[str, str], ...] = ()


@dataclass(frozen=True)
class Answer:
    """`sure`: how sure it is that `best` is faster than `second`, from 0 to 1; 1 without a
    second. `floor_s`: the fewest bytes of any arm here ÷ the link's rate."""

    naive: Timed
    best: Timed
    best_label: str
    second: Timed | None
    second_label: str
    sure: float
    floor_s: float
    rungs: tuple[Rung, ...] = field(default_factory=tuple)

    @property
    def longest_left(self) -> tuple[str, float]:
        """The longest phase of the best stack's median trial."""
        return max(self.best.trial.phases.items(), key=lambda p: p[1], default=("", 0.0))


def answered(study: Study) -> Answer:
    """Raises BadInput where no start of naive succeeded: then there is nothing to compare with."""
    run, base = study.run, study.naive
    naive = timed(run, base, base)
    if naive is None:
        raise BadInput(
            f"no cold start of {base} succeeded in this study",
            why="every other figure is a ratio to it",
            fix=f"labkit show {study.path or run.id} says what happened",
        )
    elsewhere = Elsewhere()
    found = [t for name in run.arm_names if (t := timed(run, name, base))]
    # an arm of few trials leads only where none has enough
    ranked = sorted(found, key=lambda t: (not t.enough, t.median_s))
    best = ranked[0]
    second = next((t for t in ranked[1:] if t.enough == best.enough), None)
    return Answer(
        naive,
        best,
        label_of(study, best.arm),
        second,
        label_of(study, second.arm) if second else "",
        sureness(best, second),
        min((t.floor_s for t in found if t.floor_s), default=0.0),
        tuple(_rung(study, step, elsewhere) for step in study.rungs),
    )


def timed(run: Run, arm: str, base: str = "naive") -> Timed | None:
    """None without a good trial of the arm."""
    good = sorted(run.of_arm(arm), key=lambda t: t.first_token_s)
    if not good:
        return None
    times = [t.first_token_s for t in good]
    low_s, high_s = stats.interval(times)
    pairs, link = _pairs(run, arm, base), str(run.arm_named(arm).get("link", ""))
    loopback = run.floors.get("loopback_bytes_per_s")
    return Timed(
        run,
        arm,
        good[(len(good) - 1) // 2],
        len(good),
        len(run.of_arm(arm, only_ok=False)) - len(good),
        sum(bool(t.disturbed) for t in good),
        stats.median(times),
        low_s,
        high_s,
        stats.paired_ratio(pairs) if pairs else {},
        stats.median([link_floor_s(t, link, loopback) for t in good]),
        str(run.experiment.get("replayed_from") or ""),
    )


def _pairs(run: Run, arm: str, base: str) -> list[tuple[float, float]]:
    """Times of both in each block that has them."""
    of_base = {t.block: t.first_token_s for t in run.of_arm(base)}
    return [(t.first_token_s, of_base[t.block]) for t in run.of_arm(arm) if of_base.get(t.block)]


def link_floor_s(trial: Trial, link: str, loopback_bytes_per_s: float | None) -> float:
    """The bytes that the stores had sent at the trial's first token ÷ the link's rate; of a record
    that does not tell them, the floors of the phases that the link feeds."""
    stores = trial.facts.get("stores") or {}
    sent_bytes = sum(float(store.get("bytes_sent") or 0) for store in stores.values())
    over = parse_link(link)
    rate = min((r for r in (over.rate_bytes_per_s, loopback_bytes_per_s) if r), default=0.0)
    if sent_bytes and rate:
        return sent_bytes / rate + over.first_byte_s
    return sum(s for phase, s in trial.floors.items() if phase in OVER_THE_LINK)


def sureness(best: Timed, second: Timed | None) -> float:
    pairs = _pairs(best.run, best.arm, second.arm) if second else []
    return stats.sureness(pairs) if pairs else 1.0


def label_of(study: Study, arm: str) -> str:
    """An arm in the article's words: "lazy pull + container checkpoint"; what a snapshot replaces
    is not in it."""
    words = {s.technique: s.label for s in reversed(study.steps) if s.technique}
    return " + ".join(words.get(name, name) for name in exchanged(study.run, arm)) or "naive"


def exchanged(run: Run, arm: str) -> list[str]:
    """Techniques of an arm that the naive stack does not have, in the layers' order."""
    stack, naive = run.arm_named(arm).get("stack", {}), Stack.parse("naive").layers
    moot = replaced_layers(stack.get("snapshot"))
    return [
        str(stack[layer])
        for layer in LAYERS
        if layer != "process"
        and layer not in moot
        and stack.get(layer)
        and stack[layer] != naive.get(layer)
    ]


def _rung(study: Study, step: Step, elsewhere: Elsewhere) -> Rung:
    here = timed(study.run, step.arm, study.naive)
    if here:
        return Rung(step, here)
    return Rung(step, None, why_not(study, step.arm), recorded(study, step, elsewhere))


def why_not(study: Study, arm: str) -> str:
    """Why an arm of a study has no good trial, in words."""
    errors = [t.error.get("what") or t.outcome for t in study.run.of_arm(arm, only_ok=False)]
    return study.left_out.get(arm) or "; ".join(dict.fromkeys(errors)) or "not in this study"


class Elsewhere:
    """What was recorded on other hosts, read when it is first asked for, and once."""

    @functools.cached_property
    def studies(self) -> list[Study]:
        return list(record.recorded().values())

    @functools.cached_property
    def runs(self) -> list[Run]:
        """Every recorded run that can be read, the studies' among them."""
        found = [study.run for study in self.studies]
        for name in replay.names():
            with contextlib.suppress(LabError):
                found.append(replay.replay(name))
        return found


def recorded(study: Study, step: Step, elsewhere: Elsewhere) -> Timed | None:
    """The recorded run that shows this step: a recorded study's own; else of the same question as
    far as there is one, with a naive arm of its own where there is one."""
    for other in elsewhere.studies:
        for same in (s for s in other.steps if (s.label, s.kind) == (step.label, step.kind)):
            if found := timed(other.run, same.arm):
                return found
    of_study = next(iter(study.run.arms))
    scenario, link = of_study["scenario"], of_study["link"]
    best: tuple[tuple[bool, ...], Timed] | None = None
    for run in elsewhere.runs:
        for arm in run.arms:
            if arm["scenario"] != scenario or step.technique not in arm["stack"].values():
                continue
            if found := timed(run, arm["name"]):
                fit = (
                    bool(found.ratio) and found.enough,
                    arm["link"] == link,
                    run.experiment.get("preset") == study.run.experiment.get("preset"),
                    arm["name"] == step.arm,
                )
                if best is None or fit > best[0]:
                    best = (fit, found)
    return best[1] if best else None


def article(study: Study, more: Sequence[Row] = ()) -> tuple[Claimed, ...]:
    """The article's table of a study. `more`: rows that were recorded elsewhere as no run (GPU
    trials). A recorded row stands beside what this host's hardware cannot judge or could not
    run."""
    every = claims([study.run])  # a row of the article that nothing measured is kept
    others = [r for r in claims(Elsewhere().runs, more) if r.technique and r.verdict != OTHER]
    table = []
    for row in ROWS:
        of_row = [r for r in every if r.label == row.label]
        mine = tuple(r for r in of_row if r.technique)
        judged = any(r.verdict != OTHER for r in mine)
        beside = () if judged else _foremost([r for r in others if r.label == row.label])
        reason = "" if mine else _unmeasured(study, row.techniques)
        table.append(
            Claimed(
                row.label,
                row.claim.text,
                row.claim.low,
                row.claim.high,
                mine,
                beside,
                reason,
                of_row[0].published,
            )
        )
    return tuple(table)


def _foremost(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The recorded row that says most: with a verdict before without, then with more pairs."""
    ranked = sorted(rows, key=lambda r: (not r.ratio.get("significant"), -int(r.ratio.get("n", 0))))
    return tuple(ranked[:1])


def _unmeasured(study: Study, techniques: Sequence[str]) -> str:
    reasons = {s.label: why_not(study, s.arm) for s in study.steps if s.technique in techniques}
    return "; ".join(dict.fromkeys(reasons.values())) or "no arm of this study measures it"

"""What to do first: each option's gain on the reader's own forecast, set against its effort.

A gain is, in this order of trust:
  measured   this host's records hold an arm with the technique beside the forecast's own arm, in
      five blocks or more; the paired
             ratio of the phases concerned is applied to the forecast of the same phases – never a
                 ratio of another host
  at most    no arm was measured: the phase cannot gain more than it takes above its floor (all of
  it, where fewer bytes move)
Claims of others are shown beside, and never computed with. Effort is this lab's judgement on a
scale of 1 to 5, with its reason, and stands on the technique; change it by passing your own
`choices`.

    for a in advise(forecast, floors, runs=[ablation]): print(a.rank, a.title, a.gain_s, a.trust,
        a.effort)

Gains overlap: after doing the first, measure again. Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from labkit.core import question, stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.decide.predict import Forecast
from labkit.errors import LabError
from labkit.technique import Option, Technique, techniques

MEASURED, AT_MOST = "measured", "at most"


#: What only a build file can do: no technique does it.
SLIM = Option(
    "slim",
    "leave out of the image what a start does not read",
    ("pull", "unpack"),
    2,
    "a build file; no new moving part",
    "something rarely used is missing later",
    "02_image_pull",
    fewer_bytes=True,
)


@dataclass(frozen=True)
class Advice:
    """`gain_s` with its range; `trust`: measured or at most; `share`: of the forecast's total."""

    rank: int
    key: str
    title: str
    gain_s: float
    low_s: float
    high_s: float
    share: float
    trust: str
    how: str
    effort: int
    effort_why: str
    risk: str
    lesson: str

    def as_json(self) -> JsonObject:
        return asdict(self)


def options() -> dict[Option, list[Technique]]:
    """What can be done, each with the registered techniques that do it."""
    found: dict[Option, list[Technique]] = {}
    for technique in techniques():
        if technique.advice:
            found.setdefault(technique.advice, []).append(technique)
    return {**found, SLIM: []}


def advise(
    forecast: Forecast,
    floors: Mapping[str, float] | None = None,
    runs: Iterable[Run] = (),
    choices: Mapping[Option, Sequence[Technique]] | None = None,
    *,
    arm: str = "naive",
    restore_s: float | None = None,
) -> list[Advice]:
    """`arm`: the forecast's, and the baseline of measured gains. Ranked by gain ÷ effort, measured
    before merely possible at equal worth. `floors`: phase → least seconds at the reader's link and
    disk. `choices`: by default all `options()`.

    `restore_s`: what a restore would take (break-even's `restore_s`), subtracted from what a
    snapshot skips. A gain of nothing is left out."""
    runs = list(runs)
    found = []
    for option, ways in (options() if choices is None else choices).items():
        phases = [p for p in option.phases if p in forecast.phases]
        takes_s = sum(forecast.phases[p].seconds for p in phases)
        if takes_s <= 0:
            continue
        measured, seen = _measured(option, ways, runs, arm), ""
        if measured and measured[0]["n"] < stats.MIN_PAIRS:  # an anecdote ranks nothing
            seen = f"; seen: {measured[0]['median']:.2f} × ({measured[1]}), too few for a figure"
            measured = None
        if measured:
            ratio, how = measured
            gain, low, high = (takes_s * (1 - ratio[k]) for k in ("median", "high", "low"))
            trust = MEASURED
            if not ratio["significant"]:
                how += "; not significant"
        else:
            floor_s, limit = _floor(option, floors or {}, restore_s or 0.0)
            low, gain = 0.0, max(takes_s - floor_s, 0.0)
            high, trust = gain, AT_MOST
            how = f"{', '.join(phases)}: {show_s(takes_s)}, {limit}{seen}"
        if gain > 0:
            found.append((option, gain, low, high, trust, how))
    # What is only possible counts half: some of it will not come.
    found.sort(key=lambda f: -(f[1] * (1.0 if f[4] == MEASURED else 0.5)) / f[0].effort)
    total = forecast.total_s or 1.0
    return [
        Advice(
            rank,
            o.key,
            o.title,
            gain,
            low,
            high,
            gain / total,
            trust,
            how,
            o.effort,
            o.effort_why,
            o.risk,
            o.lesson,
        )
        for rank, (o, gain, low, high, trust, how) in enumerate(found, 1)
    ]


def _floor(option: Option, floors: Mapping[str, float], restore_s: float) -> tuple[float, str]:
    """What its phases cannot go below, in seconds, and what that is."""
    if option.skips and restore_s:
        return restore_s, f"a restore takes {show_s(restore_s)}"
    floor_s = sum(floors.get(p, 0.0) for p in option.phases)
    if option.skips or option.fewer_bytes or not floor_s:
        return 0.0, "no floor for it"
    return floor_s, f"floor {show_s(floor_s)}"


def _measured(
    option: Option, ways: Sequence[Technique], runs: Sequence[Run], baseline: str
) -> tuple[JsonObject, str] | None:
    """The paired ratio of the option's phases between the forecast's arm and one that differs from
    it in this layer alone; the best of several."""
    best: tuple[JsonObject, str] | None = None
    layer, names = ways[0].layer if ways else "", {t.name for t in ways}
    for run in runs:
        stacks = {a["name"]: a["stack"] for a in run.arms}
        for name, stack in stacks.items():
            if stack.get(layer) not in names or baseline not in stacks:
                continue
            base = stacks[baseline]
            if question.not_from_one_start(run, name, baseline) or not _differs_only(
                stack, base, layer
            ):
                continue
            ratio = _ratio_of_phases(run, name, baseline, option)
            if ratio and (best is None or ratio["median"] < best[0]["median"]):
                against = f"{stack[layer]} ÷ {base.get(layer) or 'none'}"
                best = ratio, f"{against} in run {run.id}, n = {ratio['n']}"
    return best


def _differs_only(a: Mapping[str, str], b: Mapping[str, str], layer: str) -> bool:
    return a.get(layer) != b.get(layer) and {k: v for k, v in a.items() if k != layer and v} == {
        k: v for k, v in b.items() if k != layer and v
    }


def _ratio_of_phases(run: Run, arm: str, against: str, option: Option) -> JsonObject | None:
    """Time moved into other phases counts against a technique, so a whole-start difference is set
    over the phases of the baseline."""
    pairs = []
    for block in sorted({t.block for t in run.trials}):
        ours = [t for t in run.of_arm(arm) if t.block == block and t.total_s]
        theirs = [t for t in run.of_arm(against) if t.block == block and t.total_s]
        if ours and theirs:
            base = sum(theirs[0].phases.get(p, 0.0) for p in option.phases)
            if base > 0:
                pairs.append((max(base + ours[0].total_s - theirs[0].total_s, 0.0), base))  # type: ignore[operator]
    try:
        return stats.paired_ratio(pairs) if pairs else None
    except LabError:
        return None

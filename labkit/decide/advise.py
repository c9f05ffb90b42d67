"""What to do first: each option's gain on the reader's own forecast, set against its effort.

A gain is, in this order of trust:
  measured         this host's records hold two arms that differ by the technique alone, in five
      blocks or more, and the interval of their ratio excludes 1; that ratio of the phases
      concerned is applied to the forecast of the same phases – never a ratio of another host
  at most          no such arms: the phase cannot gain more than it takes above its floor (all of
      it, where fewer bytes move)
  not significant  there are such arms, and the interval holds 1: no gain was shown, and the
      interval's end says how large it could be
Claims of others are shown beside, and never computed with. Effort is this lab's judgement on a
scale of 1 to 5, with its reason, and stands on the technique; change it by passing your own
`choices`.

    for a in advise(forecast, floors, runs=[ablation]): print(a.rank, a.title, a.gain_s, a.trust,
        a.effort)

Gains overlap, so each entry comes on top of the measured ones above it: what they saved is no
longer there to be saved, a technique that replaces one of them counts for what it adds, and nothing
that adds nothing is named. Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.decide.gains import Gain, gains
from labkit.decide.predict import Forecast
from labkit.technique import Option, Technique, techniques

MEASURED, AT_MOST, NOT_SIGNIFICANT = "measured", "at most", "not significant"


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
    """`gain_s` with its range, on top of the measured gains ranked above it; `trust`: measured, at
    most or not significant (then `gain_s` is the most it can be); `share`: of the forecast's total;
    `technique`: what was measured, "" where nothing was."""

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
    technique: str = ""

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
    """`arm`: the forecast's, and the stack that gains are added to. Ranked by gain ÷ effort; of
    what is only possible half counts, as some of it will not come, and what was measured without a
    significant gain stands last. `floors`: phase → least seconds at the reader's link and disk.
    `choices`: by default all `options()`.

    `restore_s`: what a restore would take (break-even's `restore_s`), subtracted from what a
    snapshot skips. A gain of nothing is left out, and so is an option of a phase that the forecast
    refuses."""
    left = _Left(forecast, floors or {}, restore_s or 0.0, list(runs), arm)
    choices = dict(options() if choices is None else choices)
    found: list[Advice] = []
    while choices:
        worth = [w for option, ways in choices.items() if (w := left.worth(option, ways))]
        if not worth:
            break
        best = min(worth, key=lambda w: (w.trust == NOT_SIGNIFICANT, -w.score))
        found.append(replace(best.advice, rank=len(found) + 1))
        left.take(best)
        del choices[best.option]
    return found


@dataclass(frozen=True)
class _Worth:
    """One option as things stand; `gain`: the pair of arms that measured it."""

    option: Option
    advice: Advice
    gain: Gain | None = None

    @property
    def trust(self) -> str:
        return self.advice.trust

    @property
    def score(self) -> float:
        return self.advice.gain_s * (1.0 if self.trust == MEASURED else 0.5) / self.option.effort


class _Left:
    """What is left of the forecast after what was advised so far: seconds by phase, and the stack
    that is then in use."""

    def __init__(
        self,
        forecast: Forecast,
        floors: Mapping[str, float],
        restore_s: float,
        runs: Sequence[Run],
        arm: str,
    ):
        self.floors, self.restore_s = floors, restore_s
        self.before = {p: f.seconds for p, f in forecast.phases.items()}
        self.seconds = dict(self.before)
        self.total_s = forecast.total_s or sum(self.before.values()) or 1.0
        self.naive = next(
            (dict(r.arm_named(arm).get("stack", {})) for r in runs if r.of_arm(arm)), {}
        )
        self.stack = dict(self.naive)
        self.gains = [g for run in runs for g in gains(run)] if self.naive else []

    def take(self, done: _Worth) -> None:
        """Only a measured gain is counted on; what is possible at most may not come."""
        if done.trust != MEASURED or not done.gain:
            return
        phases = [p for p in done.option.phases if p in self.seconds]
        takes_s = sum(self.seconds[p] for p in phases)
        for p in phases:
            self.seconds[p] *= max(1 - done.advice.gain_s / takes_s, 0.0)
        self.stack[done.gain.layer] = done.gain.technique

    def worth(self, option: Option, ways: Sequence[Technique]) -> _Worth | None:
        """None for an option that gains nothing."""
        takes_s = self._of(option, self.seconds)
        if takes_s <= 0:
            return None
        measured = [w for way in ways if (w := self._measured(option, way))]
        enough = [w for w, n in measured if n >= stats.MIN_PAIRS]
        if enough:
            return max(
                (w for w in enough if w.advice.gain_s > 0),
                key=lambda w: (w.trust == MEASURED, w.advice.gain_s),
                default=None,
            )
        if any(
            way.layer and self.stack.get(way.layer) != self.naive.get(way.layer) for way in ways
        ):
            return None  # another technique of its layer is in the stack by now
        seen = "; ".join(w.advice.how for w, _ in measured)  # an anecdote ranks nothing
        floor_s, limit = self._floor(option)
        gain_s = max(takes_s - floor_s, 0.0)
        named = ", ".join(p for p in option.phases if p in self.seconds)
        how = f"{named}: {show_s(takes_s)}, {limit}" + (f"; seen: {seen}, too few" if seen else "")
        return self._made(option, (gain_s, 0.0, gain_s), AT_MOST, how) if gain_s > 0 else None

    def _measured(self, option: Option, way: Technique) -> tuple[_Worth, int] | None:
        """One technique where it was measured: on the stack that is in use by now, else on the one
        that the forecast is of; and in how many blocks."""
        layer, in_use = way.layer, self.stack.get(way.layer, "")
        pairs = [
            g
            for g in self.gains
            if g.technique == way.name
            and g.on.get(layer, "") in (in_use, self.naive.get(layer, ""))
        ]
        pairs.sort(
            key=lambda g: (g.on.get(layer, "") != in_use, _distance(g.on, self.stack, layer))
        )
        for gain in pairs:
            ratio = gain.ratio(option.phases)
            if ratio is None:
                continue
            takes_s = self._of(option, self.seconds)
            of_s = takes_s if gain.on.get(layer, "") == in_use else self._of(option, self.before)
            gained, low, high = (takes_s - of_s * ratio[k] for k in ("median", "high", "low"))
            how = f"{ratio['median']:.2f} × ({gain.words}, n = {ratio['n']})"
            if ratio["n"] < stats.MIN_PAIRS or ratio["significant"]:
                made = self._made(option, (gained, low, high), MEASURED, how, gain)
            else:
                how += f"; not significant: {ratio['low']:.2f} – {ratio['high']:.2f}"
                made = self._made(option, (high, low, high), NOT_SIGNIFICANT, how, gain)
            return made, ratio["n"]
        return None

    def _made(
        self,
        option: Option,
        gain_s: tuple[float, float, float],
        trust: str,
        how: str,
        gain: Gain | None = None,
    ) -> _Worth:
        advice = Advice(
            0,
            option.key,
            option.title,
            *gain_s,
            share=gain_s[0] / self.total_s,
            trust=trust,
            how=how,
            effort=option.effort,
            effort_why=option.effort_why,
            risk=option.risk,
            lesson=option.lesson,
            technique=gain.technique if gain else "",
        )
        return _Worth(option, advice, gain)

    def _floor(self, option: Option) -> tuple[float, str]:
        """What its phases cannot go below, in seconds, and what that is."""
        if option.skips and self.restore_s:
            return self.restore_s, f"a restore takes {show_s(self.restore_s)}"
        floor_s = self._of(option, self.floors)
        if option.skips or option.fewer_bytes or not floor_s:
            return 0.0, "no floor for it"
        return floor_s, f"floor {show_s(floor_s)}"

    @staticmethod
    def _of(option: Option, seconds: Mapping[str, float]) -> float:
        return sum(seconds.get(p, 0.0) for p in option.phases)


def _distance(one: Mapping[str, str], other: Mapping[str, str], but: str) -> int:
    layers = ({*one, *other}) - {but}
    return sum((one.get(layer) or "") != (other.get(layer) or "") for layer in layers)

"""What to do first: each option's gain on the reader's own forecast, set against its effort.

A gain is, in this order of trust:
  measured   this host's records hold an arm with the technique beside the forecast's own arm, in
      five blocks or more; the paired
             ratio of the phases concerned is applied to the forecast of the same phases – never a
                 ratio of another host
  at most    no arm was measured: the phase cannot gain more than it takes above its floor (all of
  it, where fewer bytes move)
Claims of others are shown beside, and never computed with. Effort is this lab's judgement on a
scale of 1 to 5, with its reason; change it by passing your own `options`.

    for a in advise(forecast, floors, runs=[ablation]): print(a.rank, a.title, a.gain_s, a.trust,
        a.effort)

Gains overlap: after doing the first, measure again. Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from labkit.core import question, stats
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.decide.predict import Forecast
from labkit.errors import LabError
from labkit.technique import techniques

MEASURED, AT_MOST = "measured", "at most"


@dataclass(frozen=True)
class Option:
    """`phases`: what it can shorten; `skips`: it leaves its phases out."""

    key: str
    title: str
    layer: str
    phases: tuple[str, ...]
    effort: int
    effort_why: str
    risk: str
    lesson: str
    skips: bool = False
    fewer_bytes: bool = False  # moves less, or at another time: today's bytes are no floor for it

    @property
    def techniques(self) -> tuple[str, ...]:
        """Those registered that do it; none does what only a build file can (`slim`)."""
        return tuple(t.name for t in techniques() if t.advice == self.key)


OPTIONS = (
    Option(
        "format",
        "store weights as safetensors, build the model on meta",
        "weights",
        ("build", "load"),
        1,
        "a conversion and a loader's flag; most hubs have the files already",
        "none known: the tokens are checked",
        "04_model_formats",
    ),
    Option(
        "stream",
        "stream weights with many requests in flight",
        "weights",
        ("load",),
        2,
        "a library and a setting for its concurrency",
        "settings that win cold can lose warm",
        "05_streaming",
    ),
    Option(
        "recompress",
        "pull layers in parallel ranges, decompress faster",
        "image",
        ("pull", "unpack"),
        3,
        "layers in a bucket, and a node that pulls from it",
        "one more place that must be up to date",
        "02_image_pull",
    ),
    Option(
        "lazy",
        "start from a lazy image",
        "image",
        ("pull", "unpack"),
        3,
        "convert in CI, a snapshotter on every node",
        "the registry becomes a run-time dependency; loses when most of the image is read",
        "03_lazy_pull",
        fewer_bytes=True,
    ),
    Option(
        "slim",
        "leave out of the image what a start does not read",
        "image",
        ("pull", "unpack"),
        2,
        "a build file; no new moving part",
        "something rarely used is missing later",
        "02_image_pull",
        fewer_bytes=True,
    ),
    Option(
        "overlap",
        "fetch weights while the image arrives and torch imports",
        "weights",
        ("load",),
        2,
        "start the fetch before the interpreter needs it",
        "competes for the same link",
        "08_stacking",
        fewer_bytes=True,
    ),
    Option(
        "compile-cache",
        "keep compiled kernels and graphs",
        "device",
        ("warmup",),
        2,
        "a cache directory that travels with the image",
        "its keys break on small things: a miss is silent",
        "06_gpu_init",
    ),
    Option(
        "snapshot",
        "restore a running server in place of starting one",
        "snapshot",
        ("start", "import", "context", "build", "load", "warmup", "ready"),
        5,
        "root on the nodes, CRIU and driver versions, images the size of memory",
        "holds secrets; the same GPU model and driver",
        "07_checkpoints",
        skips=True,
    ),
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

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def advise(
    forecast: Forecast,
    floors: Mapping[str, float] | None = None,
    runs: Iterable[Run] = (),
    options: Sequence[Option] = OPTIONS,
    *,
    arm: str = "naive",
    restore_s: float | None = None,
) -> list[Advice]:
    """`arm`: the forecast's, and the baseline of measured gains. Ranked by gain ÷ effort, measured
    before merely possible at equal worth. `floors`: phase → least seconds at the reader's link and
    disk.

    `restore_s`: what a restore would take (break-even's `restore_s`), subtracted from what a
    snapshot skips. A gain of nothing is left out."""
    runs = list(runs)
    found = []
    for option in options:
        takes_s = sum(forecast.phases[p].seconds for p in option.phases if p in forecast.phases)
        if takes_s <= 0:
            continue
        measured, seen = _measured(option, runs, arm), ""
        if measured and measured[0]["n"] < stats.MIN_PAIRS:  # an anecdote ranks nothing
            seen, measured = (
                f"; seen: {measured[0]['median']:.2f} × ({measured[1]}), too few for a figure",
                None,
            )
        if measured:
            ratio, how = measured
            gain, low, high, trust = (
                takes_s * (1 - ratio["median"]),
                takes_s * (1 - ratio["high"]),
                takes_s * (1 - ratio["low"]),
                MEASURED,
            )
            if not ratio["significant"]:
                how += "; not significant"
        else:
            floor_s = (
                (restore_s or 0.0)
                if option.skips
                else (
                    0.0
                    if option.fewer_bytes
                    else sum((floors or {}).get(p, 0.0) for p in option.phases)
                )
            )
            gain, trust = max(takes_s - floor_s, 0.0), AT_MOST
            low, high = 0.0, gain
            limit = (
                f"a restore takes {show_s(floor_s)}"
                if option.skips and floor_s
                else f"floor {show_s(floor_s)}"
                if floor_s
                else "no floor for it"
            )
            how = (
                f"{', '.join(p for p in option.phases if p in forecast.phases)}: {show_s(takes_s)},"
                f" {limit}{seen}"
            )
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


def _measured(
    option: Option, runs: Sequence[Run], baseline: str
) -> tuple[dict[str, Any], str] | None:
    """The paired ratio of the option's phases between the forecast's arm and one that differs from
    it in this layer alone; the best of several."""
    best: tuple[dict[str, Any], str] | None = None
    names = option.techniques
    for run in runs:
        arms = {a["name"]: a for a in run.arms}
        for name, arm in arms.items():
            stack = arm.get("stack", {})
            if stack.get(option.layer) not in names:
                continue
            for other, base in arms.items():
                if (
                    other != baseline
                    or question.not_from_one_start(run, name, other)
                    or not _differs_only(stack, base.get("stack", {}), option.layer)
                ):
                    continue
                ratio = _ratio_of_phases(run, name, other, option)
                if ratio and (best is None or ratio["median"] < best[0]["median"]):
                    best = (
                        ratio,
                        (
                            f"{stack[option.layer]} ÷"
                            f" {base.get('stack', {}).get(option.layer) or 'none'} in run {run.id},"
                            f" n = {ratio['n']}"
                        ),
                    )
    return best


def _differs_only(a: Mapping[str, str], b: Mapping[str, str], layer: str) -> bool:
    return a.get(layer) != b.get(layer) and {k: v for k, v in a.items() if k != layer and v} == {
        k: v for k, v in b.items() if k != layer and v
    }


def _ratio_of_phases(run: Run, arm: str, against: str, option: Option) -> dict[str, Any] | None:
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

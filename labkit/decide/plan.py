"""The reader's own plan: sizes, link, disk and traffic in; forecast by phase, break-evens, waiting,
cost and ranked advice out.

Every input carries where it came from: `given` by the reader, `measured` in the records, or
`assumed` – and an assumed one is printed as assumed wherever a result rests on it. What needs an
input that nobody gave (traffic, price) is left out, not invented.

    plan = make([tiny_run, small_run], {"image_bytes": 5e9, "model_bytes": 16e9, "link_bytes_per_s":
        1.25e9, "rate_per_s": 0.02})
    print(plan_text.show(plan)); plan.forecast.total_s; plan.advice[0].title

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from labkit.core import floor, question, stats
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.decide import breakeven
from labkit.decide.advise import Advice, advise
from labkit.decide.holdout import hold_out
from labkit.decide.inputs import SIZES, Input, collect, refuse_unknown
from labkit.decide.predict import Forecast, Model, model_of
from labkit.decide.reach import SAME_SIZE, distinct, widened
from labkit.decide.traffic import KEEP_ALIVES_S, keep_alives, policies
from labkit.errors import BadInput
from labkit.net.link import Link


@dataclass(frozen=True)
class Plan:
    """`recorded_on`: the host of the records, where they were not measured on this one."""

    arm: str
    scenario: str
    host: str
    inputs: dict[str, Input]
    model: Model
    forecast: Forecast
    floors: dict[str, float]
    checks: list[JsonObject]  # hold-out rows; empty where one size was measured
    breakevens: JsonObject
    traffic: JsonObject
    advice: list[Advice] = field(default_factory=list)
    recorded_on: str = ""

    @property
    def extrapolated(self) -> bool:
        """A size beyond those measured, by more than what is taken for the same size."""
        return self.forecast.factor >= SAME_SIZE

    @property
    def tested(self) -> list[JsonObject]:
        """The hold-out rows whose error speaks of this forecast: within the sizes measured those
        that were, beyond them those that were not; all, where there is none of its kind. A guess
        from one size speaks of none."""
        return _of_regime(self.checks, self.extrapolated)

    @property
    def error_share(self) -> float | None:
        """The worst error on those of them, unsigned; None where fewer than two sizes were left to
        fit."""
        return _worst(self.tested)

    def as_json(self) -> JsonObject:
        return {
            "arm": self.arm,
            "scenario": self.scenario,
            "host": self.host,
            "recorded_on": self.recorded_on,
            "inputs": {k: asdict(v) for k, v in self.inputs.items()},
            "forecast": self.forecast.as_json(),
            "floors": self.floors,
            "hold_out": self.checks,
            "error_share": self.error_share,
            "extrapolated": self.extrapolated,
            "breakevens": self.breakevens,
            "traffic": self.traffic,
            "advice": [a.as_json() for a in self.advice],
        }


def make(
    runs: Sequence[Run],
    given: Mapping[str, float | None],
    *,
    arm: str = "",
    trace: Sequence[float] | None = None,
    traffic: str = "poisson",
    seed: int = 0,
) -> Plan:
    """`given` may hold any of `inputs.SIZES`, link_bytes_per_s, disk_bytes_per_s, rate_per_s,
    price_per_gpu_hour, and the names of `inputs.ASSUMPTIONS`; None is not given.

    Raises BadInput without a good trial of the arm, for a name or value that makes no sense, or for
    an image size where the records pull no image."""
    refuse_unknown(given)
    name = arm or arm_of(runs)
    mine = [r for r in runs if r.of_arm(name)]
    model = model_of(runs, name)
    _refuse_absent(model, given)
    inputs = collect(mine, name, {k: v for k, v in given.items() if v is not None}, model)
    values = {k: i.value for k, i in inputs.items()}
    forecast = model.predict(
        {k: values[k] for k in SIZES if k in values},
        link_bytes_per_s=values.get("link_bytes_per_s"),
        disk_bytes_per_s=values.get("disk_bytes_per_s"),
    )
    floors = _floors(mine[0], values, model.scenario, forecast)
    checks = hold_out(mine, name) if _sizes_measured(model) > 1 else []
    forecast = _honest(forecast, floors, checks, _sizes_measured(model))
    breakevens = _breakevens(forecast, values)
    waits: JsonObject = {}
    if not forecast.refused:
        waits = policies(values, _cold_starts(mine, name, forecast), trace, traffic, seed)
    advice = advise(
        forecast, floors, runs, arm=name, restore_s=breakevens.get("snapshot", {}).get("restore_s")
    )
    return Plan(
        name,
        model.scenario,
        model.host,
        inputs,
        model,
        forecast,
        floors,
        checks,
        breakevens,
        waits,
        advice,
        str(mine[0].experiment.get("replayed_from", "")),
    )


def unreported(runs: Sequence[Run], arm: str = "") -> list[str]:
    """What the records of an arm do not report of their question, so that nobody knows whether all
    of them ask the same."""
    name = arm or arm_of(runs)
    questions = [question.conditions_of(r, name) for r in runs if r.of_arm(name)]
    unknown = [
        name
        for other in questions[1:]
        for name in question.differences(questions[0], other, but=question.SIZES).unknown
    ]
    return list(dict.fromkeys(unknown))


def _refuse_absent(model: Model, given: Mapping[str, float | None]) -> None:
    """Raises BadInput for an image size where no phase of the records pulls, unpacks or mounts an
    image: its cost would be left out."""
    sized = [k for k in ("image_bytes", "unpacked_bytes") if given.get(k)]
    if sized and not {"pull", "unpack", "mount"} & set(model.fits):
        raise BadInput(
            f"{sized[0]} is given, and no start in these records pulls or unpacks an image"
            + (f" ({model.scenario})" if model.scenario else ""),
            why="the forecast would leave out what an image of that size costs",
            fix="records of a fresh node: labkit study, or --scenario fresh-node",
        )


def _of_regime(checks: Sequence[JsonObject], extrapolated: bool) -> list[JsonObject]:
    known = [c for c in checks if not c["from_one_size"]]
    return [c for c in known if bool(c["beyond"]) == extrapolated] or known


def _worst(checks: Sequence[JsonMapping]) -> float | None:
    return max((abs(c["error_share"]) for c in checks), default=None)


def _honest(
    forecast: Forecast, floors: Mapping[str, float], checks: Sequence[JsonObject], sizes: int
) -> Forecast:
    """No phase below its floor, and a range of the total no narrower than the error on held-out
    sizes, once more for each doubling beyond them."""
    phases, notes = dict(forecast.phases), list(forecast.notes)
    for phase, floor_s in floors.items():
        f = phases[phase]
        if f.seconds < floor_s:
            phases[phase] = replace(
                f, seconds=floor_s, high_s=max(f.high_s, floor_s), low_s=floor_s
            )
            notes.append(
                f"{phase}: the fit gave {show_s(f.seconds)}, less than its floor: raised to"
                f" {show_s(floor_s)}"
            )
    if forecast.total_s is None:
        return replace(forecast, phases=phases, notes=tuple(notes))
    total = sum(f.seconds for f in phases.values())
    extrapolated = forecast.factor >= SAME_SIZE
    error = _worst(_of_regime(checks, extrapolated)) or 0.0
    error = widened(error, forecast.factor if extrapolated else 1.0, sizes)
    return replace(
        forecast,
        phases=phases,
        total_s=total,
        low_s=min(sum(f.low_s for f in phases.values()), total / (1 + error)),
        high_s=max(sum(f.high_s for f in phases.values()), total * (1 + error)),
        notes=tuple(notes),
    )


def arm_of(runs: Sequence[Run]) -> str:
    named = [(r, name) for r in runs for name in r.arm_names]
    names = [name for r, name in named if r.of_arm(name)]
    if not names:
        raise BadInput(
            "no record holds a good trial",
            why="a forecast is fitted from measured starts",
            fix="labkit study",
        )
    return "naive" if "naive" in names else max(dict.fromkeys(names), key=names.count)


def _sizes_measured(model: Model) -> int:
    """Of the size that was measured at most points."""
    return max((distinct(f.sizes) for f in model.fits.values() if f.driver), default=1)


def _floors(
    run: Run, value: Mapping[str, float], scenario: str, forecast: Forecast
) -> dict[str, float]:
    """What link and disk alone need for the reader's bytes."""
    rates = {**run.floors, "disk_read_bytes_per_s": value.get("disk_bytes_per_s")}
    link = value.get("link_bytes_per_s")
    sizes = {
        "pull": value.get("image_bytes"),
        "unpack": value.get("unpacked_bytes"),
        "load": value.get("model_bytes"),
    }
    found = floor.phase_floors(
        {k: int(v) for k, v in sizes.items() if v},
        rates,
        Link("", link) if link else None,
        scenario,
    )
    return {p: s for p, s in found.items() if p in forecast.phases}


_SKIPPED = ("start", "import", "context", "build", "load", "warmup", "ready")


def _breakevens(forecast: Forecast, value: Mapping[str, float]) -> JsonObject:
    found: JsonObject = {}
    if forecast.refused:
        return found  # each rests on the whole start
    total_s = forecast.total()[0]
    skipped_s = sum(forecast.phases[p].seconds for p in _SKIPPED if p in forecast.phases)
    if value.get("disk_bytes_per_s") and "snapshot_bytes" in value:
        found["snapshot"] = {
            "skipped_s": skipped_s,
            **breakeven.snapshot(
                skipped_s,
                value["snapshot_bytes"],
                value["disk_bytes_per_s"],
                value["restore_fixed_s"],
            ).as_json(),
        }
    if value.get("rate_per_s") and value.get("price_per_gpu_hour"):
        found["cost"] = asdict(
            breakeven.cost(
                value["rate_per_s"],
                total_s,
                value["keep_alive_s"],
                value["price_per_gpu_hour"],
            )
        )
    if value.get("rate_per_s"):
        found["mostly_up_rate_per_s"] = breakeven.rate_for_share(
            0.9, total_s, value["keep_alive_s"]
        )
    return found


def _cold_starts(runs: Sequence[Run], arm: str, forecast: Forecast) -> list[float]:
    """The measured starts' spread around their own run's median, moved to the forecast."""
    total_s = forecast.total()[0]
    shares = []
    for run in runs:
        totals = [t.total_s for t in run.of_arm(arm) if t.total_s]
        middle = stats.median(totals) if totals else 0.0
        shares += [t / middle for t in totals if middle]
    return [total_s * s for s in shares]


def tradeoff(
    runs: Sequence[Run],
    plan: Plan,
    *,
    trace: Sequence[float] | None = None,
    traffic: str = "poisson",
    keep_alives_s: Sequence[float] = KEEP_ALIVES_S,
    seed: int = 0,
) -> list[JsonObject]:
    """GPU-hours against waiting for each keep-alive time; `inf` is one replica always on.
    Simulated. Raises BadInput without traffic, or where the forecast is refused."""
    values = {k: i.value for k, i in plan.inputs.items()}
    if trace is None and not values.get("rate_per_s"):
        raise BadInput("no traffic to replay", fix="give rate_per_s, or a trace")
    cold_s = _cold_starts([r for r in runs if r.of_arm(plan.arm)], plan.arm, plan.forecast)
    return keep_alives(values, cold_s, trace, traffic, keep_alives_s, seed)

"""The reader's own plan: sizes, link, disk and traffic in; forecast by phase, break-evens, waiting,
cost and ranked advice out.

Every input carries where it came from: `given` by the reader, `measured` in the records, or
`assumed` – and an assumed one is printed as assumed wherever a result rests on it. What needs an
input that nobody gave (traffic, price) is left out, not invented.

    made = make([tiny_run, small_run], {"image_bytes": 5e9, "model_bytes": 16e9, "link_bytes_per_s":
        1.25e9, "rate_per_s": 0.02})
    print(show(made)); made.forecast.total_s; made.advice[0].title

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from labkit.core import floor, printable, question, stats
from labkit.core.records import Run
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.decide import breakeven, queueing, traces
from labkit.decide.advise import Advice, advise
from labkit.decide.holdout import hold_out
from labkit.decide.predict import Forecast, Model, model_of, sizes_of
from labkit.errors import BadInput
from labkit.net.link import Link

GIVEN, MEASURED, ASSUMED, EXAMPLE = "given", "measured", "assumed", "example"
#: Used where the reader gave nothing and records cannot know it. Each is shown as assumed, with its
#: reason.
ASSUMPTIONS: dict[str, tuple[float, str]] = {
    "service_s": (5.0, "seconds a request keeps its slot"),
    "concurrency": (8, "requests one replica serves at once"),
    "keep_alive_s": (300.0, "idle time before scale to zero"),
    "max_replicas": (8, "the most replicas"),
    "duration_s": (86_400.0, "one day of traffic"),
    "restore_fixed_s": (1.0, "cost of a restore apart from its bytes"),
    "unpacked_per_image": (2.5, "unpacked bytes per compressed byte"),
}
_SIZES = ("image_bytes", "unpacked_bytes", "model_bytes", "snapshot_bytes")


@dataclass(frozen=True)
class Input:
    value: float
    source: str  # given | measured | assumed | example
    why: str = ""


@dataclass(frozen=True)
class Plan:
    arm: str
    scenario: str
    host: str
    inputs: dict[str, Input]
    model: Model
    forecast: Forecast
    floors: dict[str, float]
    checks: list[dict[str, Any]]  # hold-out rows; empty where one size was measured
    breakevens: dict[str, Any]
    traffic: dict[str, Any]
    advice: list[Advice] = field(default_factory=list)

    @property
    def error_share(self) -> float | None:
        """The worst error on a held-out size, unsigned; None where fewer than two sizes were left
        to fit."""
        return max(
            (abs(c["error_share"]) for c in self.checks if not c["from_one_size"]), default=None
        )

    def as_json(self) -> dict[str, Any]:
        return {
            "arm": self.arm,
            "scenario": self.scenario,
            "host": self.host,
            "inputs": {k: asdict(v) for k, v in self.inputs.items()},
            "forecast": self.forecast.as_json(),
            "floors": self.floors,
            "hold_out": self.checks,
            "error_share": self.error_share,
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
    example: bool = False,
) -> Plan:
    """`example`: what is given are a lesson's values, not the reader's, and every output says so.
    `given` may hold any of _SIZES, link_bytes_per_s, disk_bytes_per_s, rate_per_s,
    price_per_gpu_hour, and the names of ASSUMPTIONS; None is not given.

    Raises BadInput without a good trial of the arm, or for a name or value that makes no sense."""
    known = {
        *_SIZES,
        "link_bytes_per_s",
        "disk_bytes_per_s",
        "rate_per_s",
        "price_per_gpu_hour",
        *ASSUMPTIONS,
    }
    for name, value in given.items():
        if name not in known:
            raise BadInput(f"no input called {name!r}", fix="one of: " + ", ".join(sorted(known)))
        if value is not None and not 0 <= value < float("inf"):
            raise BadInput(f"{name} must be 0 or more, not {value}", fix=f"give {name}")
    name = arm or _arm_of(runs)
    mine = [r for r in runs if r.of_arm(name)]
    model = model_of(runs, name)
    inputs = _inputs(mine, name, {k: v for k, v in given.items() if v is not None}, model)
    if example:
        inputs = {
            k: Input(i.value, EXAMPLE, "replace it by your own") if i.source == GIVEN else i
            for k, i in inputs.items()
        }
    values = {k: i.value for k, i in inputs.items()}
    forecast = model.predict(
        {k: values[k] for k in _SIZES if k in values},
        link_bytes_per_s=values.get("link_bytes_per_s"),
        disk_bytes_per_s=values.get("disk_bytes_per_s"),
    )
    floors = _floors(mine[0], values, model.scenario, forecast)
    checks = hold_out(mine, name) if _sizes_measured(model) > 1 else []
    forecast = _honest(
        forecast,
        floors,
        max((abs(c["error_share"]) for c in checks if not c["from_one_size"]), default=0.0),
    )
    breakevens = _breakevens(forecast, values)
    cold = _cold_starts(mine, name, forecast)
    waits = _traffic(values, cold, trace, traffic, seed)
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
    )


def untold(runs: Sequence[Run], arm: str = "") -> list[str]:
    """What the records of an arm do not tell of their question, so that nobody knows whether all of
    them ask the same."""
    name = arm or _arm_of(runs)
    asked = [question.asked(r, name) for r in runs if r.of_arm(name)]
    return list(
        dict.fromkeys(
            field
            for other in asked[1:]
            for field in question.differences(asked[0], other, but=question.SIZES).unknown
        )
    )


def _honest(forecast: Forecast, floors: Mapping[str, float], error_share: float) -> Forecast:
    """No phase below its floor, and a range of the total no narrower than the error on held-out
    sizes."""
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
    raised = {"low_s": 0.0, "high_s": 0.0, "seconds": 0.0}
    for f in phases.values():
        raised = {k: v + getattr(f, k) for k, v in raised.items()}
    total = raised["seconds"]
    return Forecast(
        phases,
        total,
        min(raised["low_s"], total / (1 + error_share)),
        max(raised["high_s"], total * (1 + error_share)),
        tuple(notes),
    )


def _arm_of(runs: Sequence[Run]) -> str:
    names = [n for r in runs for n in r.arm_names if r.of_arm(n)]
    if not names:
        raise BadInput(
            "no record holds a good trial",
            why="a forecast is fitted from measured starts",
            fix=(
                "labkit plan --measure, or labkit run naive --preset tiny --blocks 3 and --preset"
                " small"
            ),
        )
    return "naive" if "naive" in names else max(dict.fromkeys(names), key=names.count)


def _sizes_measured(model: Model) -> int:
    return max((len(f.sizes) for f in model.fits.values() if f.driver), default=1)


def _inputs(
    runs: Sequence[Run], arm: str, given: Mapping[str, float], model: Model
) -> dict[str, Input]:
    seen = [sizes_of(t) for r in runs for t in r.of_arm(arm)]
    largest = {k: max(s[k] for s in seen if k in s) for k in _SIZES if any(k in s for s in seen)}
    made: dict[str, Input] = {}
    for name in _SIZES:
        if name in given:
            made[name] = Input(given[name], GIVEN)
        elif name == "unpacked_bytes" and "image_bytes" in given:
            ratios = [
                s["unpacked_bytes"] / s["image_bytes"]
                for s in seen
                if "unpacked_bytes" in s and "image_bytes" in s
            ]
            made[name] = (
                Input(
                    given["image_bytes"] * stats.median(ratios),
                    MEASURED,
                    f"× {stats.median(ratios):.2f}, as the image measured",
                )
                if ratios
                else Input(
                    given["image_bytes"] * ASSUMPTIONS["unpacked_per_image"][0],
                    ASSUMED,
                    "2.5 × the image",
                )
            )
        elif name in largest:
            made[name] = Input(largest[name], MEASURED, "as in the largest record")
    if "snapshot_bytes" not in made and "model_bytes" in made:
        made["snapshot_bytes"] = Input(
            made["model_bytes"].value,
            ASSUMED,
            "the model's bytes alone: the server's other memory comes on top",
        )
    for name, resource in (("link_bytes_per_s", "link"), ("disk_bytes_per_s", "disk")):
        recorded = [
            f.resource_bytes_per_s
            for f in model.fits.values()
            if f.resource == resource and f.resource_bytes_per_s
        ]
        measured = (
            [
                r.floors["disk_read_bytes_per_s"]
                for r in runs
                if r.floors.get("disk_read_bytes_per_s")
            ]
            if resource == "disk"
            else []
        )
        if name in given:
            made[name] = Input(given[name], GIVEN)
        elif recorded or measured:
            made[name] = Input(
                stats.median(recorded or measured),
                MEASURED,
                "as in the records"
                + (" (an emulated link or loopback)" if resource == "link" else ""),
            )
    for name in ("rate_per_s", "price_per_gpu_hour"):
        if name in given:
            made[name] = Input(given[name], GIVEN)
    for name, (assumed, why) in ASSUMPTIONS.items():
        if name != "unpacked_per_image":
            made[name] = (
                Input(given[name], GIVEN) if name in given else Input(assumed, ASSUMED, why)
            )
    return made


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


def _breakevens(forecast: Forecast, value: Mapping[str, float]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    skipped_s = sum(forecast.phases[p].seconds for p in _SKIPPED if p in forecast.phases)
    if value.get("disk_bytes_per_s") and "snapshot_bytes" in value:
        made["snapshot"] = {
            "skipped_s": skipped_s,
            **breakeven.snapshot(
                skipped_s,
                value["snapshot_bytes"],
                value["disk_bytes_per_s"],
                value["restore_fixed_s"],
            ).as_json(),
        }
    if value.get("rate_per_s") and value.get("price_per_gpu_hour"):
        made["cost"] = asdict(
            breakeven.cost(
                value["rate_per_s"],
                forecast.total_s,
                value["keep_alive_s"],
                value["price_per_gpu_hour"],
            )
        )
    if value.get("rate_per_s"):
        made["mostly_up_rate_per_s"] = breakeven.rate_for_share(
            0.9, forecast.total_s, value["keep_alive_s"]
        )
    return made


def _cold_starts(runs: Sequence[Run], arm: str, forecast: Forecast) -> list[float]:
    """The measured starts' spread around their own run's median, moved to the forecast."""
    shares = []
    for run in runs:
        totals = [t.total_s for t in run.of_arm(arm) if t.total_s]
        middle = stats.median(totals) if totals else 0.0
        shares += [t / middle for t in totals if middle]
    return [forecast.total_s * s for s in shares]


def _traffic(
    value: Mapping[str, float],
    cold_s: Sequence[float],
    trace: Sequence[float] | None,
    kind: str,
    seed: int,
) -> dict[str, Any]:
    if trace is None and not value.get("rate_per_s"):
        return {}
    arrivals = (
        list(trace)
        if trace is not None
        else traces.TRACES[kind](value["rate_per_s"], value["duration_s"], seed=seed)
    )
    if not arrivals:
        return {}
    base = {
        "max_replicas": int(value["max_replicas"]),
        "concurrency": max(1, int(value["concurrency"])),
    }
    policies = {
        "scale to zero": queueing.Policy(value["keep_alive_s"], 0, **base),
        "one always on": queueing.Policy(value["keep_alive_s"], 1, **base),
    }
    rows = {}
    for label, policy in policies.items():
        row = queueing.replay(arrivals, cold_s, value["service_s"], policy, seed).as_json()
        if value.get("price_per_gpu_hour") is not None:
            row["cost"] = row["gpu_hours"] * value["price_per_gpu_hour"]
        rows[label] = row
    return {
        "trace": "the reader's" if trace is not None else f"{kind}, generated",
        "policies": rows,
        "label": queueing.LABEL,
    }


#: Keep-alive times of the trade-off, in seconds; the last keeps one replica up for good.
KEEP_ALIVES_S = (0.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, float("inf"))


def tradeoff(
    runs: Sequence[Run],
    plan: Plan,
    *,
    trace: Sequence[float] | None = None,
    traffic: str = "poisson",
    keep_alives_s: Sequence[float] = KEEP_ALIVES_S,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """GPU-hours against waiting for each keep-alive time; `inf` is one replica always on.
    Simulated. Raises BadInput without traffic."""
    value = {k: i.value for k, i in plan.inputs.items()}
    if trace is None and not value.get("rate_per_s"):
        raise BadInput("no traffic to replay", fix="give rate_per_s, or a trace")
    arrivals = (
        list(trace)
        if trace is not None
        else traces.TRACES[traffic](value["rate_per_s"], value["duration_s"], seed=seed)
    )
    cold_s = _cold_starts([r for r in runs if r.of_arm(plan.arm)], plan.arm, plan.forecast)
    rows = []
    for keep in keep_alives_s:
        always = keep == float("inf")  # further replicas still come and go
        policy = queueing.Policy(
            value["keep_alive_s"] if always else keep,
            int(always),
            int(value["max_replicas"]),
            max(1, int(value["concurrency"])),
        )
        rows.append(
            {
                "keep_alive_s": keep,
                **queueing.replay(arrivals, cold_s, value["service_s"], policy, seed).as_json(),
            }
        )
    return rows


def _check_line(check: Mapping[str, Any]) -> str:
    """One size left out of the fit: what was predicted for it, and what was measured."""
    how = ""
    if check["from_one_size"]:
        how = ", from one size"
    elif check["beyond"]:
        how = ", extrapolated"
    return (
        f"{printable.line(check['preset'] or check['run'])} {show_s(check['predicted_s'])} against"
        f" {show_s(check['measured_s'])} measured ({check['error_share']:+.0%}{how})"
    )


def show(plan: Plan) -> str:
    """The plan in words."""
    from labkit.core.stdout import table

    lines = [
        printable.line(
            f"Forecast for {plan.arm}, {plan.scenario}, from starts measured on {plan.host}"
        ),
        "",
    ]
    lines.append(
        table(
            [[k, _value(k, i.value), i.source, i.why] for k, i in plan.inputs.items()],
            ["input", "value", "source", "why"],
        )
    )
    f = plan.forecast
    rows = [
        [
            p,
            show_s(x.seconds),
            f"{show_s(x.low_s)} – {show_s(x.high_s)}",
            show_s(plan.floors[p]) if p in plan.floors else "",
            x.how,
        ]
        for p, x in f.phases.items()
    ]
    rows.append(["total", show_s(f.total_s), f"{show_s(f.low_s)} – {show_s(f.high_s)}", "", ""])
    lines += ["", table(rows, ["phase", "predicted", "range", "floor", "model"]), ""]
    if plan.checks:
        lines += [
            "Left out of the fit, then predicted: " + "; ".join(_check_line(c) for c in plan.checks)
        ]
        if plan.error_share is None:
            lines += ["A third size would tell the model's error: labkit plan --measure."]
    else:
        lines += [
            "One size was measured: the model's error is not known. labkit plan --measure adds"
            " sizes."
        ]
    lines += [f"note: {n}" for n in f.notes]
    return "\n".join([*lines, *_show_breakevens(plan), *_show_traffic(plan), *_show_advice(plan)])


def _value(name: str, value: float) -> str:
    if name.endswith("bytes_per_s"):
        return show_rate(value)
    if name.endswith("_bytes"):
        return show_bytes(value)
    if name == "rate_per_s":
        return f"{value * 3600:.3g}/h"
    return show_s(value) if name.endswith("_s") else f"{value:g}"


def _show_breakevens(plan: Plan) -> list[str]:
    lines, found = [], plan.breakevens
    rests = (
        f" (rests on an assumed snapshot of {show_bytes(plan.inputs['snapshot_bytes'].value)})"
        if "snapshot" in found and plan.inputs["snapshot_bytes"].source == ASSUMED
        else ""
    )
    if "snapshot" in found:
        s = found["snapshot"]
        verdict = (
            f"wins by {show_s(s['saved_s'])}" if s["wins"] else f"loses by {show_s(-s['saved_s'])}"
        )
        lines.append(
            f"A snapshot {verdict}: it skips {show_s(s['skipped_s'])} and takes"
            f" {show_s(s['restore_s'])}; above {show_bytes(s['most_bytes'])} it no longer"
            f" pays{rests}."
        )
    if "mostly_up_rate_per_s" in found:
        lines.append(
            f"From {found['mostly_up_rate_per_s'] * 3600:.3g} requests an hour on, a replica kept"
            f" {show_s(plan.inputs['keep_alive_s'].value)} is up 90 % of the time anyway."
        )
    if "cost" in found:
        c = found["cost"]
        price = c["price_of_a_waited_second"]
        lines.append(
            f"Scale to zero saves {c['saved_per_day']:.2f} a day of {c['always_on_per_day']:.2f}"
            + (
                f": worth it while a waited second costs you less than {price:.4g}."
                if price
                else "."
            )
        )
    return ["", "Break-even", *lines] if lines else []


def _show_traffic(plan: Plan) -> list[str]:
    from labkit.core.stdout import table

    if not plan.traffic:
        return [
            "",
            "No traffic given (--rate 120/h or --trace FILE): waiting and GPU-hours are left out.",
        ]
    rows = [
        [
            name,
            r["requests"],
            show_s(r["p50_wait_s"]),
            show_s(r["p95_wait_s"]),
            show_s(r["p99_wait_s"]),
            f"{r['cold_share']:.1%}",
            r["cold_starts"],
            f"{r['gpu_hours']:.1f}",
            f"{r['cost']:.2f}" if "cost" in r else "",
        ]
        for name, r in plan.traffic["policies"].items()
    ]
    return [
        "",
        f"Waiting and cost – {plan.traffic['label']}; trace: {plan.traffic['trace']}",
        table(
            rows,
            [
                "policy",
                "requests",
                "p50 wait",
                "p95 wait",
                "p99 wait",
                "met a start",
                "starts",
                "GPU-hours",
                "cost",
            ],
        ),
    ]


def _show_advice(plan: Plan) -> list[str]:
    from labkit.core.stdout import table

    rows = [
        [
            a.rank,
            a.title,
            f"{'' if a.trust == 'measured' else '≤ '}{show_s(a.gain_s)}",
            a.trust,
            f"{a.effort}/5",
            a.lesson,
            a.how,
        ]
        for a in plan.advice
    ]
    return [
        "",
        "What to do first (gain ÷ effort; gains overlap, so measure again after each)",
        table(rows, ["", "do", "gain", "trust", "effort", "lesson", "how it is known"]),
    ]

"""A plan in words: every number with where it came from, its range and its floor.

    print(show(plan))

Lesson: notebooks/09_decide."""

from __future__ import annotations

from labkit.core import printable
from labkit.core.json_types import JsonMapping
from labkit.core.stdout import table
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.decide.inputs import ASSUMED
from labkit.decide.plan import Plan


def _check_line(check: JsonMapping) -> str:
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
    lines = []
    if snapshot := plan.breakevens.get("snapshot"):
        needs = plan.inputs["snapshot_bytes"]
        rests = (
            f" (rests on an assumed snapshot of {show_bytes(needs.value)})"
            if needs.source == ASSUMED
            else ""
        )
        verdict = "wins" if snapshot["wins"] else "loses"
        lines.append(
            f"A snapshot {verdict} by {show_s(abs(snapshot['saved_s']))}: it skips"
            f" {show_s(snapshot['skipped_s'])} and takes {show_s(snapshot['restore_s'])}; above"
            f" {show_bytes(snapshot['most_bytes'])} it no longer pays{rests}."
        )
    if "mostly_up_rate_per_s" in plan.breakevens:
        per_hour = plan.breakevens["mostly_up_rate_per_s"] * 3600
        lines.append(
            f"From {per_hour:.3g} requests an hour on, a replica kept"
            f" {show_s(plan.inputs['keep_alive_s'].value)} is up 90 % of the time anyway."
        )
    if cost := plan.breakevens.get("cost"):
        price = cost["price_of_a_waited_second"]
        worth = f": worth it while a waited second costs you less than {price:.4g}" if price else ""
        lines.append(
            f"Scale to zero saves {cost['saved_per_day']:.2f} a day of"
            f" {cost['always_on_per_day']:.2f}{worth}."
        )
    return ["", "Break-even", *lines] if lines else []


def _show_traffic(plan: Plan) -> list[str]:
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

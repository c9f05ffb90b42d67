"""A plan in words: every number with where it came from, its range and its floor.

    print(show(plan))

Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labkit.core import printable
from labkit.core.json_types import JsonMapping
from labkit.core.stdout import table
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.decide.inputs import ASSUMED
from labkit.decide.plan import Plan
from labkit.decide.predict import WHY_NONE, Forecast
from labkit.decide.reach import LEAST_STEP, UNKNOWN_STEP


def check_line(check: JsonMapping) -> str:
    """One size left out of the fit: what was predicted for it, and what was measured."""
    how = _how(check)
    how = f", {how}" if how else ""
    return (
        f"{printable.line(check['preset'] or check['run'])} {show_s(check['predicted_s'])} against"
        f" {show_s(check['measured_s'])} measured ({check['error_share']:+.0%}{how})"
    )


def origin(plan: Plan) -> str:
    """Where the starts were measured; recorded elsewhere is said."""
    if plan.recorded_on:
        return f"RECORDED on another host ({plan.recorded_on}), nothing measured on this one"
    return f"from starts measured on {plan.host}"


def _how(check: JsonMapping) -> str:
    if check["from_one_size"]:
        return "a guess from one size"
    if check["beyond"]:
        return f"extrapolated {_times(check['factor'])}"
    return "between the others" if check["unseen"] else "both sizes known, not together"


def total_words(forecast: Forecast) -> tuple[str, str]:
    """(total, range), or that there is none."""
    if forecast.refused:
        return "no figure", ""
    total_s, low_s, high_s = forecast.total()
    return show_s(total_s), f"{show_s(low_s)} – {show_s(high_s)}"


def error_words(plan: Plan) -> str:
    """What is known of the error of this forecast, and of no other: within the sizes measured that
    of sizes left out between them, beyond them that of sizes left out beyond the others, how far
    that was, and how the range was widened for the rest of the way."""
    if plan.forecast.refused:
        return "none is known so far from what was measured"
    if plan.error_share is None:
        return (
            "not known, fewer than three sizes were measured (labkit study measures them)"
            + _widened(plan, UNKNOWN_STEP)
        )
    error, beyond = f"{plan.error_share:.0%}", any(c["beyond"] for c in plan.tested)
    if not plan.extrapolated:
        kind = "extrapolated from the others" if beyond else "between the others"
        return f"{error} at most on sizes left out of the fit, {kind}"
    furthest = max((c["factor"] for c in plan.tested), default=1.0)
    if beyond and furthest > 1:
        known = f"on sizes left out it was {error} at most, {_times(furthest)}"
    elif beyond:
        known = f"on sizes left out it was {error} at most, below the others"
    else:
        known = f"on sizes left out between the others it was {error} at most, beyond them unknown"
    return known + _widened(plan, LEAST_STEP)


def _widened(plan: Plan, least: float) -> str:
    if not plan.extrapolated:
        return ""
    step = max(plan.error_share or 0.0, least)
    return (
        f"; this one is extrapolated {_times(plan.forecast.factor)}, and its range takes"
        f" ±{step:.0%} once more for each doubling"
    )


def _times(factor: float) -> str:
    if factor <= 1:
        return "below the smallest size"
    return f"to {factor:.{0 if factor >= 10 else 1}f} times the largest size"


def show_hold_out(rows: Sequence[JsonMapping], source: str) -> str:
    """Predicted against measured, a size a line; and whether the measurement lay in the range."""
    cells = [
        [
            printable.line(r["preset"] or r["run"]),
            show_s(r["predicted_s"]),
            show_s(r["measured_s"]),
            f"{r['error_share']:+.0%}",
            "yes" if r["inside"] else "no",
            _how(r),
        ]
        for r in rows
    ]
    head = ["size", "predicted", "measured", "error", "in its range", "how"]
    return f"Predicted from {source} without the size itself\n\n{table(cells, head)}"


def show(plan: Plan, source: str = "", missing: Mapping[str, Sequence[str]] | None = None) -> str:
    """The plan in words. `source`: what it was fitted from; `missing`: what the reader did not
    give, by what that means."""
    lines = [printable.line(f"Forecast for {plan.arm}, {plan.scenario}, {origin(plan)}")]
    lines += [f"Fitted from {source}."] if source else []
    lines += [f"Not given: {', '.join(of)} – {meaning}." for meaning, of in (missing or {}).items()]
    lines += [""]
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
    rows += [[p, "no figure", "", "", reason] for p, reason in f.refused.items()]
    rows.append(["total", *total_words(f), "", ""])
    lines += ["", table(rows, ["phase", "predicted", "range", "floor", "model"]), ""]
    if f.refused:
        lines += [f"No total: {WHY_NONE}. Measure nearer: {f.fix}"]
    if plan.checks:
        lines += ["Left out of the fit, then predicted: " + "; ".join(map(check_line, plan.checks))]
    lines += [f"Error of the total: {error_words(plan)}."]
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
    if plan.forecast.refused:
        return []
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
        "What to do first (gain ÷ effort; each on top of the measured ones above it)",
        table(rows, ["", "do", "gain", "trust", "effort", "lesson", "how it is known"]),
    ]

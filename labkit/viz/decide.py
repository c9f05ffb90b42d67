"""Figures of a decision: the forecast by phase, and what keeping a replica costs against whom it
makes wait.

    forecast(plan)                 a bar a phase, its range, its floor; measured sizes it rests on
        in the caption
    tradeoff(rows)                 GPU-hours against mean and p95 waiting, one point a keep-alive
        time; stamped "simulated"

Lesson: notebooks/09_decide.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from labkit.core.json_types import JsonObject
from labkit.core.units import show_s
from labkit.decide.inputs import GIVEN
from labkit.decide.plan import Plan
from labkit.decide.plan_text import error_words, origin, total_words
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH_IN = 9.0


def forecast(plan: Plan) -> Picture:
    """Predicted seconds of each phase with the model's range and the floor at the reader's link and
    disk."""
    rows = [(p, f) for p, f in plan.forecast.phases.items() if p in look.PHASE_COLOURS]
    total = _total(plan)
    text = "\n".join(
        [
            f"Forecast for {plan.arm}, {plan.scenario}: {total}",
            *(
                f"{p:12} {show_s(f.seconds):>9}  {show_s(f.low_s)} – {show_s(f.high_s)}"
                + (f"  floor {show_s(plan.floors[p])}" if p in plan.floors else "")
                for p, f in rows
            ),
            *(f"{p:12} no figure: {why}" for p, why in plan.forecast.refused.items()),
            _caption(plan),
        ]
    )
    longest = max(rows, key=lambda r: r[1].seconds)[0] if rows else ""
    return Picture(
        lambda theme: _draw_forecast(plan, rows, total, theme),
        alt=f"Predicted cold start by phase, {total} in all; the longest phase is {longest}."
        if not plan.forecast.refused
        else f"Predicted phases, {total} in all. Nearer: {plan.forecast.fix}",
        text=text,
        name="forecast",
    )


def _total(plan: Plan) -> str:
    """Total and range, or that there is none."""
    total, spread = total_words(plan.forecast)
    return f"{total} ({spread})" if spread else f"{total} so far from what was measured"


def _caption(plan: Plan) -> str:
    given = ", ".join(
        k.replace("_bytes_per_s", "").replace("_bytes", "").replace("_per_s", "").replace("_", " ")
        for k, i in plan.inputs.items()
        if i.source == GIVEN
    )
    return (
        f"predicted, not measured · {origin(plan)} · error of the total: {error_words(plan)}"
        + (f", nearer sizes would tell: {plan.forecast.fix}" if plan.forecast.fix else "")
        + " ·"
        f" given by you: {given or 'nothing, all as measured'}"
    )


def _draw_forecast(plan: Plan, rows: Sequence[tuple[str, Any]], total: str, theme: Theme) -> Figure:
    caption = textwrap.wrap(_caption(plan), 145)
    stamped = bool(plan.recorded_on)
    head_in, foot_in = 0.6 + 0.3 * stamped, 0.74 + 0.17 * (len(caption) - 1)
    refused = list(plan.forecast.refused)
    height_in = head_in + foot_in + 0.36 * (len(rows) + len(refused)) + 0.1
    left_in, right_in = 1.3, 2.1
    figure = look.blank(_WIDTH_IN, height_in)
    axes = look.axes(figure, left_in, right_in, head_in, foot_in)
    named = [p.replace("_", " ") for p in (*(p for p, _ in rows), *refused)]
    axes.set_ylim(len(named) - 0.5, -0.5)
    axes.set_yticks(range(len(named)), named)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds of the phase", fontsize=look.BASE_PT - 1)
    look.title(figure, f"Predicted cold start: {total}", 1 - 0.29 / height_in)
    if stamped:
        mark = f"recorded on {plan.recorded_on}"
        look.boxed(figure, theme, mark, 1 - 0.63 / height_in, look.BASE_PT)
    for y, (phase, f) in enumerate(rows):
        axes.barh(y, f.seconds, height=0.55, color=look.PHASE_COLOURS[phase])
        axes.plot(
            [f.low_s, f.high_s], [y, y], "-", color=theme.ink, lw=1.4, marker="|", ms=7, mew=1.4
        )
        floor_s = plan.floors.get(phase)
        if floor_s:
            axes.plot(
                [0, floor_s],
                [y + 0.38, y + 0.38],
                "-",
                color=theme.ink,
                lw=2,
                solid_capstyle="butt",
            )
        words = show_s(f.seconds) + (f", floor {show_s(floor_s)}" if floor_s else "")
        axes.text(
            1.02,
            y,
            words,
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="center",
            fontsize=look.BASE_PT - 0.5,
        )
    for y in range(len(rows), len(named)):
        axes.text(
            0.01,
            y,
            "no figure: too far from what was measured",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=look.BASE_PT - 0.5,
        )
    axes.set_xlim(0, max([f.high_s for _, f in rows] + [1e-9]) * 1.04)
    look.caption(figure, theme, caption, 0.085 / height_in)
    return figure


def tradeoff(rows: Sequence[JsonObject], plan: Plan | None = None) -> Picture:
    """One point a keep-alive time: GPU-hours of the whole trace against waiting. `plan`: whose
    starts may be recorded elsewhere, which is then said."""
    note = f" · starts recorded on {plan.recorded_on}" if plan and plan.recorded_on else ""
    text = "\n".join(
        [
            "Keep-alive, GPU-hours and waiting (simulated)" + note,
            *(
                f"{_keep(r):>10}  {r['gpu_hours']:7.2f} GPU-hours  mean {show_s(r['mean_wait_s'])},"
                f" p95 {show_s(r['p95_wait_s'])}, p99 {show_s(r['p99_wait_s'])},"
                f" {r['cold_share']:.1%} of {r['requests']} requests met a start"
                for r in rows
            ),
        ]
    )
    ends = (rows[0], rows[-1]) if rows else ()
    alt = (
        "GPU-hours against waiting, simulated. "
        + "; ".join(
            f"kept {_keep(r)}: {r['gpu_hours']:.1f} GPU-hours, mean wait {show_s(r['mean_wait_s'])}"
            for r in ends
        )
        + "."
    )
    return Picture(
        lambda theme: _draw_tradeoff(rows, note, theme), alt=alt, text=text, name="tradeoff"
    )


def _keep(row: JsonObject) -> str:
    if math.isinf(row["keep_alive_s"]):
        return "always on"
    return show_s(row["keep_alive_s"]) if row["keep_alive_s"] else "0 s"


def _draw_tradeoff(rows: Sequence[JsonObject], note: str, theme: Theme) -> Figure:
    height_in, left_in, foot_in, head_in, right_in = 4.6, 0.85, 0.95, 1.0, 1.9
    figure = look.blank(_WIDTH_IN, height_in)
    axes = look.axes(figure, left_in, right_in, head_in, foot_in)
    axes.grid(True)
    axes.set_axisbelow(True)
    lines = (
        ("mean_wait_s", "mean wait", look.ARM_COLOURS[0], "o", "-"),
        ("p95_wait_s", "p95 wait", look.ARM_COLOURS[1], "s", "--"),
    )
    for key, label, colour, marker, dash in lines:
        axes.plot(
            [r["gpu_hours"] for r in rows],
            [r[key] for r in rows],
            dash,
            marker=marker,
            color=colour,
            ms=6,
            lw=1.4,
            label=label,
        )
    top = max([r["p95_wait_s"] for r in rows] + [r["mean_wait_s"] for r in rows] + [1e-9])
    hours = [r["gpu_hours"] for r in rows]
    widest = max(hours) - min(hours) or 1.0
    axes.set_ylim(-0.06 * top, top * 1.2)
    axes.set_xlim(min(hours) - 0.06 * widest, max(hours) + 0.22 * widest)
    named: list[tuple[float, float]] = []
    for r in reversed(rows):  # always-on first; another label only where there is room for it
        x, y = (r["gpu_hours"] - min(hours)) / widest, r["mean_wait_s"] / top
        if all(abs(x - a) > 0.13 or abs(y - b) > 0.08 for a, b in named):
            named.append((x, y))
            axes.annotate(
                _keep(r),
                (r["gpu_hours"], r["mean_wait_s"]),
                xytext=(7, 5),
                textcoords="offset points",
                fontsize=look.BASE_PT - 1.5,
            )
    axes.set_xlabel("GPU-hours over the trace", fontsize=look.BASE_PT - 1)
    axes.set_ylabel("seconds waited", fontsize=look.BASE_PT - 1)
    axes.legend(
        loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=look.BASE_PT - 1
    )
    look.title(figure, "What keeping a replica costs, and whom it makes wait", 1 - 0.27 / height_in)
    look.boxed(figure, theme, "SIMULATED", 1 - 0.65 / height_in, look.BASE_PT)
    figure.text(
        0.012,
        0.09 / height_in,
        f"{rows[0]['requests']} requests replayed through a queue, cold starts drawn from measured"
        f" ones moved to the forecast · labels: keep-alive time{note}",
        fontsize=look.BASE_PT - 2,
        color=theme.faint,
        va="bottom",
    )
    return figure

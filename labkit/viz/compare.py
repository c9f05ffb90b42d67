"""Arms against each other: every raw point (strip), medians with intervals and ratios (compare),
phases stacked (phases).

    strip(run)      one dot a trial, the median and its bootstrap interval; failed trials are
        crosses at the edge, never left out
    compare(run)    medians, and the paired ratio to a baseline; "not significant" where its
        interval holds 1 or n < 5
    phases(run)     the median trial of each arm, its phases end to end

Arms of different scenarios, links or cache states are refused, as by `labkit compare`. Lesson:
notebooks/01_anatomy."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from labkit.core import stats
from labkit.core.records import Run, Trial
from labkit.core.timeline import PHASES
from labkit.core.units import show_s
from labkit.errors import BadInput, IncomparableRecords
from labkit.viz import captions
from labkit.viz import theme as look
from labkit.viz.theme import Picture, Theme

_WIDTH_IN = 9.0
_ROW_IN = 0.46
_LABEL_CHARS = 24


def strip(run: Run, arms: Sequence[str] | None = None) -> Picture:
    """Raw trials of each arm. Raises BadInput for a run without trials."""
    names = _arms(run, arms)
    head = _headed("Time to first token, every trial", run)
    text = f"{head}\n{captions.strip_text(run, names)}\n{_caption(run, names)}"
    return Picture(
        lambda theme: _draw_strip(run, names, theme),
        alt=_headed("Strip plot of raw trials.", run)
        + " "
        + captions.strip_text(run, names).replace("\n", ". "),
        text=text,
        name="strip",
    )


def compare(
    run: Run, against: str = "", arms: Sequence[str] | None = None, phase: str = ""
) -> Picture:
    """Median of each arm with its interval, and its paired ratio to `against` (default: the first
    arm). `phase`: of one phase only."""
    names = _arms(run, arms)
    base = against or names[0]
    if base not in names:
        raise BadInput(f"no arm {base!r} in run {run.id}", fix="one of: " + ", ".join(names))
    lines = [_compared(run, name, base, phase) for name in names]
    text = "\n".join(
        [
            _headed(
                f"{phase or 'Time to first token'}, medians with 95 % intervals, against {base}",
                run,
            )
        ]
        + [f"{c['arm']}: {c['captions']}" for c in lines]
        + [_caption(run, names)]
    )
    return Picture(
        lambda theme: _draw_compare(run, names, lines, base, phase, theme),
        alt=_headed("Comparison plot.", run)
        + " "
        + "; ".join(f"{c['arm']}: {c['captions']}" for c in lines)
        + ".",
        text=text,
        name="compare",
    )


def phases(run: Run, arms: Sequence[str] | None = None) -> Picture:
    """Stacked phases of each arm's median trial. Time that two phases share is drawn once, for the
    one that began first."""
    shown = [captions.choose(run, name) for name in _arms(run, arms) if run.of_arm(name)]
    text = "\n\n".join(captions.waterfall_text(s) for s in shown)
    alt = (
        "Stacked phases of the median trial of each arm. "
        + "; ".join(captions.title(s) for s in shown)
        + "."
    )
    return Picture(lambda theme: _draw_phases(run, shown, theme), alt=alt, text=text, name="phases")


def stamp(run: Run) -> str:
    """What must stand on every figure and table of this run, or ""."""
    return (
        captions.stamp(
            captions.Shown(
                run.trials[0],
                replayed_from=captions.replayed_from(run),
                simulated=captions.simulated(run),
            )
        )
        if run.trials
        else ""
    )


def _headed(title: str, run: Run) -> str:
    return f"{title}   [{stamp(run)}]" if stamp(run) else title


def _arms(run: Run, arms: Sequence[str] | None) -> list[str]:
    names = list(arms or run.arm_names)
    unknown = [n for n in names if n not in run.arm_names]
    if unknown or not names:
        raise BadInput(
            (
                f"no arm {', '.join(unknown)!r} in run {run.id}"
                if unknown
                else f"run {run.id} has no arms"
            ),
            fix="one of: " + ", ".join(run.arm_names),
        )
    return names


def _caption(run: Run, names: Sequence[str]) -> str:
    shown = [captions.choose(run, n) for n in names if run.of_arm(n)]
    if not shown:
        return captions.host_name(run.host, captions.device(run))
    states = sorted({t.cache.get("state", "unverified") for n in names for t in run.of_arm(n)})
    facts = [*([f"model {shown[0].model}"] if shown[0].model else []), f"cache {'/'.join(states)}"]
    facts += sorted({str(s.arm["scenario"]) for s in shown if s.arm.get("scenario")})
    facts += sorted({captions.link_words(str(s.arm["link"])) for s in shown if s.arm.get("link")})
    counts = sorted({s.n for s in shown})
    facts.append(f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]}–{counts[-1]}")
    failed = sum(s.failed for s in shown)
    facts += [f"{failed} failed"] * bool(failed) + [
        captions.host_name(run.host, captions.device(run))
    ]
    return " · ".join(facts)


def _compared(run: Run, name: str, base: str, phase: str) -> dict[str, Any]:
    times = [t for t in (_time(x, phase) for x in run.of_arm(name)) if t is not None]
    if not times:
        return {
            "arm": name,
            "captions": "no good trial" if not run.of_arm(name) else f"has no phase {phase}",
        }
    low, high = stats.interval(times)
    made: dict[str, Any] = {
        "arm": name,
        "median": stats.median(times),
        "low": low,
        "high": high,
        "n": len(times),
        "note": "",
    }
    if name == base:
        made["note"] = "baseline"
    else:
        try:
            made |= {"ratio": (r := stats.speedup(run, name, base, phase)), "note": _ratio_words(r)}
        except IncomparableRecords:
            raise
        except BadInput as error:
            made["note"] = error.what
    made["captions"] = (
        f"{show_s(made['median'])} ({show_s(low)} – {show_s(high)}), n = {len(times)},"
        f" {made['note']}"
    )
    return made


def _time(trial: Trial, phase: str) -> float | None:
    return trial.phases.get(phase) if phase else trial.total_s


def _ratio_words(r: dict[str, Any]) -> str:
    if not r["significant"]:
        return "not significant" + (
            f" (n = {r['n']} < {stats.MIN_PAIRS})" if r["n"] < stats.MIN_PAIRS else ""
        )
    ratio, low, high = r["median"], r["low"], r["high"]
    if ratio >= 1:
        return f"{ratio:.2f}× faster ({low:.2f}–{high:.2f})"
    return f"{1 / ratio:.2f}× slower ({1 / high:.2f}–{1 / low:.2f})"


def _frame(
    run: Run,
    names: Sequence[str],
    title: str,
    right_in: float,
    theme: Theme,
    legend_in: float = 0.0,
) -> tuple[Any, Any]:
    caption = textwrap.wrap(_caption(run, names), 150)
    mark = stamp(run)
    labels = ["\n".join(textwrap.wrap(n, _LABEL_CHARS, break_long_words=True)[:3]) for n in names]
    head_in, foot_in = 0.55 + (0.36 if mark else 0) + legend_in, 0.74 + 0.17 * (len(caption) - 1)
    row_in = max(_ROW_IN, 0.2 * max(label.count("\n") + 1 for label in labels) + 0.1)
    height_in = head_in + foot_in + row_in * len(names) + 0.1
    left_in = 0.3 + 0.092 * max(len(part) for label in labels for part in label.split("\n"))
    figure = look.blank(_WIDTH_IN, height_in)
    axes = figure.add_axes(
        (
            left_in / _WIDTH_IN,
            foot_in / height_in,
            1 - (left_in + right_in) / _WIDTH_IN,
            1 - (head_in + foot_in) / height_in,
        )
    )
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)
    axes.set_xlabel("seconds since the request", fontsize=look.BASE_PT - 1)
    figure.text(
        0.012,
        1 - 0.27 / height_in,
        title,
        fontsize=look.BASE_PT + 2,
        fontweight="bold",
        va="center",
    )
    look.stamp(figure, theme, mark, 1 - 0.65 / height_in)
    look.caption(figure, theme, caption, 0.085 / height_in)
    return figure, axes


def _colour(run: Run, name: str) -> str:
    """An arm keeps its colour whatever subset is drawn."""
    return look.ARM_COLOURS[run.arm_names.index(name) % len(look.ARM_COLOURS)]


def _draw_strip(run: Run, names: list[str], theme: Theme) -> Any:
    bad = {n: [t.outcome for t in run.of_arm(n, only_ok=False) if not t.ok] for n in names}
    figure, axes = _frame(
        run, names, "Time to first token, every trial", 1.75 if any(bad.values()) else 0.35, theme
    )
    for y, name in enumerate(names):
        good = [t for t in run.of_arm(name) if t.total_s is not None]
        for i, t in enumerate(good):
            # Spread by block, not at random: the order in time stays visible, and the figure is the
            # same every time.
            lift = 0.44 * ((i + 0.5) / len(good) - 0.5) - 0.12
            axes.plot(
                t.total_s, y + lift, "o", ms=6, color=_colour(run, name), mec=theme.ink, mew=0.4
            )
        if good:
            times = [t.total_s or 0 for t in good]
            low, high = stats.interval(times)
            axes.plot([low, high], [y + 0.28, y + 0.28], "-", color=theme.ink, lw=1.3, zorder=4)
            axes.plot(
                [stats.median(times)] * 2,
                [y + 0.18, y + 0.38],
                "-",
                color=theme.ink,
                lw=2.2,
                zorder=4,
            )
        if bad[name]:
            # Beside the axis, not on it: a failed trial has no time.
            kinds = sorted(set(bad[name]))
            axes.text(
                1.02,
                y,
                "\n".join(
                    f"✕ {k}" + (f" ×{bad[name].count(k)}" if bad[name].count(k) > 1 else "")
                    for k in kinds[:3]
                ),
                transform=axes.get_yaxis_transform(),
                ha="left",
                va="center",
                fontsize=look.BASE_PT - 1,
            )
    axes.set_xlim(
        0, max([t.total_s or 0 for n in names for t in run.of_arm(n)], default=1.0) * 1.04 or 1.0
    )
    return figure


def _draw_compare(
    run: Run, names: list[str], lines: list[dict[str, Any]], base: str, phase: str, theme: Theme
) -> Any:
    what = f"Phase {phase}" if phase else "Time to first token"
    figure, axes = _frame(
        run, names, f"{what}: medians with 95 % intervals, against {base}", 3.05, theme
    )
    if phase:
        axes.set_xlabel("seconds", fontsize=look.BASE_PT - 1)
    to_axes = axes.get_yaxis_transform()
    for y, line in enumerate(lines):
        if "median" not in line:
            axes.text(
                1.03,
                y,
                line["captions"],
                transform=to_axes,
                ha="left",
                va="center",
                fontsize=look.BASE_PT - 1,
                color=theme.faint,
            )
            continue
        unclear = line["note"].startswith("not significant")
        colour = _colour(run, line["arm"])
        # Hollow: the difference to the baseline is not significant.
        axes.plot(
            line["median"],
            y,
            "o",
            ms=10,
            color="none" if unclear else colour,
            mec=colour,
            mew=2,
            zorder=3,
        )
        axes.plot(
            [line["low"], line["high"]],
            [y, y],
            "-",
            color=theme.ink,
            lw=1.6,
            zorder=4,
            marker="|",
            ms=9,
            mew=1.6,
        )
        axes.text(
            1.03,
            y - 0.17,
            show_s(line["median"]),
            transform=to_axes,
            ha="left",
            va="center",
            fontweight="bold",
        )
        axes.text(
            1.03,
            y + 0.19,
            line["note"],
            transform=to_axes,
            ha="left",
            va="center",
            fontsize=look.BASE_PT - 1,
            color=theme.faint,
        )
    axes.set_xlim(0, max([line.get("high", 0) for line in lines] + [1e-9]) * 1.06)
    return figure


def _draw_phases(run: Run, shown: list[captions.Shown], theme: Theme) -> Any:
    from matplotlib.patches import Patch

    used = [
        p
        for p in PHASES
        if any(p in s.trial.phases or any(x["name"] == p for x in s.trial.spans) for s in shown)
    ]
    figure, axes = _frame(
        run,
        [s.arm["name"] for s in shown],
        "Where the time goes: the median trial of each arm",
        1.05,
        theme,
        0.3 * (1 + len(used) // 7),
    )
    for y, s in enumerate(shown):
        reached = 0.0
        for row in captions.rows(s.trial):
            for start_s, end_s in row.pieces:
                start = start_s if row.phase == captions.UNACCOUNTED else max(start_s, reached)
                if end_s <= start:
                    continue
                if row.phase == captions.UNACCOUNTED:
                    axes.barh(
                        y,
                        end_s - start,
                        left=start,
                        height=0.5,
                        facecolor="none",
                        edgecolor=theme.faint,
                        hatch="////",
                        linewidth=0.4,
                    )
                    continue
                axes.barh(
                    y,
                    end_s - start,
                    left=start,
                    height=0.5,
                    color=look.PHASE_COLOURS[row.phase],
                    hatch=look.PHASE_HATCHES[row.phase],
                    edgecolor=theme.paper if theme.paper != "none" else theme.ink,
                    linewidth=0.4,
                )
                reached = max(reached, end_s)
        axes.text(
            1.02,
            y,
            show_s(s.trial.total_s or 0),
            transform=axes.get_yaxis_transform(),
            ha="left",
            va="center",
            fontweight="bold",
        )
    axes.set_xlim(0, max(s.trial.total_s or 0 for s in shown) * 1.01)
    keys = [
        Patch(
            facecolor=look.PHASE_COLOURS[p],
            hatch=look.PHASE_HATCHES[p],
            edgecolor=theme.paper if theme.paper != "none" else theme.ink,
            linewidth=0.4,
            label=p.replace("_", " "),
        )
        for p in used
    ]
    keys.append(
        Patch(
            facecolor="none",
            edgecolor=theme.faint,
            hatch="////",
            linewidth=0.4,
            label=captions.UNACCOUNTED,
        )
    )
    axes.legend(
        handles=keys,
        ncols=min(len(keys), 7),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
        frameon=False,
        fontsize=look.BASE_PT - 1.5,
        handlelength=1.6,
        columnspacing=1.2,
        borderaxespad=0.2,
    )
    return figure

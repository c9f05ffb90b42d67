"""What a figure says, as rows and sentences: the text twin, the caption, and which trial is shown.
No matplotlib here.

A waterfall shows one real trial – the one whose total is the median of its arm – because medians of
phases do not add up to the median of totals. Every caption names what the number stands on: cache
state, link, scenario, host, n.

    shown = choose(run, "naive"); print(waterfall_text(shown))

Used by `labkit show`, which starts without matplotlib. Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.records import Run, Trial
from labkit.core.timeline import PHASES
from labkit.core.units import show_s
from labkit.errors import BadInput

UNACCOUNTED = "unaccounted"


@dataclass(frozen=True)
class Row:
    """One line of a waterfall. `pieces`: (start_s, end_s) from t0; a phase may come in several.
    `floor_s`: None = not known."""

    phase: str
    pieces: tuple[tuple[float, float], ...]
    took_s: float
    floor_s: float | None = None

    @property
    def start_s(self) -> float:
        return self.pieces[0][0] if self.pieces else 0.0


@dataclass(frozen=True)
class Shown:
    """A trial with what its caption needs."""

    trial: Trial
    arm: JsonObject = field(default_factory=dict)  # name, stack, scenario, link
    host: JsonObject = field(default_factory=dict)
    n: int = 1  # good trials of the arm this one stands for
    failed: int = 0
    disturbed: int = 0  # of those n
    replayed_from: str = ""
    simulated: str = ""
    device: str = ""  # of the server: cpu, cuda; "" where the record does not tell
    model: str = ""  # the preset, or the model directory's name


def choose(run: Run | Trial, arm: str = "") -> Shown:
    """The median trial of an arm (the first arm by default); a lone Trial stands for itself. Raises
    BadInput without a good trial."""
    if isinstance(run, Trial):
        return Shown(run, {"name": run.arm}, disturbed=int(bool(run.disturbed)))
    if not run.arm_names:
        raise BadInput(f"run {run.id} holds no trial", fix="labkit run naive --out FILE")
    name = arm or run.arm_names[0]
    if name not in run.arm_names:
        raise BadInput(
            f"no arm {name!r} in run {run.id}", fix="one of: " + ", ".join(run.arm_names)
        )
    counted = [t for t in run.of_arm(name) if t.total_s is not None]
    good = sorted(counted, key=lambda t: t.total_s or 0)
    failed = len(run.of_arm(name, only_ok=False)) - len(good)
    if not good:
        outcomes = (
            ", ".join(sorted({t.outcome for t in run.of_arm(name, only_ok=False)})) or "none ran"
        )
        raise BadInput(
            f"no good trial of {name} in run {run.id}: {outcomes}",
            why="a failed trial has no total to draw",
            fix="labkit show RUN prints the outcome and the log of each trial",
        )
    facts = run.arm_named(name) or {"name": name}
    return Shown(
        good[(len(good) - 1) // 2],
        facts,
        run.host,
        len(good),
        failed,
        sum(bool(t.disturbed) for t in good),
        replayed_from(run),
        simulated(run),
        device(run),
        model(run),
    )


def replayed_from(run: Run) -> str:
    """Name of the host a replayed record was made on; "" for a live one. `stack.replay` sets
    it."""
    return str(run.experiment.get("replayed_from", ""))


def simulated(run: Run) -> str:
    """What was simulated, in words, or "": a figure of made-up data says so."""
    return str(run.experiment.get("simulated", ""))


def device(run: Run) -> str:
    """Where the servers of a run computed: "cpu", "cuda"; "" where the record does not tell."""
    return str((run.experiment.get("conditions") or {}).get("device") or "")


def model(run: Run) -> str:
    """What was started: the preset, or the model in its place; "" where the record does not
    tell."""
    conditions = run.experiment.get("conditions") or run.experiment
    if conditions.get("model_dir"):
        return Path(str(conditions["model_dir"])).name
    return str(conditions.get("preset") or "")


def host_name(host: JsonObject, device: str = "") -> str:
    """How a caption calls a host: its card's title, which names cores, memory and GPUs, and whether
    there is none of the latter; beside a GPU, which of the two was used."""
    name = str(host.get("name") or host.get("title") or host.get("id") or "unnamed host")
    if not host.get("gpus"):
        return f"{name}, no GPU"
    return name + (
        f", servers on the {'GPU' if device.startswith('cuda') else 'CPU'}" if device else ""
    )


def rows(trial: Trial) -> list[Row]:
    """Phases in the order of their start, then the unaccounted time. From spans; from phase
    durations where there are none."""
    pieces: dict[str, list[tuple[float, float]]] = {}
    for s in trial.spans:
        if "." not in s["name"] and s["name"] in PHASES:
            pieces.setdefault(s["name"], []).append((float(s["start_s"]), float(s["end_s"])))
    at_s = 0.0
    for phase in PHASES:
        if phase in trial.phases and phase not in pieces:
            if not trial.spans:
                pieces[phase] = [(at_s, at_s + trial.phases[phase])]
                at_s += trial.phases[phase]
            elif phase == "first_token" and trial.total_s is not None:
                pieces[phase] = [(trial.total_s - trial.phases[phase], trial.total_s)]
    found = [
        Row(p, tuple(sorted(v)), trial.phases.get(p, sum(e - s for s, e in v)), trial.floors.get(p))
        for p, v in pieces.items()
    ]
    found.sort(key=lambda r: (r.start_s, PHASES.index(r.phase)))
    if trial.total_s is not None:
        gaps = _gaps([p for r in found for p in r.pieces], trial.total_s)
        unaccounted_s = (
            trial.unaccounted_s if trial.unaccounted_s is not None else sum(e - s for s, e in gaps)
        )
        found.append(Row(UNACCOUNTED, tuple(gaps), unaccounted_s))
    return found


def _gaps(pieces: Iterable[tuple[float, float]], end_s: float) -> list[tuple[float, float]]:
    """Stretches of [0, end_s] in which no phase ran."""
    gaps, reached = [], 0.0
    for start, end in sorted(pieces):
        if start > reached:
            gaps.append((reached, min(start, end_s)))
        reached = max(reached, end)
    if end_s > reached:
        gaps.append((reached, end_s))
    return gaps


def title(shown: Shown) -> str:
    total = shown.trial.total_s
    return f"{shown.arm.get('name', shown.trial.arm)}: " + (
        f"{show_s(total)} from request to first token" if total is not None else shown.trial.outcome
    )


def caption(shown: Shown) -> str:
    """Cache state, link, scenario, host and n: without them a duration means nothing."""
    t, arm = shown.trial, shown.arm
    parts = [f"model {shown.model}"] if shown.model else []
    parts.append(f"cache {t.cache.get('state', 'unverified')}")
    if arm.get("scenario"):
        parts.append(str(arm["scenario"]))
    if arm.get("link"):
        parts.append(link_words(str(arm["link"])))
    parts.append(f"the median trial of n = {shown.n}" if shown.n > 1 else "n = 1")
    if shown.failed:
        parts.append(f"{shown.failed} failed")
    if shown.trial.disturbed:
        parts.append(f"DISTURBED: {shown.trial.disturbed}")
    elif shown.disturbed:
        parts.append(f"{shown.disturbed} disturbed by other work")
    if shown.host:
        parts.append(host_name(shown.host, shown.device))
    return " · ".join(parts)


def link_words(link: str) -> str:
    return (
        "link: loopback, not emulated"
        if link == "loopback"
        else f"link: {link}, emulated on loopback"
    )


def stamp(shown: Shown) -> str:
    """What must stand on the figure in large letters, or ""."""
    if shown.simulated:
        return f"simulated: {shown.simulated}"
    return f"replayed from {shown.replayed_from}" if shown.replayed_from else ""


def columns(row: Row, total_s: float | None) -> tuple[str, str, str]:
    """took · share of the total · floor, as text."""
    part = row.took_s / total_s if total_s else 0.0
    share = "< 1 %" if 0 < part < 0.005 else f"{part * 100:.0f} %"
    if not total_s:
        share = ""
    return show_s(row.took_s), share.rjust(5), show_s(row.floor_s) if row.floor_s else ""


def waterfall_text(shown: Shown) -> str:
    """The text twin of a waterfall."""
    from labkit.core.stdout import table

    lines = [
        [r.phase, show_s(r.start_s) if r.pieces else "", *columns(r, shown.trial.total_s)]
        for r in rows(shown.trial)
    ]
    head = title(shown) + (f"   [{stamp(shown)}]" if stamp(shown) else "")
    return (
        f"{head}\n"
        + table(lines, ["phase", "from", "took", "share", "floor"])
        + f"\n{caption(shown)}"
    )


def waterfall_alt(shown: Shown) -> str:
    longest = sorted(rows(shown.trial), key=lambda r: -r.took_s)[:3]
    parts = ", ".join(f"{r.phase} {show_s(r.took_s)}" for r in longest if r.took_s > 0)
    return f"Waterfall of {title(shown)}. Longest: {parts}. {caption(shown)}." + (
        f" {stamp(shown).capitalize()}." if stamp(shown) else ""
    )


def any_disturbed(trials: Iterable[Trial]) -> bool:
    return any(t.disturbed for t in trials)


def _point(trial: Trial) -> str:
    return show_s(trial.first_token_s) + ("*" if trial.disturbed else "")


def strip_text(run: Run, arms: Sequence[str]) -> str:
    """Every raw point of a strip plot; a star marks one that other work on the machine
    disturbed."""
    from labkit.core import stats

    lines = []
    for arm in arms:
        counted = [t for t in run.of_arm(arm) if t.total_s is not None]
        good = [t.first_token_s for t in counted]
        repeated = [t for t in run.repeated(arm) if t.total_s is not None]
        bad = [t.outcome for t in run.of_arm(arm, only_ok=False) if not t.ok]
        if good:
            low, high = stats.interval(good)
            lines.append(
                f"{arm}: median {show_s(stats.median(good))} ({show_s(low)} – {show_s(high)}), n ="
                f" {len(good)}; "
                + ", ".join(_point(t) for t in counted)
                + ("; measured again: " + ", ".join(map(_point, repeated)) if repeated else "")
                + (" (* disturbed by other work)" if repeated or any_disturbed(counted) else "")
                + (f"; failed: {', '.join(bad)}" if bad else "")
            )
        else:
            lines.append(f"{arm}: no good trial" + (f" ({', '.join(bad)})" if bad else ""))
    return "\n".join(lines)

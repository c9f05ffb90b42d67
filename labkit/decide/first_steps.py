"""What to do first here, from a study: its measured effects on its own cold start, or on the
reader's.

    for a in first_steps(study):                              # at the study's own sizes
        a.rank, a.title, a.gain_s, a.trust, a.effort
    first_steps(study, {"image_bytes": 5e9, "model_bytes": 16e9})     # forecast from its sizes

At the study's own sizes nothing is forecast: the phases are the medians of its naive starts, and
the gains those of its arms. Lesson: notebooks/09_decide."""

from __future__ import annotations

from collections.abc import Mapping

from labkit.core import stats
from labkit.core.records import Run
from labkit.core.timeline import PHASES
from labkit.decide import plan
from labkit.decide.advise import Advice, advise
from labkit.decide.predict import Forecast, PhaseForecast
from labkit.errors import BadInput
from labkit.study.record import Study


def first_steps(study: Study, given: Mapping[str, float | None] | None = None) -> list[Advice]:
    """Ranked by gain ÷ effort, each on top of the measured ones above it. `given`: as in
    `plan.make`; nothing given: the study's own sizes. A size further away than the fit may be
    extrapolated has no phase to gain from, and [] where there is none left.

    Raises BadInput for a study without a good naive start."""
    arm = study.naive
    if any(value is not None for value in (given or {}).values()):
        return plan.make(study.runs, given or {}, arm=arm).advice
    return advise(as_measured(study.run, arm), _floors(study.run, arm), [study.run], arm=arm)


def as_measured(run: Run, arm: str) -> Forecast:
    """The medians of an arm's phases with their intervals, in the form of a forecast. Raises
    BadInput without a good trial."""
    trials = run.of_arm(arm)
    if not trials:
        raise BadInput(
            f"no good trial of {arm} in run {run.id}",
            why="what to do first is judged on the start as it is",
            fix="labkit study",
        )
    phases = {}
    for phase in PHASES:
        seconds = [t.phases[phase] for t in trials if phase in t.phases]
        if seconds:
            low, high = stats.interval(seconds)
            how = f"measured, n = {len(seconds)}"
            phases[phase] = PhaseForecast(stats.median(seconds), low, high, how)
    totals = [t.first_token_s for t in trials]
    return Forecast(phases, stats.median(totals), *stats.interval(totals))


def _floors(run: Run, arm: str) -> dict[str, float]:
    """The floors that the trials themselves recorded, by phase."""
    floors: dict[str, list[float]] = {}
    for trial in run.of_arm(arm):
        for phase, seconds in trial.floors.items():
            floors.setdefault(phase, []).append(seconds)
    return {phase: stats.median(seconds) for phase, seconds in floors.items()}

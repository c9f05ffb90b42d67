"""A model of the phases: seconds = fixed + bytes ÷ rate, fitted from records at two or more sizes,
with its error.

Each phase has one size that drives it (image bytes for `pull`, model bytes for `load`) or none
(`import`). The fit is least squares on relative errors, as a start of 3 s and one of 300 s should
count alike; a negative fixed part or rate is refitted without it. A rate that came close to what
the link or the disk allowed in that run moves with the reader's own; one that did not is the
software's own limit and does not get faster.

    model = fit(points([tiny, small], "naive"))
    forecast = model.predict({"image_bytes": 5e9, "unpacked_bytes": 12e9, "model_bytes": 16e9},
        link_bytes_per_s=1.25e9)
    forecast.total_s, forecast.low_s, forecast.high_s, forecast.phases["load"].seconds

The error worth quoting is that on a size left out of the fit: `labkit.decide.holdout`. Beyond the
sizes measured the range widens, and too far beyond them there is no figure (`labkit.decide.reach`):
caches that fill, memory that runs out and links that other tenants share are not in a straight
line. Lesson: notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field

from labkit.core import stats
from labkit.core.json_types import JsonObject
from labkit.core.records import Run
from labkit.core.timeline import PHASES
from labkit.core.units import show_bytes, show_rate, show_s
from labkit.decide.points import DRIVER, REST, Point, points
from labkit.decide.reach import SAME_SIZE, distinct, nearer, too_far, widened
from labkit.errors import BadInput

#: From this share of the resource's rate on, the resource was the limit.
BOUND_SHARE = 0.7
#: Spread taken for granted where too few trials, or one size, cannot show their own.
ONE_SIZE_ERROR, FEW_TRIALS_ERROR, FEW = 0.5, 0.3, 3


@dataclass(frozen=True)
class PhaseForecast:
    seconds: float
    low_s: float
    high_s: float
    how: str


@dataclass(frozen=True)
class Fit:
    """seconds = fixed_s + size ÷ rate. `error_share`: spread of measured ÷ fitted, as a share;
    `sizes` fitted from."""

    phase: str
    driver: str
    fixed_s: float
    s_per_byte: float
    error_share: float
    sizes: tuple[float, ...]
    n: int
    resource: str = ""
    resource_bytes_per_s: float | None = None
    why: str = ""  # what weakens this fit

    @property
    def rate_bytes_per_s(self) -> float | None:
        return 1 / self.s_per_byte if self.s_per_byte > 0 else None

    @property
    def guessed(self) -> bool:
        """One size only: proportional to bytes, by assumption."""
        return self.s_per_byte > 0 and self.sizes[-1] < SAME_SIZE * self.sizes[0]

    @property
    def bound(self) -> bool:
        """The resource was the limit when this was measured."""
        rate = self.rate_bytes_per_s
        return bool(
            rate and self.resource_bytes_per_s and rate >= BOUND_SHARE * self.resource_bytes_per_s
        )

    def at(self, size_bytes: float, resource_bytes_per_s: float | None = None) -> float:
        """Seconds for a size; on another link or disk where one is given and feeds this phase."""
        rate = self.rate_bytes_per_s
        if rate is None:
            return self.fixed_s
        if resource_bytes_per_s and self.resource_bytes_per_s:
            rate = (
                rate * resource_bytes_per_s / self.resource_bytes_per_s
                if self.bound
                else min(rate, resource_bytes_per_s)
            )
        return self.fixed_s + size_bytes / rate

    def forecast(
        self, size_bytes: float, factor: float, resource_bytes_per_s: float | None, how: str
    ) -> PhaseForecast:
        """`at`, with its range `factor` times the largest size measured."""
        seconds = self.at(size_bytes, resource_bytes_per_s)
        if self.s_per_byte > 0:
            error = widened(self.error_share, factor, distinct(self.sizes))
        else:  # bytes that did not show within the noise may show in proportion to it
            error = self.error_share * factor
        low, high = sorted((seconds / (1 + error), seconds * (1 + error)))
        return PhaseForecast(seconds, low, high, how)


@dataclass(frozen=True)
class Forecast:
    """`phases` in order; `refused`: phases that no figure is given for, each with the reason – then
    there is no total either; `factor`: how many times the largest size measured the furthest of
    them is; `notes` name every weak fit; `fix`: the command that measures nearer."""

    phases: dict[str, PhaseForecast]
    total_s: float | None
    low_s: float | None
    high_s: float | None
    notes: tuple[str, ...] = ()
    refused: dict[str, str] = field(default_factory=dict)
    factor: float = 1.0
    fix: str = ""

    def total(self) -> tuple[float, float, float]:
        """(total_s, low_s, high_s). Raises BadInput where it is refused."""
        if self.total_s is None or self.low_s is None or self.high_s is None:
            raise BadInput(self.why_none, why=WHY_NONE, fix=self.fix)
        return self.total_s, self.low_s, self.high_s

    @property
    def why_none(self) -> str:
        """Why there is no total, in a sentence; "" where there is one."""
        reasons: dict[str, list[str]] = {}
        for phase, reason in self.refused.items():
            reasons.setdefault(reason, []).append(phase)
        named = "; ".join(f"{', '.join(phases)}: {why}" for why, phases in reasons.items())
        return f"no figure so far from what was measured – {named}" if named else ""

    def as_json(self) -> JsonObject:
        return asdict(self)


#: Of a refused forecast.
WHY_NONE = "so far out the law of a phase may be another one, and a figure would only look like one"


@dataclass(frozen=True)
class Model:
    """Fits by phase, for one arm, scenario and host."""

    arm: str
    scenario: str
    host: str
    fits: dict[str, Fit] = field(default_factory=dict)

    def predict(
        self,
        sizes: Mapping[str, float],
        *,
        link_bytes_per_s: float | None = None,
        disk_bytes_per_s: float | None = None,
        far: bool = False,
    ) -> Forecast:
        """`sizes` by driver (image_bytes, unpacked_bytes, model_bytes, snapshot_bytes); `far`: give
        a figure however far away it is, to set it beside a measurement. Raises BadInput for a size
        that is needed and missing."""
        rates = {"link": link_bytes_per_s, "disk": disk_bytes_per_s}
        phases: dict[str, PhaseForecast] = {}
        notes: list[str] = []
        refused: dict[str, str] = {}
        missing: dict[str, tuple[float, float]] = {}
        furthest = 1.0
        for phase, one in self.fits.items():
            size = self._size(one, sizes)
            factor = max(size / one.sizes[-1], 1.0) if one.sizes[-1] > 0 else 1.0
            furthest = max(furthest, factor)
            if not far and one.sizes[-1] > 0 and (reason := too_far(size, one.sizes)):
                refused[phase] = reason
                missing[one.driver] = (size, one.sizes[-1])
                continue
            phases[phase] = one.forecast(size, factor, rates.get(one.resource), self._how(one))
            notes += [f"{phase}: {note}" for note in _notes(one, size, rates.get(one.resource))]
        # Phases are measured in one start and drift together: their errors are added, not averaged
        # away.
        total, low, high = (
            math.fsum(getattr(p, which) for p in phases.values())
            for which in ("seconds", "low_s", "high_s")
        )
        ordered = {p: phases[p] for p in (*PHASES, REST) if p in phases}
        if refused:
            fix = nearer(missing)
            return Forecast(ordered, None, None, None, tuple(notes), refused, furthest, fix)
        return Forecast(
            ordered, total, min(low, total), max(high, total), tuple(notes), factor=furthest
        )

    @staticmethod
    def _size(one: Fit, sizes: Mapping[str, float]) -> float:
        """Bytes that drive a phase; 0 of one with a fixed cost. Raises BadInput for one that is
        needed and missing."""
        if not one.driver or (one.s_per_byte <= 0 and one.driver not in sizes):
            return 0.0
        size = float(sizes.get(one.driver, math.nan))
        if math.isnan(size) or size < 0:
            raise BadInput(
                f"{one.phase} depends on {one.driver}, which is not given",
                fix=f"give {one.driver} in bytes",
            )
        return size

    @staticmethod
    def _how(one: Fit) -> str:
        fixed = show_s(one.fixed_s)
        if one.rate_bytes_per_s is None:
            return f"fixed {fixed}, n = {one.n}"
        limit = f", at the {one.resource}'s limit" if one.bound else ""
        return f"{fixed} + {one.driver} ÷ {show_rate(one.rate_bytes_per_s)}{limit}, n = {one.n}"


def _notes(one: Fit, size: float, rate_bytes_per_s: float | None) -> Iterable[str]:
    if one.why:
        yield one.why
    if one.s_per_byte > 0 and size > 2 * max(one.sizes):
        yield (
            f"{show_bytes(size)} is {size / max(one.sizes):.0f} times the largest size measured"
            f" ({show_bytes(max(one.sizes))}): its range is widened by that"
        )
    if (
        one.bound
        and rate_bytes_per_s
        and one.resource_bytes_per_s
        and rate_bytes_per_s > 1.5 * one.resource_bytes_per_s
    ):
        yield (
            f"the {one.resource} was the limit at {show_rate(one.resource_bytes_per_s)}; whether"
            f" the software keeps up with {show_rate(rate_bytes_per_s)} was not measured, so this"
            " is the least it can take"
        )


def fit(given: Sequence[Point], arm: str = "", scenario: str = "", host: str = "") -> Model:
    """Fit every phase. Raises BadInput without points."""
    if not given:
        raise BadInput("nothing to fit", fix="labkit run naive --preset tiny --blocks 3")
    phases = [p for p in (*PHASES, REST) if any(g.phase == p for g in given)]
    return Model(
        arm, scenario, host, {p: _fit_phase(p, [g for g in given if g.phase == p]) for p in phases}
    )


def model_of(runs: Sequence[Run], arm: str) -> Model:
    """Fitted from every good trial of an arm. Raises as `points` does."""
    given = points(runs, arm)
    first = next(r for r in runs if r.of_arm(arm))
    return fit(
        given,
        arm,
        first.arm_named(arm).get("scenario", ""),
        str(first.host.get("title", first.host.get("id", ""))),
    )


def _fit_phase(phase: str, given: Sequence[Point]) -> Fit:
    driver = DRIVER.get(phase, "")
    seconds = [g.seconds for g in given]
    rates = [g.resource_bytes_per_s for g in given if g.resource_bytes_per_s]
    resource, rate = given[0].resource, stats.median(rates) if rates else None
    sizes = tuple(sorted({g.size_bytes for g in given}))
    why = ""
    if driver and all(s > 0 for s in sizes):
        if sizes[-1] >= SAME_SIZE * sizes[0]:
            fixed, slope = _line(_medians(given))
            why = (
                ""
                if slope
                else (
                    "did not grow with bytes at the sizes measured: noise hides its rate, and a"
                    " larger size will take longer than this"
                )
            )
        else:
            fixed, slope = 0.0, stats.median(seconds) / stats.median([g.size_bytes for g in given])
            why = (
                f"measured at one size only: taken as proportional to bytes, ±{ONE_SIZE_ERROR:.0%}"
                " assumed"
            )
    else:
        fixed, slope = stats.median(seconds), 0.0
        why = f"no {driver.replace('_', ' ')} in the records: taken as fixed" if driver else ""
    fitted = [fixed + slope * g.size_bytes for g in given]
    error = _spread(seconds, fitted)
    if len(given) < FEW:
        error = max(error, FEW_TRIALS_ERROR)
    if slope and fixed == 0.0 and sizes[-1] < SAME_SIZE * sizes[0]:
        error = max(error, ONE_SIZE_ERROR)
    return Fit(phase, driver, fixed, slope, error, sizes, len(given), resource, rate, why)


def _medians(given: Sequence[Point]) -> list[tuple[float, float]]:
    """One point a size: weights of 1 ÷ y² on raw trials would favour the lucky ones. Sizes within 5
    % are one."""
    groups: dict[int, list[Point]] = {}
    for g in given:
        groups.setdefault(round(math.log(g.size_bytes) / math.log(1.05)), []).append(g)
    return [
        (stats.median([g.size_bytes for g in group]), stats.median([g.seconds for g in group]))
        for group in groups.values()
    ]


def _line(points_xy: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(fixed, slope), both ≥ 0, least squares of relative errors: every point weighs 1 ÷ y²."""
    rows = [(x, y, 1 / max(y, 1e-4) ** 2) for x, y in points_xy]
    w, wx, wy = (math.fsum(r) for r in zip(*((k, k * x, k * y) for x, y, k in rows), strict=True))
    wxx, wxy = math.fsum(k * x * x for x, _, k in rows), math.fsum(k * x * y for x, y, k in rows)
    spread = w * wxx - wx * wx
    slope = (w * wxy - wx * wy) / spread if spread > 0 else 0.0
    fixed = (wy - slope * wx) / w
    if slope <= 0:
        return wy / w, 0.0
    if fixed < 0:
        return 0.0, wxy / wxx
    return fixed, slope


def _spread(measured: Sequence[float], fitted: Sequence[float]) -> float:
    """95 % of points lie within a factor 1 ± this of the fit (half the range for few points); 0 for
    phases of no length."""
    off = [abs(m - f) / f for m, f in zip(measured, fitted, strict=True) if f > 1e-6]
    return stats.quantile(off, 0.95) if off else 0.0

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

The error worth quoting is that on a size left out of the fit: `labkit.decide.holdout`. It
extrapolates a straight line: caches that fill, memory that runs out and links that other tenants
share are not in it. Lesson: notebooks/09_decide."""

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
from labkit.errors import BadInput

#: From this share of the resource's rate on, the resource was the limit.
BOUND_SHARE = 0.7
#: From one size alone nothing separates fixed part and rate: a guess may go this far from it, and
#: no further.
FURTHEST_GUESS = 20.0
#: … but five times as far from a size at which bytes outweigh any fixed cost.
LARGE_BYTES = 100e6
#: Spread taken for granted where too few trials, or one size, cannot show their own.
ONE_SIZE_ERROR, FEW_TRIALS_ERROR, FEW = 0.5, 0.3, 3
#: Sizes closer than this are one size: a line through them would follow their noise.
SAME_SIZE = 1.2


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


@dataclass(frozen=True)
class PhaseForecast:
    seconds: float
    low_s: float
    high_s: float
    how: str


@dataclass(frozen=True)
class Forecast:
    """`phases` in order; `notes` name every extrapolation and every weak fit."""

    phases: dict[str, PhaseForecast]
    total_s: float
    low_s: float
    high_s: float
    notes: tuple[str, ...] = ()

    def as_json(self) -> JsonObject:
        return asdict(self)


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
        """`far`: also guess far from the one size measured (to show how wrong that is). `sizes` by
        driver (image_bytes, unpacked_bytes, model_bytes, snapshot_bytes). Raises BadInput for one
        that is needed and missing."""
        rates = {"link": link_bytes_per_s, "disk": disk_bytes_per_s}
        phases: dict[str, PhaseForecast] = {}
        notes: list[str] = []
        for phase, one in self.fits.items():
            size = float(sizes.get(one.driver, math.nan)) if one.s_per_byte > 0 else 0.0
            if math.isnan(size) or size < 0:
                raise BadInput(
                    f"{phase} depends on {one.driver}, which is not given",
                    fix=f"give {one.driver} in bytes",
                )
            reach = FURTHEST_GUESS * (5 if one.sizes[-1] >= LARGE_BYTES else 1)
            if one.guessed and not far and not 1 / reach <= size / one.sizes[-1] <= reach:
                raise BadInput(
                    f"{phase} was measured at one size only ({max(one.sizes):.3g} bytes), and"
                    f" {size:.3g} bytes are asked for",
                    why=(
                        "one size cannot tell a fixed cost from a rate; so far away the forecast"
                        " would mean nothing"
                    ),
                    fix="labkit plan --measure",
                )
            seconds = one.at(size, rates.get(one.resource))
            low, high = sorted((seconds / (1 + one.error_share), seconds * (1 + one.error_share)))
            phases[phase] = PhaseForecast(seconds, low, high, self._how(one))
            notes += [f"{phase}: {note}" for note in _notes(one, size, rates.get(one.resource))]
        total = math.fsum(p.seconds for p in phases.values())
        # Phases are measured in one start and drift together: their errors are added, not averaged
        # away.
        low, high = (
            math.fsum(p.low_s for p in phases.values()),
            math.fsum(p.high_s for p in phases.values()),
        )
        ordered = {p: phases[p] for p in (*PHASES, REST) if p in phases}
        return Forecast(ordered, total, min(low, total), max(high, total), tuple(notes))

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
    if one.s_per_byte > 0 and one.sizes and size > 2 * max(one.sizes):
        yield (
            f"{show_bytes(size)} is {size / max(one.sizes):.0f} times the largest size measured"
            f" ({show_bytes(max(one.sizes))})"
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

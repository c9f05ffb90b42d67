"""The planner by hand: give a size, a link or the traffic, write a guess, and see the forecast –
with widgets, or by plain calls.

    bench = PlanBench(image_gb=5.0, link_gbit=10.0)      # a form at the end of a cell
    bench.fit(runs, "naive")                             # what it forecasts from
    bench.set(model_gb=140).guess(300).run()             # without a mouse, or headless
    bench.plan                                           # of the values as they stand
    bench.text                                           # everything it shows, in words

A forecast takes milliseconds, so nothing is measured here and nothing disturbs a measurement. A
field left empty means "as measured", or for traffic and price "left out". Every control is a native
number field or button, reachable by Tab; what was forecast stays on an exported page as figure and
text. Lesson: notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from labkit.core.records import Run
from labkit.decide.plan import Plan, make
from labkit.decide.plan_text import total_words
from labkit.errors import BadInput
from labkit.viz.bench import Bench, View, guess_words
from labkit.viz.theme import Picture


@dataclass(frozen=True)
class Field:
    """One number of the reader's: its name in a plan, what one unit of it is there, and what an
    empty field means."""

    label: str
    unit: str
    given: str
    scale: float
    empty: str = "as measured"


FIELDS = {
    "image_gb": Field("image as pulled", "GB", "image_bytes", 1e9),
    "model_gb": Field("model", "GB", "model_bytes", 1e9),
    "link_gbit": Field("link", "Gbit/s", "link_bytes_per_s", 1e9 / 8),
    "disk_gb_per_s": Field("disk", "GB/s", "disk_bytes_per_s", 1e9),
    "requests_per_hour": Field("requests", "an hour", "rate_per_s", 1 / 3600, "left out"),
    "price_per_gpu_hour": Field("price", "a GPU-hour", "price_per_gpu_hour", 1.0, "left out"),
}


@dataclass(frozen=True)
class Attempt:
    """What one press of Forecast gave."""

    values: dict[str, float | None]
    guess_s: float | None
    plan: Plan


class PlanBench(Bench[Attempt]):
    """The reader's values, and a plan to play with once there is something to forecast from.
    `trace`: arrivals in place of generated traffic."""

    title = "Yours"
    _view: _View | None

    def __init__(
        self,
        runs: Sequence[Run] = (),
        arm: str = "",
        *,
        trace: Sequence[float] | None = None,
        **values: float | None,
    ):
        super().__init__()
        self.runs, self.arm, self.trace = list(runs), arm, trace
        self.values: dict[str, float | None] = dict.fromkeys(FIELDS)
        self._put(values)

    def fit(self, runs: Sequence[Run], arm: str = "") -> PlanBench:
        """Forecast from these runs from here on."""
        self.runs, self.arm = list(runs), arm
        return self

    def set(self, **values: float | None) -> PlanBench:
        """New values by field; None is "as measured". Raises BadInput for another name, or a number
        that makes no sense."""
        self._put(values)
        if self._view:
            self._view.show_values()
        return self

    def _put(self, values: dict[str, float | None]) -> None:
        for name, value in values.items():
            if name not in FIELDS:
                raise BadInput(f"no field {name!r}", fix="one of: " + ", ".join(FIELDS))
            if value is not None and not 0 < value < math.inf:
                raise BadInput(
                    f"{FIELDS[name].label} must be more than 0, not {value}",
                    fix=f"{name}=None for what was measured",
                )
        self.values |= values

    @property
    def given(self) -> dict[str, float | None]:
        """The values in the units of a plan, those that were given."""
        return {
            FIELDS[name].given: value * FIELDS[name].scale
            for name, value in self.values.items()
            if value is not None
        }

    @property
    def plan(self) -> Plan:
        """Of the values as they stand. Raises LabError where records cannot answer."""
        if not self.runs:
            raise BadInput("nothing is measured yet", fix="run the cells below, then forecast")
        return make(self.runs, self.given, arm=self.arm, trace=self.trace)

    def run(self) -> Plan:
        """The plan, kept as an attempt beside its guess."""
        plan = self.plan
        self._add(Attempt(dict(self.values), self.guess_s, plan))
        return plan

    def settings(self) -> str:
        return _settings(self.values)

    def name(self, attempt: Attempt) -> str:
        return _settings(attempt.values)

    def verdict(self, attempt: Attempt) -> str:
        """The forecast, its range, the guess and what to do first, in a sentence."""
        f = attempt.plan.forecast
        if f.refused:
            return f"{f.why_none}. Nearer: {f.fix}"
        guess = guess_words(f.total()[0], attempt.guess_s)
        total, spread = total_words(f)
        longest = max(f.phases, key=lambda p: f.phases[p].seconds)
        first = f"; first: {attempt.plan.advice[0].title}" if attempt.plan.advice else ""
        return f"{total} predicted ({spread}; {guess}), longest {longest}{first}"

    def figure(self) -> Picture | None:
        from labkit.viz.decide import forecast

        return forecast(self.attempts[-1].plan) if self.attempts else None

    def _widgets(self) -> _View:
        return _View(self)


def _settings(values: Mapping[str, float | None]) -> str:
    """Each value with its unit, then the empty fields by what that means."""
    parts = []
    empty: dict[str, list[str]] = {field.empty: [] for field in FIELDS.values()}
    for name, value in values.items():
        field = FIELDS[name]
        if value is None:
            empty[field.empty].append(field.label)
        else:
            parts.append(f"{field.label} {value:g} {field.unit}")
    for meaning, names in empty.items():
        if names:
            parts.append(f"{(' and ' if len(names) < 3 else ', ').join(names)} {meaning}")
    return "; ".join(parts)


class _View(View):
    """Text fields that hold a number or nothing, as a number field cannot be empty."""

    bench: PlanBench

    def __init__(self, bench: PlanBench):
        import ipywidgets as w

        super().__init__(
            bench,
            "Forecast",
            "Seconds from zero to the first token, for these values",
            "Write your values and your guess, then press Forecast.",
        )
        look = {
            "style": {"description_width": "150px"},
            "layout": w.Layout(width="300px"),
            "continuous_update": False,
        }
        self.fields = {
            name: w.Text(
                value=_written(bench.values[name]),
                description=f"{field.label}, {field.unit}",
                placeholder=field.empty,
                **look,
            )
            for name, field in FIELDS.items()
        }
        self.guess = w.Text(value="", description="your guess, s", placeholder="seconds", **look)
        self.box = w.VBox([*self.fields.values(), w.HBox([self.guess, self.button]), self.status])

    def show_values(self) -> None:
        for name, widget in self.fields.items():
            widget.value = _written(self.bench.values[name])

    def run(self) -> None:
        values = {
            name: _number(widget.value, FIELDS[name].label) for name, widget in self.fields.items()
        }
        changed = {name: v for name, v in values.items() if v != self.bench.values[name]}
        if changed:
            self.bench.set(**changed)
        self.bench.guess(_number(self.guess.value, "your guess"))
        if not self.bench.runs:
            self.say("Kept. The forecast comes once something is measured, in the cells below.")
            return
        self.bench.run()


def _written(value: float | None) -> str:
    return "" if value is None else f"{value:g}"


def _number(text: str, label: str) -> float | None:
    """Nothing is None. Raises BadInput for what is no number."""
    if not text.strip():
        return None
    try:
        return float(text.replace(",", "."))
    except ValueError:
        raise BadInput(
            f"{label}: {text!r} is no number", fix="digits, or nothing for what was measured"
        ) from None

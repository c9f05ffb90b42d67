"""The planner by hand: change a size, a link or the traffic, write a guess, and see the forecast –
with widgets, or by plain calls.

    bench = PlanBench(runs, arm="naive", image_gb=5.0, model_gb=16.0, link_gbit=10.0)     # shows
        itself at the end of a cell
    bench.set(model_gb=140).guess(300).run()       # the same without a mouse, or headless
    bench.text                                     # everything it shows, in words

A forecast takes milliseconds, so nothing is measured here and nothing disturbs a measurement. A
field left empty means "as measured", or for traffic and price "left out". Every control is a native
number field or button, reachable by Tab; what was forecast stays on an exported page as figure and
text. Lesson: notebooks/09_decide."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from labkit.core.records import Run
from labkit.core.units import show_s
from labkit.decide.plan import Plan, make
from labkit.errors import BadInput, LabError


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
class Try:
    """What one press of Forecast gave."""

    values: dict[str, float | None]
    guess_s: float | None
    plan: Plan


class PlanBench:
    """A plan to play with. `mine=False`: the first values are a lesson's example, and are called so
    until one is changed."""

    def __init__(
        self, runs: Sequence[Run], arm: str = "", *, mine: bool = True, **values: float | None
    ):
        self.runs, self.arm, self.mine = list(runs), arm, mine
        self.values: dict[str, float | None] = dict.fromkeys(FIELDS)
        self.guess_s: float | None = None
        self.tries: list[Try] = []
        self._view: _View | None = None
        self._put(values)

    def set(self, **values: float | None) -> PlanBench:
        """New values by field; None is "as measured". Raises BadInput for another name, or a number
        that makes no sense."""
        self._put(values)
        self.mine = True
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

    def guess(self, seconds: float | None) -> PlanBench:
        """The prediction of the next forecast, written down before it."""
        self.guess_s = seconds
        return self

    def run(self) -> Plan:
        """Forecast with the values as they stand. Raises LabError where records cannot answer."""
        given = {
            FIELDS[name].given: value * FIELDS[name].scale
            for name, value in self.values.items()
            if value is not None
        }
        made = make(self.runs, given, arm=self.arm, example=not self.mine)
        self.tries.append(Try(dict(self.values), self.guess_s, made))
        self.guess_s = None
        if self._view:
            self._view.show_result()
        return made

    def verdict(self, one: Try) -> str:
        """The forecast, its range, the guess and what to do first, in a sentence."""
        f = one.plan.forecast
        said = (
            "no guess"
            if not one.guess_s
            else (
                f"guessed {show_s(one.guess_s)}, off by"
                f" {max(f.total_s / one.guess_s, one.guess_s / f.total_s):.1f}×"
            )
        )
        longest = max(f.phases, key=lambda p: f.phases[p].seconds)
        first = f"; first: {one.plan.advice[0].title}" if one.plan.advice else ""
        return (
            f"{show_s(f.total_s)} predicted ({show_s(f.low_s)} – {show_s(f.high_s)}; {said}),"
            f" longest {longest}{first}"
        )

    @property
    def text(self) -> str:
        """The text twin: what is set, and every forecast."""
        lines = ["set: " + self._set(self.values)] + [
            f"{i}. {self._set(t.values)}: {self.verdict(t)}" for i, t in enumerate(self.tries, 1)
        ]
        return "\n".join(lines + ([self._figure().text] if self.tries else []))

    def _set(self, values: dict[str, float | None]) -> str:
        said = [
            f"{FIELDS[name].label} {value:g} {FIELDS[name].unit}"
            for name, value in values.items()
            if value is not None
        ]
        for empty in dict.fromkeys(f.empty for f in FIELDS.values()):
            if names := [
                FIELDS[name].label
                for name, value in values.items()
                if value is None and FIELDS[name].empty == empty
            ]:
                said.append(
                    f"{' and '.join(names) if len(names) < 3 else ', '.join(names)} {empty}"
                )
        return "; ".join(said)

    def _figure(self) -> Any:
        from labkit.viz.decide import forecast

        return forecast(self.tries[-1].plan)

    def html(self) -> str:
        """What stays on an exported page: forecasts as a list, the last one as a figure."""
        rows = "".join(
            f"<li>{escape(self._set(t.values))}: {escape(self.verdict(t))}</li>" for t in self.tries
        )
        return f"<p>Set – {escape(self._set(self.values))}</p>" + (
            f"<ol>{rows}</ol>{self._figure().html()}" if rows else ""
        )

    def _ipython_display_(self) -> None:
        from IPython.display import HTML, display

        from labkit.viz.live import where

        if where() == "widget":
            self._view = _View(self)
            self._view.display()
        else:
            display(HTML(self.html()))

    def __repr__(self) -> str:
        return self.text


class _View:
    """The widgets: text fields that hold a number or nothing, as a number field cannot be empty."""

    def __init__(self, bench: PlanBench):
        import ipywidgets as w

        from labkit.viz.widgets import announced

        self.bench, self._announced = bench, announced
        label, narrow = {"description_width": "150px"}, w.Layout(width="300px")
        self.fields = {
            name: w.Text(
                value=_written(bench.values[name]),
                description=f"{field.label}, {field.unit}",
                placeholder=field.empty,
                style=label,
                layout=narrow,
                continuous_update=False,
            )
            for name, field in FIELDS.items()
        }
        self.guess = w.Text(
            value="",
            description="your guess, s",
            placeholder="seconds",
            style=label,
            layout=narrow,
            continuous_update=False,
        )
        self.button = w.Button(
            description="Forecast",
            button_style="primary",
            tooltip="Seconds from zero to the first token, for these values",
        )
        self.button.on_click(self._run)
        self.status = w.HTML(
            value=announced("Change a value, write your guess, then press Forecast.")
        )
        self.box = w.VBox([*self.fields.values(), w.HBox([self.guess, self.button]), self.status])
        self.handle: Any = None

    def display(self) -> None:
        from IPython.display import HTML, display

        display(self.box)
        self.handle = display(HTML(self.bench.html()), display_id=True)

    def show_values(self) -> None:
        for name, widget in self.fields.items():
            widget.value = _written(self.bench.values[name])

    def _run(self, _button: Any) -> None:
        try:
            wanted = {
                name: _number(widget.value, FIELDS[name].label)
                for name, widget in self.fields.items()
            }
            if changed := {
                name: value for name, value in wanted.items() if value != self.bench.values[name]
            }:
                self.bench.set(**changed)
            self.bench.guess(_number(self.guess.value, "your guess")).run()
        except LabError as error:
            self.status.value = self._announced(str(error), bad=True)

    def show_result(self) -> None:
        from IPython.display import HTML

        self.status.value = self._announced(self.bench.verdict(self.bench.tries[-1]))
        if self.handle is not None:
            self.handle.update(HTML(self.bench.html()))


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

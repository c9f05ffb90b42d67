"""The planner's bench: the same with a mouse, with a keyboard, with plain calls and on an exported
page."""

from __future__ import annotations

import pytest

from labkit.errors import BadInput
from labkit.viz.planner import PlanBench
from tests.support.decide_runs import three


@pytest.fixture
def bench():
    return PlanBench(three(), "naive", image_gb=5.0, model_gb=16.0, link_gbit=10.0)


def test_setting_guessing_and_forecasting_without_widgets(bench):
    made = bench.set(model_gb=2.2).guess(100).run()
    assert (
        made.inputs["model_bytes"].value == 2.2e9
        and made.inputs["link_bytes_per_s"].value == 1.25e9
    )
    assert (
        "guessed 100.0 s, off by" in bench.text
        and "model 2.2 GB" in bench.text
        and "first: " in bench.text
    )


def test_the_form_keeps_the_readers_values_before_anything_is_measured():
    form = PlanBench(image_gb=1.0, requests_per_hour=12)
    with pytest.raises(BadInput, match="nothing is measured yet"):
        form.run()
    assert form.given == {"image_bytes": 1e9, "rate_per_s": pytest.approx(12 / 3600)}
    assert form.fit(three(), "naive").plan.inputs["image_bytes"].value == 1e9


def test_what_is_too_far_is_said_in_place_of_a_forecast(bench):
    bench.set(model_gb=500).run()
    assert "no figure so far" in bench.text and "labkit study --sizes" in bench.text


def test_a_field_without_a_value_is_as_measured(bench):
    made = bench.set(image_gb=None).run()
    assert (
        made.inputs["image_bytes"].source == "measured"
        and "image as pulled and disk as measured; requests and price left out" in bench.text
    )


@pytest.mark.parametrize(
    "wrong", [{"colour": 1}, {"model_gb": -1}, {"model_gb": float("nan")}, {"link_gbit": 0}]
)
def test_a_value_that_makes_no_sense_changes_nothing(bench, wrong):
    before = dict(bench.values)
    with pytest.raises(BadInput):
        bench.set(**wrong)
    assert bench.values == before


def test_headless_a_forecast_stays_as_figure_and_words(bench, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *objects, **_: shown.extend(objects))
    monkeypatch.setenv("LABKIT_DISPLAY", "plain")
    bench.run()
    bench._ipython_display_()
    assert (
        "<svg" in shown[0].data
        and "<ol>" in shown[0].data
        and "Predicted cold start" in shown[0].data
    )


def test_with_widgets_every_control_is_native_and_a_mistake_is_said(bench, monkeypatch):
    import IPython.display
    import ipywidgets

    updates = []

    class Handle:
        def update(self, html) -> None:
            updates.append(html.data)

    monkeypatch.setattr(
        IPython.display, "display", lambda *_a, **k: Handle() if k.get("display_id") else None
    )
    monkeypatch.setenv("LABKIT_DISPLAY", "widget")
    bench._ipython_display_()
    view = bench._view
    assert {type(w) for w in view.fields.values()} == {ipywidgets.Text}
    view.fields["model_gb"].value, view.guess.value = "2,2", "80"
    view.button.click()
    assert (
        bench.values["model_gb"] == 2.2
        and "guessed 80.0 s" in view.status.value
        and "<svg" in updates[-1]
    )
    view.fields["model_gb"].value = "large"
    view.button.click()
    assert (
        "Not possible" in view.status.value
        and "is no number" in view.status.value
        and len(bench.attempts) == 1
    )
    bench.set(model_gb=7)
    assert view.fields["model_gb"].value == "7"

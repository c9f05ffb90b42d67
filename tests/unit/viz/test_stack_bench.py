"""The stack bench: the same with a mouse, with a keyboard, with plain calls and on an exported
page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from labkit.core import records
from labkit.errors import BadInput
from labkit.stack import ablate
from labkit.viz import growing, stack_bench, stacking
from labkit.viz.table import Table

FIXTURES = Path(__file__).parents[3] / "data" / "fixtures"


def _stacked() -> records.Run:
    """Fixture arms under the names of real techniques, so that menus and models know them."""
    run = records.read(FIXTURES / "fixture_arms.json")
    facts = json.loads(json.dumps(run.experiment))
    naive = {"image": "full-pull", "process": "runc", "weights": "pickle"}
    names = {
        "naive": ("naive", naive),
        "estargz-lazy": ("object-pull", {**naive, "image": "object-pull"}),
        "estargz-lazy, not optimised": (
            "object-pull + safetensors",
            {**naive, "image": "object-pull", "weights": "safetensors"},
        ),
    }
    facts["arms"] = [
        {
            "name": names[a["name"]][0],
            "stack": names[a["name"]][1],
            "scenario": "fresh-node",
            "link": "1gbit",
        }
        for a in facts["arms"]
    ]
    return replace(
        run, experiment=facts, trials=tuple(replace(t, arm=names[t.arm][0]) for t in run.trials)
    )


@pytest.fixture
def bench():
    return stack_bench.StackBench(preset="fixture", recorded=_stacked())


def test_choosing_guessing_and_running_without_widgets(bench):
    run = bench.choose(image="object-pull").guess(6.0).run()
    assert run.arm_names == ["object-pull"]
    assert "object-pull: 5.39 s (guessed 6.00 s, off by 1.1×); n = 7" in bench.text
    assert "image object-pull" in bench.text and "waterfall" not in bench.text


def test_a_recorded_answer_is_stamped(bench):
    bench.run()
    assert "replayed from fixture host" in bench.html() or "simulated" in bench.html()


def test_a_guess_counts_once(bench):
    bench.guess(3.0).run()
    bench.run()
    assert [a.guess_s for a in bench.attempts] == [3.0, None] and "no guess" in bench.text


def test_what_was_not_recorded_is_not_made_up(bench):
    with pytest.raises(BadInput, match="was not recorded"):
        bench.choose(weights="gguf").run()
    assert bench.attempts == []


def test_a_name_of_another_layer_is_refused_with_the_choices(bench):
    with pytest.raises(BadInput, match="no technique 'pickle'"):
        bench.choose(image="pickle")
    with pytest.raises(BadInput, match="layers"):
        bench.choose(colour="red")


def test_a_technique_this_host_lacks_stays_in_the_menu_with_its_reason():
    options = [o for layer in stack_bench.menu().values() for o in layer]
    missing = [o for o in options if o.missing]
    assert all("not here" in o.label for o in missing)
    if missing:
        layer = next(k for k, v in stack_bench.menu().items() if missing[0] in v)
        with pytest.raises(BadInput, match="not available here"):
            stack_bench.StackBench(preset="tiny").choose(**{layer: missing[0].name})


def test_headless_the_bench_shows_itself_as_plain_html(bench, monkeypatch):
    import IPython.display

    shown = []
    monkeypatch.setattr(IPython.display, "display", lambda *objects, **_: shown.extend(objects))
    monkeypatch.setenv("LABKIT_DISPLAY", "plain")
    bench._ipython_display_()
    assert len(shown) == 1 and "Chosen" in shown[0].data


def test_with_widgets_every_control_is_native_and_the_result_stays_on_the_page(bench, monkeypatch):
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
    assert {type(w) for w in view.menus.values()} == {ipywidgets.Dropdown} and isinstance(
        view.button, ipywidgets.Button
    )
    view.menus["image"].value = "object-pull"
    view.guess.value = 5.0
    view.button.click()
    assert "5.39 s" in view.status.value and 'role="status"' in view.status.value
    assert "<svg" in updates[-1] and "guessed 5.00 s" in updates[-1]
    view.menus["weights"].value = "gguf"
    view.button.click()
    assert "Not possible" in view.status.value and not view.button.disabled


def test_growing_bars_begin_where_the_phase_before_ended():
    html = growing.growing_html([("pull", 2.0), ("unpack", 5.0)])
    assert "margin-left:40.0%;width:60.0%" in html and "3.00 s" in html
    assert growing.growing_html([]) and growing.growing_html([("<b>", 1.0)]).count("<b>") == 0


def test_a_growing_waterfall_without_a_view_says_nothing():
    bars = growing.Growing(None)
    bars.trial_started("naive")
    bars.phase("pull", 1.0)
    bars.trial_done(records.Trial("naive", 0, 0))
    assert bars.ends == [("pull", 1.0)]


def test_effects_name_the_phases_that_moved():
    text = stacking.effects_table(_stacked()).text
    assert "unpack -2.9" in text and "the base" in text and "cache cold" in text
    with pytest.raises(BadInput):
        stacking.effects_table(_stacked(), "nothing")


def test_claims_keep_rows_that_nothing_measured():
    table = stacking.claims_table([_stacked()])
    by_row = {r[0]: r for r in table.rows}
    assert by_row["stargz lazy pulling"][5] == "not in this run"
    assert by_row["object storage in place of a registry"][2] == "object-pull"
    assert table.notes and "Published by others" in table.html()
    measured = stacking.claims_table([_stacked()], unmeasured=False)
    assert [r[0] for r in measured.rows] == [r[0] for r in table.rows if r[2] != "–"]


def test_a_ratio_of_too_few_pairs_has_no_interval_and_no_significance():
    few = replace(_stacked(), trials=tuple(t for t in _stacked().trials if t.block < 1))
    by_row = {r[0]: r for r in stacking.claims_table([few]).rows}
    assert by_row["object storage in place of a registry"][4].endswith(", n = 1")
    assert "not significant" not in by_row["object storage in place of a registry"][4]


def test_a_claim_that_a_study_left_out_has_the_study_s_reason():
    table = stacking.claims_table([records.read(FIXTURES / "fixture_study.json")])
    by_row = {r[0]: r for r in table.rows}
    assert (
        by_row["CUDA checkpoint + CRIU"][5] == "not on this host: criu: no criu (make host-tools)"
    )
    assert "not in this run" not in table.text


def test_a_table_escapes_what_it_shows():
    html = Table(("<a>",), (("<script>",),), "<b>", ("<i>",)).html()
    assert not {"<a>", "<script>", "<b>", "<i>"} & {
        t for t in ("<a>", "<script>", "<b>", "<i>") if t in html
    }


def test_predictions_are_refused_where_no_parts_were_measured_alone():
    with pytest.raises(BadInput, match="no combined arm"):
        stacking.predictions(records.read(FIXTURES / "fixture_naive.json"))


def test_only_what_is_combined_of_parts_measured_alone_is_foretold():
    """In a study without techniques alone, the ladder's first rung is a part and no combination:
    notebook 08 asks before it draws."""
    ladder, both = _stacked(), "object-pull + safetensors"
    assert ablate.predict(ladder, "object-pull") and stacking.foretold(ladder) == []
    alone = {**ladder.arm_named(both), "name": "safetensors"}
    alone["stack"] = {**alone["stack"], "image": "full-pull"}
    complete = replace(
        ladder,
        experiment={**ladder.experiment, "arms": [*ladder.arms, alone]},
        trials=(*ladder.trials, *(replace(t, arm="safetensors") for t in ladder.of_arm(both))),
    )
    assert [p.arm for p in stacking.foretold(complete)] == [both]

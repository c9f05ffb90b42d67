from __future__ import annotations

import contextlib
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.cli import main
from labkit.core import records
from labkit.decide import breakeven, plan
from labkit.decide.advise import AT_MOST, MEASURED, advise, options
from labkit.decide.form import requests_per_s
from labkit.decide.plan_text import show
from labkit.errors import BadInput
from tests.support.decide_runs import law, run_of, three

POSITIVE = st.floats(1e-3, 1e6)


@given(POSITIVE, POSITIVE, POSITIVE, st.floats(0, 1e3))
def test_a_snapshot_wins_exactly_below_its_break_even_size_and_above_its_break_even_rate(
    skipped, size, rate, fixed
):
    found = breakeven.snapshot(skipped, size, rate, fixed)
    assert found.wins == (found.saved_s > 0)
    if abs(found.saved_s) > 1e-6 * (skipped + found.restore_s):
        assert (
            found.wins
            == (size < found.most_bytes)
            == (found.least_rate_bytes_per_s is not None and rate > found.least_rate_bytes_per_s)
        )


@given(st.floats(1e-6, 10), st.floats(0, 600), st.floats(0, 3600))
def test_shares_are_shares_and_more_traffic_never_lowers_the_time_up(rate, cold, keep):
    one, more = breakeven.scaling(rate, cold, keep), breakeven.scaling(rate * 2, cold, keep)
    assert 0 <= one.on_share <= 1 and 0 <= one.cold_share <= 1 and one.mean_wait_s >= 0
    assert more.on_share >= one.on_share - 1e-9


@given(st.floats(0.05, 0.95), st.floats(1, 300), st.floats(1, 600))
def test_the_rate_for_a_share_gives_that_share(share, cold, keep):
    assert breakeven.scaling(
        breakeven.rate_for_share(share, cold, keep), cold, keep
    ).on_share == pytest.approx(share, rel=1e-3)


@given(POSITIVE, st.floats(0, 1), POSITIVE, POSITIVE, st.floats(0, 10))
def test_lazy_pulling_wins_exactly_below_its_break_even_share(image, share, full, lazily, mount):
    found = breakeven.lazy(image, share, full, lazily, mount)
    if (
        abs(found.full_s - found.lazy_s) > 1e-6 * (found.full_s + found.lazy_s)
        and 0 < found.break_even_share < 1
    ):
        assert found.wins == (share < found.break_even_share)


def test_a_conversion_that_saves_nothing_never_pays():
    assert (
        breakeven.payback(217, 12).starts == 19
        and breakeven.payback(217, 0).starts is None
        and breakeven.payback(0, 1).starts == 0
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: breakeven.snapshot(1, 1, 0),
        lambda: breakeven.scaling(0, 1, 1),
        lambda: breakeven.snapshot(-1, 1, 1),
        lambda: breakeven.keep_alive(1, math.nan, 1),
    ],
)
def test_a_value_that_makes_no_sense_is_named(call):
    with pytest.raises(BadInput, match="_"):
        call()


def faster_load(image, model):
    return {**law(image, model), "load": 0.1 + model / 600e6, "build": 0.01}


def ablation() -> records.Run:
    return run_of(
        "small",
        300e6,
        250e6,
        arms={"naive": law, "naive+safetensors": faster_load},
        stacks={
            "naive": {"image": "full-pull", "weights": "pickle"},
            "naive+safetensors": {"image": "full-pull", "weights": "safetensors"},
        },
    )


def test_a_measured_gain_comes_from_an_arm_that_differs_in_one_layer():
    made = plan.make(
        [*three(), ablation()], {"image_bytes": 1e9, "model_bytes": 2.2e9}, arm="naive"
    )
    found = next(a for a in made.advice if a.key == "format")
    takes = made.forecast.phases["build"].seconds + made.forecast.phases["load"].seconds
    assert found.trust == MEASURED and found.gain_s == pytest.approx(
        takes
        * (1 - (0.01 + 0.1 + 250e6 / 600e6) / (law(3e8, 250e6)["build"] + law(3e8, 250e6)["load"])),
        rel=0.02,
    )
    assert all(a.trust == AT_MOST for a in made.advice if a.key != "format")


def test_an_arm_that_differs_in_two_layers_measures_no_single_technique():
    run = run_of(
        "small",
        300e6,
        250e6,
        arms={"naive": law, "x": faster_load},
        stacks={
            "naive": {"image": "full-pull", "weights": "pickle"},
            "x": {"image": "estargz-lazy", "weights": "safetensors"},
        },
    )
    assert all(a.trust == AT_MOST for a in advise(plan.make(three(), {}).forecast, {}, [run]))


def test_no_gain_exceeds_what_the_phases_take():
    made = plan.make(three(), {"model_bytes": 16e9})
    for a in made.advice:
        option = next(o for o in options() if o.key == a.key)
        assert (
            0
            < a.gain_s
            <= sum(
                made.forecast.phases[p].seconds for p in option.phases if p in made.forecast.phases
            )
            + 1e-9
            and a.gain_s <= made.forecast.total_s
        )


def test_advice_is_ranked_and_says_its_effort_and_risk():
    ranks = [a.rank for a in plan.make(three(), {}).advice]
    assert ranks == list(range(1, len(ranks) + 1))
    assert all(1 <= o.effort <= 5 and o.effort_why and o.risk for o in options())


def test_every_input_says_where_it_came_from_and_assumed_ones_are_printed_as_assumed():
    made = plan.make(three(), {"image_bytes": 5e9, "model_bytes": 16e9})
    assert (
        made.inputs["model_bytes"].source == "given"
        and made.inputs["unpacked_bytes"].source == "measured"
        and made.inputs["snapshot_bytes"].source == "assumed"
    )
    text = show(made)
    assert "rests on an assumed snapshot" in text and text.count("assumed") >= 6


def test_without_traffic_or_price_neither_waiting_nor_cost_is_invented():
    made = plan.make(three(), {"rate_per_s": 0.01})
    assert plan.make(three(), {}).traffic == {} and "left out" in show(plan.make(three(), {}))
    assert "cost" not in made.breakevens and all(
        "cost" not in r for r in made.traffic["policies"].values()
    )


def test_always_on_waits_less_and_costs_more_at_thin_traffic():
    made = plan.make(three(), {"rate_per_s": 1 / 3600, "price_per_gpu_hour": 2.0})
    zero, on = made.traffic["policies"]["scale to zero"], made.traffic["policies"]["one always on"]
    assert (
        zero["cost"] < on["cost"]
        and zero["p95_wait_s"] > on["p95_wait_s"]
        and "simulated" in made.traffic["label"]
    )


def test_the_error_is_that_of_sizes_left_out_of_a_real_fit():
    assert (
        plan.make(three(), {}).error_share < 0.05 and plan.make(three()[:2], {}).error_share is None
    )


def test_an_unknown_input_is_answered_with_the_names_there_are():
    with pytest.raises(BadInput) as caught:
        plan.make(three(), {"modelbytes": 1})
    assert "model_bytes" in caught.value.fix


@pytest.mark.parametrize(
    ("text", "rate"), [("120/h", 1 / 30), ("0.5/s", 0.5), ("86400/day", 1.0), ("2", 2.0)]
)
def test_requests_are_counted_per_unit(text, rate):
    assert requests_per_s(text) == pytest.approx(rate)


@given(st.text(max_size=12))
def test_any_text_is_a_rate_of_requests_or_a_bad_input(text):
    with contextlib.suppress(BadInput):
        assert requests_per_s(text) > 0


def test_the_command_ends_with_one_json_line(tmp_path, capsys):
    paths = [str(records.write(r, tmp_path / f"{i}.json")) for i, r in enumerate(three())]
    assert (
        main(
            [
                "plan",
                "--records",
                *paths,
                "--model-size",
                "16GB",
                "--link",
                "10gbit",
                "--rate",
                "120/h",
                "--gpu-hour",
                "2.5",
            ]
        )
        == 0
    )
    doc = json.loads(capsys.readouterr().out.strip().split("\n")[-1])
    assert (
        doc["inputs"]["link_bytes_per_s"] == {"value": 1.25e9, "source": "given", "why": ""}
        and doc["forecast"]["total_s"] > 0
        and doc["advice"]
    )


def test_this_hosts_records_are_found_newest_of_each_size(tmp_path, monkeypatch, capsys):
    from labkit.core import host

    monkeypatch.setenv("LABKIT_HOME", str(tmp_path))
    for i, run in enumerate([*three(), replace(three()[0], id="older")]):
        records.write(replace(run, host=host.card()), tmp_path / "runs" / f"{9 - i}.json")
    records.write(replace(three()[0], host={"id": "elsewhere"}), tmp_path / "runs" / "x.json")
    assert main(["plan", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["hold_out"]) == 3


def test_no_phase_is_forecast_below_what_link_and_disk_need():
    flat = [
        run_of(n, 300e6, size, arms={"naive": lambda i, m: {**law(i, m), "load": 0.3}})
        for n, size in (("tiny", 5e6), ("small", 250e6), ("1b", 2.2e9))
    ]
    made = plan.make(flat, {"model_bytes": 16e9, "link_bytes_per_s": 125e6})
    assert made.forecast.phases["load"].seconds == pytest.approx(128) == made.floors["load"]
    assert any("raised" in n for n in made.forecast.notes) and any(
        "noise hides" in n for n in made.forecast.notes
    )
    assert made.forecast.low_s <= made.forecast.total_s <= made.forecast.high_s


def test_the_range_is_no_narrower_than_the_error_on_held_out_sizes():
    crooked = [
        run_of(
            n, 300e6, size, arms={"naive": lambda i, m: {**law(i, m), "load": 0.1 + (m / 1e8) ** 2}}
        )
        for n, size in (("tiny", 5e6), ("small", 2000e6), ("1b", 2.5e9))
    ]
    made = plan.make(crooked, {})
    assert (
        made.error_share > 0.3
        and made.forecast.high_s >= made.forecast.total_s * (1 + made.error_share) * 0.999
    )


def test_what_was_recorded_elsewhere_is_stamped_in_every_output():
    from labkit.stack.replay import marked
    from labkit.viz.decide import forecast, tradeoff

    runs = [marked(r, "epyc-9") for r in three()]
    made = plan.make(runs, {"rate_per_s": 0.003})
    rows = plan.tradeoff(runs, made, keep_alives_s=(0.0, 300.0, math.inf))
    for output in (show(made), forecast(made).text, tradeoff(rows, made).text):
        assert "recorded on" in output.lower() and "no machine" in output
    assert made.as_json()["recorded_on"] == "no machine"
    assert (
        "simulated" in tradeoff(rows).text
        and tradeoff(rows).png()[:4] == forecast(made).png("dark")[:4] == b"\x89PNG"
    )
    assert (
        rows[0]["gpu_hours"] < rows[-1]["gpu_hours"]
        and rows[0]["mean_wait_s"] > rows[-1]["mean_wait_s"] == 0
    )


def test_too_far_there_is_no_total_nothing_that_rests_on_it_and_the_command_that_measures_nearer():
    from labkit.viz.decide import forecast

    made = plan.make(three(), {"model_bytes": 500e9, "rate_per_s": 0.01, "price_per_gpu_hour": 2.0})
    assert made.forecast.total_s is None and not made.breakevens and not made.traffic
    assert {"load", "build"} <= set(made.forecast.refused) and "pull" in made.forecast.phases
    for output in (show(made), forecast(made).text, forecast(made).alt):
        assert "labkit study --sizes" in output and "25000MB" in output
    assert forecast(made).png()[:4] == b"\x89PNG"
    assert all("load" not in a.how for a in made.advice if a.trust == AT_MOST)
    with pytest.raises(BadInput, match="no figure so far"):
        plan.tradeoff(three(), made)


def test_the_error_quoted_is_that_of_the_regime_and_the_range_widens_with_each_doubling():
    crooked = [
        run_of(n, 300e6, size, arms={"naive": lambda i, m: {**law(i, m), "load": (m / 1e8) ** 1.2}})
        for n, size in (("tiny", 5e6), ("small", 250e6), ("600MB", 600e6), ("1b", 2.2e9))
    ]
    near, far, further = (plan.make(crooked, {"model_bytes": b}) for b in (2.2e9, 8.8e9, 35.2e9))
    assert not near.extrapolated and all(not c["beyond"] for c in near.tested)
    assert far.extrapolated and all(c["beyond"] for c in far.tested)
    assert "between the others" in show(near) and "to 4.0 times the largest size" in show(far)
    spread = [p.forecast.high_s / p.forecast.total_s - 1 for p in (near, far, further)]
    assert spread[0] < spread[1] < spread[2]
    assert spread[1] >= 3 * far.error_share * 0.999 and spread[2] >= 5 * far.error_share * 0.999


@pytest.mark.parametrize("scenario", ["hot-node", "warm-node"])
def test_records_that_pull_no_image_are_no_base_for_an_image_of_a_given_size(scenario):
    hot = [
        run_of(n, 1e6, size, arms={"naive": lambda i, m: {"import": 2.0, "load": 0.1 + m / 1e9}})
        for n, size in (("tiny", 5e6), ("small", 250e6), ("1b", 2.2e9))
    ]
    for run in hot:
        run.experiment["arms"][0]["scenario"] = scenario
    assert plan.make(hot, {"model_bytes": 4e9}).forecast.total_s
    with pytest.raises(BadInput, match="no start in these records pulls") as refused:
        plan.make(hot, {"image_bytes": 5e9})
    assert scenario in refused.value.what and "labkit study" in refused.value.fix


def test_two_blocks_of_a_technique_are_seen_but_rank_nothing():
    run = run_of(
        "small",
        300e6,
        250e6,
        n=2,
        arms={"naive": law, "naive+safetensors": faster_load},
        stacks={
            "naive": {"image": "full-pull", "weights": "pickle"},
            "naive+safetensors": {"image": "full-pull", "weights": "safetensors"},
        },
    )
    found = next(a for a in plan.make([*three(), run], {}, arm="naive").advice if a.key == "format")
    assert found.trust == AT_MOST and "too few" in found.how

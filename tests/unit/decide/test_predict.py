from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core.records import Run, Trial
from labkit.core.units import show_bytes
from labkit.decide import points, predict
from labkit.decide.holdout import hold_out
from labkit.decide.points import Point
from labkit.decide.reach import too_far
from labkit.errors import BadInput, IncomparableRecords
from tests.support.decide_runs import law, run_of, three


def test_a_law_without_noise_is_found_again_at_a_size_never_measured():
    model = predict.model_of(three(), "naive")
    forecast = model.predict({"image_bytes": 5e9, "unpacked_bytes": 12e9, "model_bytes": 16e9})
    assert forecast.total_s == pytest.approx(sum(law(5e9, 16e9).values()), rel=1e-6)
    assert forecast.phases["load"].seconds == pytest.approx(law(5e9, 16e9)["load"], rel=1e-6)


def test_a_held_out_size_is_predicted_within_the_noise_of_its_measurement():
    for row in hold_out(three(noise=0.05), "naive"):
        assert abs(row["error_share"]) < 0.2 and not row["from_one_size"]


def test_two_sizes_leave_one_to_fit_and_the_check_says_so():
    assert all(r["from_one_size"] for r in hold_out(three()[:2], "naive"))


def test_model_and_image_are_held_out_apart_and_extrapolations_are_marked():
    grid = [(5e6, 100e6), (80e6, 100e6), (250e6, 100e6), (5e6, 200e6), (5e6, 300e6)]
    rows = hold_out(
        [run_of(f"{m:.0f}-{i:.0f}", i, m, noise=0.03, seed=k) for k, (m, i) in enumerate(grid)],
        "naive",
    )
    assert all(abs(r["error_share"]) < 0.1 for r in rows), [
        (r["preset"], r["error_share"]) for r in rows
    ]
    assert [r["unseen"] for r in rows] == [
        [],
        ["model_bytes"],
        ["model_bytes"],
        ["image_bytes", "unpacked_bytes"],
        ["image_bytes", "unpacked_bytes"],
    ]
    assert [bool(r["beyond"]) for r in rows] == [False, False, True, False, True]


def test_a_guess_from_one_image_size_is_named_although_models_were_many():
    rows = hold_out(
        [
            run_of("a", 100e6, 5e6),
            run_of("b", 100e6, 80e6),
            run_of("c", 100e6, 250e6),
            run_of("d", 200e6, 5e6),
        ],
        "naive",
    )
    assert [r["from_one_size"] for r in rows] == [False, False, False, True]


def test_one_size_cannot_be_checked():
    with pytest.raises(BadInput, match="two sizes"):
        hold_out(three()[:1], "naive")


def test_one_size_is_taken_as_proportional_and_noted():
    forecast = predict.model_of(three()[1:2], "naive").predict(
        {"image_bytes": 300e6, "unpacked_bytes": 720e6, "model_bytes": 250e6}
    )
    assert any("one size only" in n for n in forecast.notes) and forecast.total_s == pytest.approx(
        sum(law(300e6, 250e6).values())
    )


def test_a_size_far_beyond_the_records_is_noted():
    notes = (
        predict.model_of(three(), "naive")
        .predict({"image_bytes": 1e9, "unpacked_bytes": 2e9, "model_bytes": 16e9})
        .notes
    )
    assert any(
        n.startswith("load") and "7 times the largest" in n and "widened" in n for n in notes
    )


def test_what_the_link_limited_moves_with_the_link_and_what_software_limited_does_not():
    model = predict.model_of(three(), "naive")
    sizes = {"image_bytes": 1e9, "unpacked_bytes": 2.4e9, "model_bytes": 2.2e9}
    slow, fast = (
        model.predict(sizes, link_bytes_per_s=125e6),
        model.predict(sizes, link_bytes_per_s=1250e6),
    )
    assert model.fits["pull"].bound and not model.fits["load"].bound
    assert (slow.phases["pull"].seconds - 0.2) / (
        fast.phases["pull"].seconds - 0.2
    ) == pytest.approx(10)
    assert slow.phases["load"].seconds == fast.phases["load"].seconds
    assert (
        model.predict(sizes, link_bytes_per_s=6e6).phases["load"].seconds
        > 10 * slow.phases["load"].seconds * 0.9
    )


def test_time_that_phases_share_is_not_counted_twice():
    run = run_of("tiny", 100e6, 5e6)
    overlapped = [Trial(**{**t.__dict__, "total_s": t.total_s - 0.5}) for t in run.trials]
    model = predict.model_of([Run(**{**run.__dict__, "trials": tuple(overlapped)})], "naive")
    assert model.predict(
        {"image_bytes": 100e6, "unpacked_bytes": 240e6, "model_bytes": 5e6}
    ).total_s == pytest.approx(run.trials[0].total_s - 0.5)


def test_records_of_two_hosts_are_not_fitted_together():
    with pytest.raises(IncomparableRecords):
        points.points([run_of("tiny", 1e6, 1e6), run_of("small", 2e6, 2e6, host="h2")], "naive")


def test_an_arm_without_a_good_trial_is_a_mistake_with_a_fix():
    with pytest.raises(BadInput) as caught:
        points.points(three(), "no-such-arm")
    assert caught.value.fix


def test_a_size_that_is_needed_and_missing_is_named():
    with pytest.raises(BadInput, match="model_bytes"):
        predict.model_of(three(), "naive").predict({"image_bytes": 1, "unpacked_bytes": 1})


@given(
    st.lists(st.tuples(st.floats(1e3, 1e10), st.floats(1e-3, 1e3)), min_size=1, max_size=20),
    st.floats(1, 1e11),
)
def test_no_data_make_a_negative_time_or_a_range_that_misses_the_forecast(rows, size):
    model = predict.fit([Point("load", x, y) for x, y in rows])
    one = model.predict({"model_bytes": size}, far=True)
    assert model.fits["load"].fixed_s >= 0 and model.fits["load"].s_per_byte >= 0
    assert 0 <= one.low_s <= one.total_s <= one.high_s


@given(
    st.floats(0, 10),
    st.floats(1e6, 1e10),
    st.lists(st.floats(1e6, 1e10), min_size=2, max_size=6, unique=True),
)
def test_a_straight_line_is_found_exactly(fixed, rate, sizes):
    if max(sizes) < 2 * min(sizes):
        return
    found = predict.fit([Point("load", s, fixed + s / rate) for s in sizes]).fits["load"]
    assert found.at(5e9) == pytest.approx(fixed + 5e9 / rate, rel=1e-3)


@pytest.mark.parametrize(
    ("measured", "furthest"),
    [
        ((5e6, 250e6, 1e9), 20e9),
        ((5e6, 20e6, 60e6), 240e6),  # too small for the bytes to outweigh what is fixed
        ((5e6, 250e6), 1e9),
        ((5e6, 250e6, 260e6), 1.04e9),  # the last two are one size
        ((250e6,), 500e6),
    ],
)
def test_a_line_reaches_as_far_as_its_sizes_support_and_no_further(measured, furthest):
    assert not too_far(furthest * 0.99, measured)
    assert show_bytes(max(measured)) in too_far(furthest * 1.01, measured)


def test_one_size_says_nothing_of_much_smaller_ones_either():
    assert too_far(5e6, (250e6,)) and not too_far(5e6, (50e6, 250e6, 1e9))


def test_one_small_size_is_no_base_for_a_forecast_a_thousand_times_as_far():
    model = predict.model_of(three()[:1], "naive")
    forecast = model.predict({"image_bytes": 100e6, "unpacked_bytes": 240e6, "model_bytes": 16e9})
    assert forecast.total_s is None and "load" not in forecast.phases
    with pytest.raises(BadInput, match="3200 times the largest size measured") as caught:
        forecast.total()
    assert caught.value.fix == "labkit study --sizes tiny+200MB,800MB"


def test_too_few_trials_never_look_certain():
    model = predict.model_of(
        [run_of("tiny", 100e6, 5e6, n=1), run_of("small", 300e6, 250e6, n=1)], "naive"
    )
    forecast = model.predict({"image_bytes": 200e6, "unpacked_bytes": 480e6, "model_bytes": 100e6})
    assert forecast.high_s >= 1.2 * forecast.total_s


def test_a_faster_link_than_the_one_measured_is_the_least_it_can_take_and_says_so():
    sizes = {"image_bytes": 1e9, "unpacked_bytes": 2.4e9, "model_bytes": 2.2e9}
    model = predict.model_of(three(), "naive")
    assert any(
        n.startswith("pull: the link was the limit")
        for n in model.predict(sizes, link_bytes_per_s=1250e6).notes
    )
    assert not any("was the limit" in n for n in model.predict(sizes, link_bytes_per_s=125e6).notes)

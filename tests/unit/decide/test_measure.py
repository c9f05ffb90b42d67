from __future__ import annotations

from dataclasses import replace

import pytest

from labkit.core import host, records
from labkit.decide import measure
from labkit.errors import BadInput, LabError
from tests.support.decide_runs import run_of, three


def test_sizes_take_turns_so_that_drift_does_not_bend_the_line(workspace, monkeypatch):
    import labkit.stack
    import labkit.subject.presets as presets

    asked = []

    def experiment(stacks, *, preset, blocks, out, resume, model_dir, **rest):
        asked.append((preset, blocks, out.name, resume))
        return run_of(preset, 1e6, 1e6)

    monkeypatch.setattr(labkit.stack, "experiment", experiment)
    monkeypatch.setattr(presets, "PRESETS", {"a": 1, "b": 2, "c": 3})
    made = measure.measure("naive", ("a", "b", "c"), blocks=2, workspace=workspace)
    assert [a[0] for a in asked] == ["a", "b", "c", "c", "b", "a"] and [a[1] for a in asked] == [
        1,
        1,
        1,
        2,
        2,
        2,
    ]
    assert (
        asked[0][2] == asked[5][2]
        and all(a[3] for a in asked)
        and [r.experiment["preset"] for r in made] == ["a", "b", "c"]
    )


def test_only_a_stack_with_an_image_is_measured_at_sizes_of_it(workspace):
    assert any("+" in s for s in measure.sizes_for("naive")) and not any(
        "+" in s for s in measure.sizes_for("no-image")
    )
    with pytest.raises(BadInput, match="no image to enlarge"):
        measure.measure("no-image", ("tiny+400MB",), workspace=workspace)


def test_a_named_series_goes_on_with_what_is_recorded(workspace, monkeypatch):
    import labkit.stack

    asked = []

    def experiment(stacks, *, blocks, out, image_extra_bytes, **rest):
        asked.append((out.name, blocks, image_extra_bytes))
        made = run_of("tiny", 1e6, 1e6, n=blocks)
        made = replace(made, experiment={**made.experiment, "image_extra_bytes": image_extra_bytes})
        records.write(made, out)
        return made

    monkeypatch.setattr(labkit.stack, "experiment", experiment)
    measure.measure(
        "naive", ("tiny", "tiny+1MB"), blocks=1, link="1gbit", workspace=workspace, name="mine"
    )
    made = measure.measure(
        "naive", ("tiny", "tiny+1MB"), blocks=2, link="1gbit", workspace=workspace, name="mine"
    )
    assert asked == [
        ("mine-tiny.json", 1, 0),
        ("mine-tiny+1MB.json", 1, 1_000_000),
        ("mine-tiny+1MB.json", 2, 1_000_000),
        ("mine-tiny.json", 2, 0),
    ]
    assert [len(r.trials) for r in made] == [2, 2]


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"link": "200mbit"}, "link: 1gbit against 200mbit"),
        ({"scenario": "warm-node"}, "scenario"),
        ({"arm": "no-image"}, "arm: naive"),
    ],
)
def test_a_named_series_of_another_question_is_not_taken_for_this_one(workspace, other, named):
    records.write(run_of("tiny", 1e6, 1e6), workspace.runs / "mine-tiny.json")
    with pytest.raises(BadInput, match=named):
        measure.measure(
            **{"arm": "naive", "link": "1gbit", **other},
            sizes=("tiny",),
            blocks=1,
            workspace=workspace,
            name="mine",
        )


def test_a_size_without_a_good_start_says_why_in_the_trials_own_words():
    good, bad = three()[:2]
    bad = replace(
        bad,
        trials=tuple(
            replace(
                t,
                outcome="cache_unproven",
                error={"what": "pages stay", "why": "mapped", "fix": "close it"},
            )
            for t in bad.trials
        ),
    )
    assert measure.succeeded([good], "naive") == [good]
    with pytest.raises(
        LabError, match="size small succeeded: cache_unproven: pages stay"
    ) as caught:
        measure.succeeded([good, bad], "naive")
    assert caught.value.fix == "close it"


def test_only_this_hosts_newest_record_of_each_size_and_of_one_question_is_gathered(workspace):
    here = host.card()
    old, tiny, small = (
        replace(r, host=here, id=i)
        for r, i in zip([three()[0], *three()[:2]], ("old", "tiny", "small"), strict=True)
    )
    other_link = replace(run_of("1b", 1e9, 2e9, link="10gbit"), host=here, id="other")
    for name, run in (
        ("1", old),
        ("2", tiny),
        ("3", small),
        ("4", other_link),
        ("5", replace(three()[2], host={"id": "elsewhere"})),
    ):
        records.write(run, workspace.runs / f"{name}.json")
    (workspace.runs / "6.json").write_text("torn")
    assert sorted(r.id for r in measure.gather("naive", workspace=workspace)) == ["small", "tiny"]


def test_nothing_recorded_is_a_mistake_with_a_command(workspace):
    with pytest.raises(BadInput) as caught:
        measure.gather("naive", workspace=workspace)
    assert "labkit study" in caught.value.fix


def test_the_forecast_bench_sets_each_size_left_out_against_its_measurement(monkeypatch):
    import argparse

    from labkit.bench import forecast

    monkeypatch.setattr(measure, "measure", lambda *a, **k: three(noise=0.02))
    doc = forecast.run(
        argparse.Namespace(
            stack="naive",
            sizes="tiny,small,1b",
            blocks=5,
            scenario="fresh-node",
            link="1gbit",
            name="",
        )
    )
    assert [r["arm"] for r in doc["results"]] == ["tiny", "small", "1b"]
    assert all(
        0.8 < doc["ratios"][f"predicted_vs_measured.{s}"]["median"] < 1.2
        for s in ("tiny", "small", "1b")
    )


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"unseen": ["model_bytes"], "beyond": [], "from_one_size": False}, "model interpolated"),
        (
            {
                "unseen": ["image_bytes", "unpacked_bytes"],
                "beyond": ["image_bytes", "unpacked_bytes"],
                "from_one_size": False,
            },
            "image EXTRAPOLATED",
        ),
        ({"unseen": [], "beyond": [], "from_one_size": False}, "both sizes known, not together"),
        (
            {"unseen": ["model_bytes"], "beyond": ["model_bytes"], "from_one_size": True},
            "model EXTRAPOLATED from one size: a guess",
        ),
    ],
)
def test_the_forecast_bench_says_how_far_it_had_to_reach(row, wanted):
    from labkit.bench import forecast

    assert forecast._evidence({"predicted_s": 9.0, "error_share": -0.1, **row}).endswith(wanted)

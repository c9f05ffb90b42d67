from __future__ import annotations

import pytest

from labkit.decide.advise import AT_MOST, MEASURED, NOT_SIGNIFICANT
from labkit.decide.first_steps import as_measured, first_steps
from labkit.decide.gains import gains
from labkit.errors import BadInput
from tests.support.decide_runs import law, run_of, study_of


@pytest.fixture(scope="module")
def study():
    return study_of(noise=0.02)


def by_key(advice):
    return {a.key: a for a in advice}


def test_each_step_is_ranked_with_its_gain_its_range_its_trust_and_its_effort(study):
    steps = first_steps(study)
    assert [a.rank for a in steps] == list(range(1, len(steps) + 1))
    assert all(a.low_s <= a.gain_s <= a.high_s and a.effort_why and a.how for a in steps)
    assert {a.key: a.technique for a in steps if a.trust == MEASURED} == {
        "lazy": "estargz-lazy",
        "format": "safetensors",
        "stream": "labkit-streamer",
    }


def test_without_sizes_of_the_reader_the_gains_are_those_of_the_studys_own_starts(study):
    gained = by_key(first_steps(study))["lazy"].gain_s
    saved = sum(law(300e6, 250e6).values()) - sum(
        study_of().run.of_arm("estargz-lazy")[0].phases.values()
    )
    assert gained == pytest.approx(saved, rel=0.1)
    assert as_measured(study.run, "naive").total_s == pytest.approx(
        sum(law(300e6, 250e6).values()), rel=0.05
    )


def test_a_technique_that_replaces_one_already_advised_counts_for_what_it_adds(study):
    both = by_key(first_steps(study))
    takes = sum(law(300e6, 250e6)[p] for p in ("build", "load"))
    assert both["format"].rank < both["stream"].rank
    assert both["format"].gain_s + both["stream"].gain_s < takes
    assert "÷ safetensors" in both["stream"].how  # against the rung below, not against naive


def test_no_other_way_for_a_layer_is_advised_beside_one_that_was_measured(study):
    steps = first_steps(study)
    assert "recompress" not in {a.key for a in steps[by_key(steps)["lazy"].rank :]}


def test_measured_gains_together_never_exceed_the_start(study):
    for given in (None, {"image_bytes": 900e6, "model_bytes": 900e6}):
        steps = first_steps(study, given)
        assert sum(a.share for a in steps if a.trust == MEASURED) < 1


def test_what_was_measured_without_a_significant_gain_stands_last_and_says_so():
    steps = first_steps(study_of(noise=0.2, laws={"safetensors": law, "labkit-streamer": law}))
    unclear = [a for a in steps if a.key in ("format", "stream")]
    assert all(a.trust == NOT_SIGNIFICANT and "not significant" in a.how for a in unclear)
    assert [a.trust for a in steps[len(steps) - len(unclear) :]] == [NOT_SIGNIFICANT] * len(unclear)


def test_a_technique_that_made_the_start_slower_is_not_advised():
    slower = study_of(laws={"estargz-lazy": lambda i, m: {**law(i, m), "import": 30.0}})
    assert "lazy" not in by_key(first_steps(slower))


def test_too_few_blocks_are_seen_and_rank_nothing():
    steps = first_steps(study_of(n=2))
    assert {a.trust for a in steps} == {AT_MOST}
    assert "too few" in by_key(steps)["lazy"].how


def test_a_rung_that_brings_what_its_technique_requires_is_measured_against_the_rung_below():
    naive = {"image": "full-pull", "process": "userns", "weights": "pickle"}
    run = run_of(
        "small",
        300e6,
        250e6,
        arms={"naive": law, "restored": lambda i, m: {"restore": 1.0}},
        stacks={
            "naive": naive,
            "restored": {**naive, "process": "runc", "snapshot": "criu-container"},
        },
    )
    assert gains(run) == []
    run.experiment["notes"] = {
        "study": {
            "steps": [
                {"label": "naive", "technique": "", "arm": "naive", "kind": "naive"},
                {
                    "label": "container checkpoint",
                    "technique": "criu-container",
                    "arm": "restored",
                    "kind": "rung",
                },
            ]
        }
    }
    assert [(g.technique, g.arm, g.against) for g in gains(run)] == [
        ("criu-container", "restored", "naive")
    ]


def test_a_study_without_a_good_naive_start_is_refused(study):
    with pytest.raises(BadInput, match="no good trial"):
        as_measured(study.run, "nobody")

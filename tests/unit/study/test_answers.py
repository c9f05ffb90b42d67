"""What a study answers: two figures and a floor, a rung each, a verdict or what one would take."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from labkit.core import records
from labkit.errors import BadInput
from labkit.stack.claims import claims
from labkit.study import answers, record
from labkit.viz import ladder

FIXTURE = Path(__file__).parents[3] / "data" / "fixtures" / "fixture_study.json"


@pytest.fixture(scope="module")
def study():
    return record.of_run(records.read(FIXTURE))


@pytest.fixture(scope="module")
def answer(study):
    return answers.answered(study)


@pytest.fixture(scope="module")
def table(study):
    return {row.label: row for row in answers.article(study)}


def test_the_sentence_has_naive_the_best_and_the_fewest_bytes(answer):
    assert (answer.naive.arm, answer.best.arm) == ("naive", "estargz-lazy + overlap")
    assert answer.best_label == "lazy pull + overlap" and answer.sure > 0.99
    assert answer.floor_s == 2.0 < answer.best.median_s < answer.naive.median_s


def test_a_rung_that_cannot_run_here_says_why_and_has_a_recorded_run_beside_it(answer):
    rung = answer.rungs[-1]
    assert rung.here is None and "make host-tools" in rung.why_not
    assert rung.beside and rung.beside.recorded_on and rung.beside.run.id != answer.naive.run.id
    assert all(r.here and not r.beside for r in answer.rungs[:-1])


def test_the_ladder_says_everything_in_words_and_draws_both_widths(answer):
    picture = ladder.ladder(answer)
    assert "+ container checkpoint: not here: criu" in picture.text
    assert "recorded on" in picture.text and "simulated" in picture.alt
    widths = [ladder.ladder(answer, narrow=n).figure().get_size_inches()[0] for n in (False, True)]
    assert widths[1] < widths[0] / 1.5


def test_an_arm_of_few_trials_is_the_best_only_where_none_has_enough(study):
    few = tuple(t for t in study.run.trials if t.arm != "estargz-lazy + overlap" or t.block < 2)
    found = answers.answered(record.of_run(replace(study.run, trials=few)))
    assert found.best.arm == "estargz-lazy + safetensors"
    none = tuple(t for t in study.run.trials if t.block < 2)
    found = answers.answered(record.of_run(replace(study.run, trials=none)))
    assert found.best.arm == "estargz-lazy + overlap" and not found.best.enough


def test_a_study_without_a_start_of_naive_has_no_answer(study):
    without = tuple(t for t in study.run.trials if t.arm != "naive")
    with pytest.raises(BadInput, match="no cold start of naive"):
        answers.answered(record.of_run(replace(study.run, trials=without)))


def test_what_a_snapshot_replaces_is_not_in_the_words_for_its_stack(study):
    stack = {"image": "estargz-lazy", "weights": "overlap", "snapshot": "criu-container"}
    arms = [{"name": "all", "stack": stack, "scenario": "fresh-node", "link": "1gbit"}]
    run = replace(study.run, experiment={**study.run.experiment, "arms": arms})
    assert answers.label_of(record.of_run(run), "all") == "lazy pull + container checkpoint"


def test_a_claim_is_measured_against_naive_and_else_against_the_rung_below(table):
    stream = {r.technique: r for r in table["safetensors + direct GPU stream"].here}
    assert stream["safetensors"].against == "naive"
    assert stream["labkit-streamer"].against == "estargz-lazy"
    assert "estargz-lazy + labkit-streamer against estargz-lazy" in stream["labkit-streamer"].setup


def test_a_claim_about_a_gpu_keeps_our_ratio_and_has_a_recorded_gpu_beside_it(table):
    row = table["safetensors + direct GPU stream"]
    assert {r.verdict for r in row.here} == {"other hardware"} and all(r.ratio for r in row.here)
    assert [bool(r.recorded_on) for r in row.recorded] == [True]


def test_a_claim_that_nothing_measured_says_why(table):
    row = table["CUDA checkpoint + CRIU"]
    assert not row.here and "make host-tools" in row.why_not
    assert not table["stargz lazy pulling"].why_not


@pytest.mark.parametrize(
    "blocks, factor, verdict, words",
    [
        (2, 0.5, "too few pairs", "3 more blocks make a verdict"),
        (5, 0.9, "not significant", "would likely decide it"),
        (5, 1.0, "not significant", "100"),
    ],
)
def test_a_row_without_a_verdict_says_what_one_would_take(study, blocks, factor, verdict, words):
    noise = (0.88, 1.13, 0.97, 1.08, 0.95)
    trials = tuple(
        replace(t, phases={"pull": 3 * (1 if t.arm == "naive" else factor * noise[t.block])})
        for t in study.run.trials
        if t.arm in ("naive", "object-pull") and t.block < blocks
    )
    rows = claims([replace(study.run, trials=trials)])
    (row,) = (r for r in rows if r.technique == "object-pull")
    assert row.verdict == verdict and words in row.wanting


def test_a_rung_that_cannot_run_here_has_the_recorded_study_s_own_rung_beside_it(study):
    elsewhere = answers.Elsewhere()
    for step in study.rungs[1:]:
        beside = answers.recorded(study, step, elsewhere)
        assert (
            beside.recorded_on
            and step.technique in beside.run.arm_named(beside.arm)["stack"].values()
        )
        assert beside.arm.endswith(step.technique)

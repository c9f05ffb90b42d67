"""A disturbed trial is marked in every figure and table that shows it."""

from __future__ import annotations

import pytest

from labkit.cli.experiments import summary
from labkit.core.records import Run, Trial
from labkit.viz import captions, compare, text_summary
from labkit.viz.live import Progress
from labkit.viz.waterfall import waterfall

REASON = "others used 46 % of the CPUs (most: cc1plus), limit 10 %"


def trial(arm, block, total_s, disturbed=""):
    phases = {"load": total_s}
    return Trial(arm, block, 0, total_s=total_s, phases=phases, disturbed=disturbed)


@pytest.fixture(scope="module")
def run() -> Run:
    """Block 0 of `b` was measured again; block 1 of it stays disturbed."""
    trials = (
        trial("a", 0, 8.0),
        trial("b", 0, 124.0, REASON),
        trial("b", 0, 4.0),
        trial("a", 1, 8.5),
        trial("b", 1, 5.0, REASON),
    )
    arms = [{"name": "a"}, {"name": "b"}]
    return Run("id", "2026-01-01T00:00:00+00:00", experiment={"arms": arms}, trials=trials)


def test_every_point_is_shown_and_the_disturbed_ones_have_a_star(run):
    points = captions.strip_text(run, ["a", "b"])
    assert "4.00 s, 5.00 s*; measured again: 124.0 s*" in points and "disturbed" in points
    assert "n = 2" in points.splitlines()[1]
    assert "*" not in points.splitlines()[0]


def test_strip_and_compare_draw_it_and_say_it(run):
    strip, compared = compare.strip(run), compare.compare(run)
    assert "1 disturbed by other work" in strip.text and "1 disturbed" in compared.text
    assert strip.figure() and compared.figure()


def test_a_waterfall_of_a_disturbed_trial_says_by_what(run):
    assert f"DISTURBED: {REASON}" in waterfall(run.trials[4]).text
    assert "DISTURBED" not in waterfall(run, "a").text
    assert "1 disturbed by other work" in waterfall(run, "b").text


def test_the_summary_says_the_reason_and_which_one_counts(run):
    text = text_summary.text(run, trials=True)
    assert f"DISTURBED b, block 1: {REASON}; measured again, which is what counts" in text
    assert f"DISTURBED b, block 2: {REASON}\n" in text
    assert "ok, disturbed" in text


def test_the_last_line_counts_them(run):
    doc = summary(run)
    assert doc["disturbed"] == 2 and [r["disturbed"] for r in doc["results"]] == [0, 1]
    assert doc["results"][1]["n"] == 2 and doc["failed"] == 0 and doc["trend"] == ""


def test_progress_says_it_at_once(run):
    with Progress(show="silent") as progress:
        assert progress.result_line(run.trials[1]).endswith(f"DISTURBED: {REASON}")
        assert "DISTURBED" not in progress.result_line(run.trials[0])

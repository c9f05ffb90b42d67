"""A study is a directory of ordinary records; what is known at its end stands in them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from labkit.core import host, records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, LabError
from labkit.study import conduct as conducting
from labkit.study import latest, read
from labkit.study.conduct import StudyOptions, conduct, preset_for


class Lab:
    """In place of the experiment: every trial takes 10 s, no process is started."""

    def __init__(self):
        self.calls, self.failing = [], ""

    def __call__(self, stacks, *, out, schedule=None, notes=None, preset, blocks, **chosen):
        self.calls.append({"stacks": stacks, "preset": preset, **chosen})
        if self.failing and preset == self.failing:
            raise LabError("no room on the disk")
        names = [getattr(s, "name", s) for s in stacks]
        arms = [{"name": n, "stack": {}, "scenario": "fresh-node", "link": "x"} for n in names]
        described = {"arms": arms, "preset": preset, "notes": notes or {}}
        run = Run("x", "2026-01-01", {"id": host.card()["id"]}, described)
        number = 0
        while due := schedule(number, run) if schedule else names * (number < blocks):
            trials = tuple(
                Trial(n, number, i, total_s=10.0, cache={"state": "cold"})
                for i, n in enumerate(due)
            )
            run = replace(run, trials=(*run.trials, *trials))
            number += 1
        records.write(run, out)
        return run


@pytest.fixture
def lab(monkeypatch):
    lab = Lab()
    monkeypatch.setattr(conducting, "experiment", lab)
    monkeypatch.setattr(conducting, "model_dir_of", lambda space, model: "")
    return lab


def test_a_study_is_read_back_as_it_was_carried_out(lab, workspace, tmp_path):
    study = conduct(StudyOptions(out=tmp_path / "s", minutes=30), workspace=workspace)
    again = read(tmp_path / "s")
    assert again.rungs == study.rungs
    assert [r.experiment["preset"] for r in again.sizes] == ["1GB", "tiny"]
    assert again.left_out == study.left_out
    assert again.rungs[0].arm == "naive"


def test_arms_without_a_trial_are_none_of_the_record_but_named_as_left_out(
    lab, workspace, tmp_path
):
    study = conduct(StudyOptions(out=tmp_path / "s", minutes=0.1), workspace=workspace)
    assert study.left_out
    assert not set(study.left_out) & set(study.run.arm_names)


def test_the_newest_study_of_this_host_is_found(lab, workspace):
    assert latest(workspace) is None
    made = conduct(StudyOptions(minutes=1, sizes=()), workspace=workspace)
    assert latest(workspace).path == made.path


def test_a_size_that_cannot_be_made_leaves_the_study_without_it(lab, workspace, tmp_path):
    lab.failing = "1GB"
    study = conduct(StudyOptions(out=tmp_path / "s", minutes=1), workspace=workspace)
    assert [r.experiment["preset"] for r in study.sizes] == ["tiny"]


def test_a_study_is_never_written_over_unasked(lab, workspace, tmp_path):
    options = StudyOptions(out=tmp_path / "s", minutes=1, sizes=())
    conduct(options, workspace=workspace)
    with pytest.raises(BadInput, match="exists"):
        conduct(options, workspace=workspace)
    conduct(replace(options, overwrite=True), workspace=workspace)


def test_beside_a_real_bucket_no_link_is_emulated(lab, workspace, tmp_path):
    conduct(
        StudyOptions(out=tmp_path / "s", store="s3://mine/models", sizes=()), workspace=workspace
    )
    assert (lab.calls[0]["link"], lab.calls[0]["store"]) == ("loopback", "s3://mine/models")


def test_a_larger_model_takes_both_time_and_memory():
    assert preset_for(120, 64 << 30) == "1b"
    assert preset_for(120, 4 << 30) == "small"
    assert preset_for(15, 64 << 30) == "small"


def test_a_run_that_names_no_steps_is_no_study(tmp_path):
    records.write(Run("x", "2026-01-01", {"id": "h"}, {"arms": []}), tmp_path / "ladder.json")
    with pytest.raises(BadInput, match="no study"):
        read(tmp_path)


def test_a_study_written_elsewhere_is_found_as_the_newest_one(lab, workspace, tmp_path):
    conduct(StudyOptions(out=tmp_path / "report/study", sizes=()), workspace=workspace)
    assert latest(workspace).path.resolve() == (tmp_path / "report/study").resolve()


def test_sizes_of_the_study_before_are_none_of_one_that_begins_anew(lab, workspace, tmp_path):
    options = StudyOptions(out=tmp_path / "s", sizes=("tiny+10MB", "80MB"))
    conduct(options, workspace=workspace)
    study = conduct(replace(options, sizes=("80MB",), overwrite=True), workspace=workspace)
    assert [r.experiment["preset"] for r in study.sizes] == ["80MB"]


def test_a_watcher_is_told_which_trials_are_to_come(lab, workspace, tmp_path):
    class Watcher:
        planned, replanned = (), ()

        def plan(self, arms, blocks, seconds):
            self.planned = (arms, blocks, seconds)

        def replan(self, arms):
            self.replanned = (*self.replanned, len(arms))

    watcher = Watcher()
    conduct(
        StudyOptions(out=tmp_path / "s", minutes=0.1, sizes=()),
        workspace=workspace,
        progress=watcher,
    )
    core, blocks, seconds = watcher.planned
    assert core[0] == "naive" and blocks == 5 and set(core) <= set(seconds)
    assert watcher.replanned[:3] == (5 * len(core), 4 * len(core), 3 * len(core))

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import question, records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput, IncomparableRecords


def run_of(host="h1", scenario="warm-node", link="loopback", state="cold", preset="small") -> Run:
    return Run(
        "id",
        "2026-01-01T00:00:00+00:00",
        host={"id": host},
        experiment={"arms": [{"name": "a", "scenario": scenario, "link": link}], "preset": preset},
        trials=(
            Trial("a", 0, 0, total_s=1.5, phases={"load": 1.0}, cache={"state": state}),
            Trial("a", 1, 0, outcome="oom"),
        ),
    )


def test_a_run_read_back_is_the_run_written(tmp_path):
    path = records.write(run_of(), tmp_path / "deep" / "run.json")
    assert records.read(path) == run_of()


def test_failed_trials_stay_in_the_record_and_out_of_the_figures():
    run = run_of()
    assert (
        len(run.of_arm("a")) == 1
        and len(run.of_arm("a", only_ok=False)) == 2
        and [t.outcome for t in run.failed] == ["oom"]
    )


def test_a_run_narrowed_to_some_arms_keeps_what_it_says_of_itself_and_of_them():
    run = run_of()
    both = replace(
        run,
        experiment={**run.experiment, "arms": [*run.experiment["arms"], {"name": "b"}]},
        trials=(*run.trials, Trial("b", 0, 1, total_s=1.0)),
    )
    assert both.narrowed(["a", "c"]) == run
    assert both.narrowed(["b"]).arm_names == ["b"] and both.narrowed([]).trials == ()


@pytest.mark.parametrize(
    ("trials", "counted"),
    [
        (["", ""], [0, 1]),  # two of a block that nothing disturbed, as in a pool
        (["busy", ""], [1]),
        (["", "busy"], [0]),
        (["busy", "busy"], [0]),  # the first, as planned: the shorter one would be a choice
        (["busy"], [0]),
        (["busy", "failed"], [0, 1]),
        (["failed busy", ""], [0, 1]),
    ],
)
def test_one_trial_of_a_disturbed_block_counts_and_all_are_kept(trials, counted):
    made = tuple(
        Trial(
            "a",
            3,
            i,
            outcome="oom" if "failed" in t else "ok",
            total_s=None if "failed" in t else 1.0 + i,
            disturbed="others used 40 % of the CPUs" if "busy" in t else "",
        )
        for i, t in enumerate(trials)
    )
    run = replace(run_of(), trials=made)
    assert [t.order for t in run.of_arm("a", only_ok=False)] == counted
    assert [t for t in run.of_arm("a") if not t.ok] == []
    left = [t.order for t in run.repeated("a")]
    assert sorted(counted + left) == list(range(len(trials)))
    assert len(run.disturbed) == sum("busy" in t for t in trials)


def test_an_older_trial_is_judged_as_it_is_read(tmp_path):
    path = records.write(run_of(), tmp_path / "run.json")
    doc = json.loads(path.read_text())
    for trial in doc["trials"]:
        del trial["disturbed"]
    doc["trials"][0]["samples"] = {"seconds": 2.0, "psi_cpu_some_s": 1.9}
    path.write_text(json.dumps(doc))
    assert [bool(t.disturbed) for t in records.read(path).trials] == [True, False]


def test_a_write_that_fails_leaves_the_old_record_and_no_other_file(tmp_path, monkeypatch):
    path = records.write(run_of(), tmp_path / "run.json")

    def full_disk(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(records.os, "fsync", full_disk)
    with pytest.raises(OSError):
        records.write(replace(run_of(), id="new"), path)
    assert records.read(path).id == "id" and [p.name for p in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"schema": 1}',
        '{"schema": 1, "trials": [{"nonsense": 1}], "id": "x", "created": ""}',
        '{"schema": 1, "trials": [3], "id": "x", "created": ""}',
        '{"schema": 1, "trials": []}',
    ],
)
def test_what_is_no_run_is_refused_with_a_fix(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(BadInput) as caught:
        records.read(tmp_path / "x.json")
    assert caught.value.fix


def test_a_newer_schema_is_refused(tmp_path):
    path = records.write(run_of(), tmp_path / "run.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": records.SCHEMA + 1}))
    with pytest.raises(BadInput, match="schema"):
        records.read(path)


def test_fields_of_a_later_minor_version_are_ignored(tmp_path):
    path = records.write(run_of(), tmp_path / "run.json")
    doc = json.loads(path.read_text())
    doc["later"], doc["trials"][0]["later"] = 1, 2
    path.write_text(json.dumps(doc))
    assert records.read(path) == run_of()


def test_a_missing_file_is_a_mistake_with_a_fix(tmp_path):
    with pytest.raises(BadInput, match="no run at"):
        records.read(tmp_path / "none.json")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_run_or_a_bad_input(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("r") / "x.json"
    path.write_bytes(data)
    with pytest.raises(BadInput):
        records.read(path)


@pytest.mark.parametrize(
    "difference",
    [
        {"host": "h2"},
        {"scenario": "fresh-node"},
        {"link": "1gbit"},
        {"state": "warm"},
        {"preset": "tiny"},
    ],
)
def test_runs_that_differ_in_what_they_measure_are_not_compared(difference):
    with pytest.raises(IncomparableRecords, match=next(iter(difference.values()))):
        question.comparable(run_of(), run_of(**difference))


def test_runs_of_one_host_and_question_are_compared():
    question.comparable(run_of(), replace(run_of(), id="other"))

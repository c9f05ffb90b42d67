"""What `labkit plan` is fitted from, and what it shows where nobody chose."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from labkit.cli import main
from labkit.core import host, records
from labkit.decide.sources import Wanted, choose, recorded_hosts
from labkit.errors import BadInput
from tests.support.decide_runs import run_of, study_of, three


def kept(study, folder, card=None):
    """A study written as `labkit study` does."""
    for name, run in (("ladder", study.run), *((f"size-{r.id}", r) for r in study.sizes)):
        records.write(replace(run, host=card or run.host), folder / f"{name}.json")
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return kept(study_of(noise=0.02), tmp_path_factory.mktemp("study"))


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_RECORDED", str(tmp_path / "recorded"))
    kept(study_of(), tmp_path / "recorded" / "big-box" / "study", {"id": "b", "title": "big box"})
    records.write(three()[0], tmp_path / "recorded" / "one-size" / "naive.json")
    (tmp_path / "recorded" / "nothing").mkdir()
    return tmp_path / "recorded"


def test_a_study_is_fitted_at_the_ladders_size_and_the_others(folder):
    source = choose(Wanted(study=str(folder)))
    assert len(source.runs) == 4 and source.arm == "naive" and str(folder) in source.words


def test_without_a_choice_this_hosts_newest_study_is_fitted(workspace):
    records.write(replace(three()[0], host=host.card()), workspace.runs / "1.json")
    kept(study_of(), workspace.runs / "study-1", host.card())
    source = choose(Wanted(), workspace)
    assert len(source.runs) == 4 and "study-1" in source.words


def test_without_a_study_three_sizes_of_this_hosts_records_are_enough(workspace):
    for i, run in enumerate(three()):
        records.write(replace(run, host=host.card()), workspace.runs / f"{i}.json")
    assert choose(Wanted(), workspace).words == "this host's records"


@pytest.mark.parametrize(("there", "said"), [(0, "no record"), (1, "one size"), (2, "2 sizes")])
def test_with_less_than_that_the_recorded_hosts_are_offered_by_name(
    workspace, recorded, there, said
):
    for i, run in enumerate(three()[:there]):
        records.write(replace(run, host=host.card()), workspace.runs / f"{i}.json")
    with pytest.raises(BadInput) as refused:
        choose(Wanted(), workspace)
    assert said in refused.value.what and "labkit study" in refused.value.fix
    assert "big-box (naive, fresh-node, 1gbit, 4 sizes)" in refused.value.why
    assert "--host big-box" in refused.value.fix and "nothing" not in refused.value.why


def test_a_recorded_host_is_used_by_its_name_and_stamped(recorded):
    assert [h.host for h in recorded_hosts()] == ["big-box", "one-size"]
    source = choose(Wanted(host="big-box"))
    assert {r.experiment["replayed_from"] for r in source.runs} == {"big box"}
    with pytest.raises(BadInput) as refused:
        choose(Wanted(host="elsewhere"))
    assert "big-box" in refused.value.fix


def test_two_sources_at_once_are_refused(folder):
    with pytest.raises(BadInput, match="--study and --host"):
        choose(Wanted(study=str(folder), host="big-box"))


def test_what_was_recorded_elsewhere_is_said_by_the_command_too(recorded, capsys):
    assert main(["plan", "--host", "big-box"]) == 0
    text, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "RECORDED on another host (big box)" in text and "recorded host big-box" in text
    assert json.loads(line)["recorded_on"] == "big box"


def test_in_a_pipe_nothing_is_asked_and_what_was_not_given_is_said(folder, capsys, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail(prompt))
    assert main(["plan", "--study", str(folder)]) == 0
    text, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    assert "Not given: image, as pulled, model," in text and "price of a GPU-hour – left" in text
    assert set(json.loads(line)["not_given"]) == {"as measured", "left out"}


def test_each_size_left_out_is_set_against_its_measurement(folder, capsys):
    assert main(["plan", "--study", str(folder), "--hold-out"]) == 0
    text, _, line = capsys.readouterr().out.rstrip().rpartition("\n")
    rows = json.loads(line)["hold_out"]
    assert len(rows) == 4 and all(abs(r["error_share"]) < 0.2 for r in rows)
    assert "between the others" in text and "without the size itself" in text


def test_a_size_measured_apart_is_predicted_from_all_of_the_study(folder, tmp_path, capsys):
    apart = replace(
        run_of("400MB", 400e6, 400e6, noise=0.02, stacks={"naive": _stack(folder)}), id="apart"
    )
    path = str(records.write(apart, tmp_path / "apart.json"))
    assert main(["plan", "--json", "--study", str(folder), "--hold-out", path]) == 0
    (row,) = json.loads(capsys.readouterr().out)["hold_out"]
    assert row["run"] == "apart" and abs(row["error_share"]) < 0.2 and not row["beyond"]


def test_a_size_that_is_in_the_fit_was_not_measured_apart(folder, capsys):
    one = str(folder / "ladder.json")
    assert main(["plan", "--study", str(folder), "--hold-out", one]) == 2
    assert "is in the fit" in capsys.readouterr().err


def _stack(folder):
    return records.read(folder / "ladder.json").arm_named("naive")["stack"]

from __future__ import annotations

import json

import pytest

from labkit.cli import main
from labkit.cli.ranking import rank
from labkit.core import records
from labkit.core.records import Run, Trial


def run_of(
    arms: dict[str, list[float]], host: str = "h1", link: str = "loopback", name: str = "r"
) -> Run:
    trials = tuple(
        Trial(
            arm,
            block,
            0,
            total_s=s,
            phases={"load": s * 0.6, "import": s * 0.4},
            cache={"state": "cold"},
        )
        for arm, ss in arms.items()
        for block, s in enumerate(ss)
    )
    return Run(
        name,
        "now",
        host={"id": host, "title": f"host {host}"},
        trials=trials,
        experiment={
            "arms": [{"name": a, "scenario": "warm-node", "link": link} for a in arms],
            "preset": "small",
        },
    )


@pytest.fixture
def saved(tmp_path):
    return lambda name, run: str(records.write(run, tmp_path / f"{name}.json"))


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().split("\n")[-1])


def test_arms_of_one_run_are_paired_by_block(saved, capsys):
    path = saved("a", run_of({"naive": [2, 4, 6, 8, 10], "fast": [1, 2, 3, 4, 5]}))
    assert main(["compare", path]) == 0
    rows = {r["arm"]: r for r in last_line(capsys)["rows"]}
    assert (
        rows["fast"]["ratio"]["median"] == 0.5
        and rows["fast"]["ratio"]["significant"]
        and "ratio" not in rows["naive"]
    )


def test_two_runs_are_compared_arm_by_arm_and_name_the_phase_that_moved(saved, capsys):
    old, new = (
        run_of({"naive": [2, 2.1, 2, 1.9, 2]}),
        run_of({"naive": [3, 3.1, 3, 2.9, 3]}, name="s"),
    )
    assert main(["compare", saved("a", old), saved("b", new)]) == 0
    (row,) = last_line(capsys)["rows"]
    assert (
        row["ratio"]["significant"]
        and row["ratio"]["median"] == 1.5
        and row["moved"]["phase"] == "load"
    )


def test_noise_between_two_runs_prints_not_significant(saved, capsys):
    a, b = (
        run_of({"naive": [2, 2.4, 2.1, 1.9, 2.2]}),
        run_of({"naive": [2.1, 2.3, 2.0, 2.2, 1.95]}, name="s"),
    )
    assert main(["compare", saved("a", a), saved("b", b)]) == 0
    assert "not significant" in capsys.readouterr().out


@pytest.mark.parametrize("other", [{"host": "h2"}, {"link": "1gbit"}])
def test_runs_that_do_not_measure_the_same_thing_are_refused_with_the_reason(saved, capsys, other):
    a, b = saved("a", run_of({"naive": [2]})), saved("b", run_of({"naive": [2]}, **other))
    assert main(["compare", a, b]) == 5
    said = capsys.readouterr().err
    assert next(iter(other.values())) in said and "fix:" in said


def test_participants_are_ranked_by_host_and_ties_are_named():
    fast, same, slow = (
        run_of({"naive": ss}, host=h)
        for h, ss in (
            ("a", [1, 1.1, 1.05, 0.9, 1]),
            ("b", [1.02, 1.1, 1.0, 0.95, 1.06]),
            ("c", [3, 3.1, 3, 3.2, 2.9]),
        )
    )
    (ranking,) = rank([slow, same, fast])
    assert [(h["host"], h["place"], h["tie"]) for h in ranking["hosts"]] == [
        ("a", 1, False),
        ("b", 1, True),
        ("c", 3, False),
    ]


def test_two_questions_make_two_rankings():
    assert (
        len(
            rank(
                [
                    run_of({"naive": [1]}),
                    run_of({"naive": [2]}, link="1gbit"),
                    run_of({"fast": [1]}),
                ]
            )
        )
        == 3
    )


def test_three_runs_without_rank_are_a_mistake(saved):
    path = saved("a", run_of({"naive": [1]}))
    assert main(["compare", path, path, path]) == 2


def test_doctor_ends_with_one_json_line_and_changes_nothing(capsys):
    assert main(["doctor", "--no-disk"]) == 0
    doc = last_line(capsys)
    assert doc["host"]["id"] and {f["state"] for f in doc["findings"]} <= {
        "OK",
        "DEGRADED",
        "MISSING",
    }

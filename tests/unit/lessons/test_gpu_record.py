"""Records of GPU trials are shown wherever records are: stamped, floors beside, what is missing
with its reason, and never a crash."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labkit.cli import compare, show
from labkit.core import printable, records
from labkit.errors import BadInput
from labkit.lessons import (
    gallery,
    gpu_checkpoints,
    gpu_figures,
    gpu_goals,
    gpu_loads,
    gpu_page,
    gpu_record,
    gpu_stacks,
    gpu_starts,
    gpu_summary,
    report_parts,
)
from labkit.stack import replay
from tests.support.gpu_records import record, results, write
from tests.support.record_mutations import ROOT, VALUES, places

REAL = sorted((ROOT / "data" / "recorded").glob("*/gpu-trials*.json"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(replay.ENV, str(tmp_path / "recorded"))
    write(tmp_path / "recorded" / "invented", "first", "1b", without=("context", "load-cold"))
    write(tmp_path / "recorded" / "invented", "second", "8b")
    return tmp_path / "recorded"


def cells(table):
    return [dict(zip(table.head, row, strict=True)) for row in table.rows]


def test_both_records_of_a_host_stand_in_one_table_and_every_table_is_stamped(folder):
    found = gpu_record.recorded()
    assert [r.plan for r in found] == ["first", "second"]
    for _, make in gpu_summary.TABLES.values():
        table = make(found)
        assert table.rows and table.caption.startswith("replayed from an invented host")
        assert all(len(row) == len(table.head) for row in table.rows)
    assert [row["model"] for row in cells(gpu_checkpoints.parked(found))] == ["1b", "8b"]


def test_what_was_not_measured_keeps_a_row_with_its_outcome_and_reason(folder):
    found = gpu_record.recorded()
    said = gpu_loads.loaded(found).text
    assert (
        "load-cold: skipped: load-cold was left out" in said
        and "no such library was invented" in said
    )
    stacked = gpu_stacks.stacked(found).text
    assert (
        "resident: crashed: Traceback … RuntimeError: it was never there" in stacked
        and "compile: skipped" in stacked
    )
    assert "SIGINVENTED" in gpu_checkpoints.restored(found).text
    alone = (gpu_record.read(folder / "invented" / "gpu-trials-first.json"),)
    assert (
        "skipped: context was left out" in gpu_starts.context(alone).text
        and "skipped" in gpu_figures.context(alone).text
    )


def test_a_trial_that_was_ended_says_after_how_long_and_that_its_measurements_are_kept():
    trial = {
        "name": "context",
        "outcome": "timeout",
        "error": "it did not end within 54 s. Traceback …\n" + "x" * 300 + "\nKeyboardInterrupt",
    }
    assert gpu_record.reason(trial) == "timeout: it did not end within 54 s"
    assert gpu_record.reason({**trial, "result": {"arms": {}}}).endswith(
        "54 s; what it had measured is kept"
    )


def test_medians_stand_with_n_range_and_the_share_of_the_bus(folder):
    row = cells(gpu_checkpoints.parked(gpu_record.recorded()))[1]
    assert (row["park"], row["n"], row["equal tokens"], row["÷ pinned bus"]) == (
        "2.10 s (2.00–2.20 s)",
        "3",
        "all",
        "32%",
    )
    steps = cells(gpu_starts.context(gpu_record.recorded()))
    assert {"driver", "context", "all of it", "copy_pinned (registered)"} <= {
        s["step"] for s in steps
    } and "nvml" not in {s["step"] for s in steps}


def test_a_record_that_was_gone_on_with_stands_once_and_is_compared_with_its_naive_arm(
    tmp_path, monkeypatch
):
    monkeypatch.setenv(replay.ENV, str(tmp_path))
    doc = record()
    stack = next(t for t in doc["trials"] if t["name"] == "stack")
    first, both = copy.deepcopy(stack), copy.deepcopy(stack)
    first["result"]["results"] = first["result"]["results"][1:]
    doc["trials"] = [first, {**both, "name": "naive"}]
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "gpu-trials-second.json").write_text(json.dumps(doc, indent=1))
    assert [
        (row["stack"], row["÷ naive"]) for row in cells(gpu_stacks.stacked(gpu_record.recorded()))
    ] == [("no-image", "1.000"), ("no-image,weights=labkit-streamer", "0.300")]


def test_goals_are_judged_of_the_8b_shape_only(folder):
    found = gpu_record.recorded()
    judged = [
        (row["goal"].rpartition(": ")[2][:11], row["measured, 8b"], row["met"])
        for row in cells(gpu_goals.goals(found))
    ]
    assert judged == [
        ("cold disk t", "6.00 s", "yes"),
        ("stacked ÷ n", "0.30", "yes"),
        ("pinned wake", "92%", "yes"),
        ("equal token", "all", "yes"),
    ]
    assert "nothing of it was measured" in gpu_goals.goals(found[:1]).text


def test_restores_are_rows_of_the_article_s_table_and_one_look_is_never_significant(folder):
    rows = gpu_goals.claimed(gpu_record.recorded())
    assert [(round(r.ratio["median"], 3), r.verdict) for r in rows] == [
        (1.025, "too few pairs")
    ] * 2
    assert all(
        "replayed from an invented host" in r.setup
        and "on INVENTED GPU" in r.setup
        and "image cold" in r.setup
        for r in rows
    )


def test_recorded_runs_on_the_gpu_are_found_by_size_and_marked(folder):
    run = records.read(ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json")
    for preset, device in (("8b", "cuda"), ("1b", "cuda"), ("tiny", "cpu")):
        chosen = {**(run.experiment.get("conditions") or {}), "device": device}
        records.write(
            replace(
                run,
                experiment={
                    **run.experiment,
                    "preset": preset,
                    "conditions": {**chosen, "preset": preset},
                },
            ),
            folder / "invented" / f"stack-{preset}.json",
        )
    found = gpu_record.runs("stack")
    assert [r.experiment["preset"] for r in found] == ["1b", "8b"] and all(
        r.experiment["replayed_from"] for r in found
    )
    assert gpu_record.runs("other") == []


def test_figures_are_stamped_and_their_twins_say_the_same(folder):
    for picture in gpu_figures.every(gpu_record.recorded()):
        texts = [t.get_text() for t in picture.figure().findobj() if hasattr(t, "get_text")]
        assert (
            any("replayed from an invented host" in t for t in texts)
            and "replayed from an invented host" in picture.text
        )
    assert "the bus 50.00 GB/s" in gpu_figures.rates(gpu_record.recorded()).text


def test_without_a_record_nothing_is_shown_and_it_says_what_makes_one(tmp_path, monkeypatch):
    monkeypatch.setenv(replay.ENV, str(tmp_path))
    assert gpu_record.recorded() == () and "make gpu" in gpu_checkpoints.parked(()).text
    for _, make in gpu_summary.TABLES.values():
        make(())
    gpu_figures.every(())


def test_a_host_s_records_are_not_mixed_with_another_s(folder):
    other = json.loads((folder / "invented" / "gpu-trials-second.json").read_text())
    (folder / "older").mkdir()
    (folder / "older" / "gpu-trials-second.json").write_text(
        json.dumps({**other, "created": "2020-01-01T00:00:00+00:00"}, indent=1)
    )
    assert {r.name.partition("/")[0] for r in gpu_record.recorded()} == {"invented"}
    assert len(gpu_record.recorded("older")) == 1


def test_the_gallery_has_a_page_of_it_and_names_a_damaged_one(folder, tmp_path):
    (folder / "invented" / "gpu-trials-broken.json").write_text(
        json.dumps({**record(), "trials": [{"name": 3, "outcome": "ok"}]}, indent=1)
    )
    executed = tmp_path / "executed"
    executed.mkdir()
    (executed / "00_start_here.ipynb").write_bytes(
        (ROOT / "notebooks" / "00_start_here.ipynb").read_bytes()
    )
    built = gallery.build(tmp_path / "site", executed)
    page = (tmp_path / "site" / "recorded" / "invented" / "gpu-trials-second.html").read_text()
    assert (
        "replayed from an invented host" in page
        and "it was never there" in page
        and page.count("<figure") == len(gpu_figures.FIGURES)
    )
    assert (
        built.runs == 2
        and "gpu-trials-broken" in built.skipped[0]
        and "trials[0].name" in built.skipped[0]
    )
    assert "GPU trials: 11 of 13 passed" in built.page.read_text()


def test_runs_and_gpu_trials_are_told_apart(folder, tmp_path, capsys):
    path = folder / "invented" / "gpu-trials-second.json"
    assert replay.names() == [] and gpu_record.names() == [
        "invented/gpu-trials-first",
        "invented/gpu-trials-second",
    ]
    with pytest.raises(BadInput, match="gpu-trials, not of a run"):
        records.read(path)
    with pytest.raises(BadInput, match="no record of GPU trials"):
        gpu_record.read(ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json")
    gpu_record.refuse_unsound(path)
    gpu_record.refuse_unsound(ROOT / "data" / "recorded" / "epyc-2" / "naive-small.json")
    with pytest.raises(BadInput):
        compare.run(_args(compare, str(path)))
    assert "replayed from" in report_parts.record_html(path)


def _args(command, *argv):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(argv)


def test_show_prints_every_table_one_json_line_or_a_figure(folder, tmp_path, capsys):
    path = str(folder / "invented" / "gpu-trials-second.json")
    assert (
        show.run(_args(show, path)) == 0
        and "Parked and woken by the driver" in capsys.readouterr().out
    )
    assert (
        show.run(
            _args(show, path, "--json", "--figure", str(tmp_path / "f.png"), "--arm", "restore")
        )
        == 0
    )
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        said["kind"] == "gpu-trials"
        and {"name": "compile", "outcome": "skipped", "error": "no time was invented for it"}
        in said["trials"]
        and (tmp_path / "f.png").exists()
    )
    with pytest.raises(BadInput, match="no figure"):
        show.run(_args(show, path, "--arm", "x"))


def test_markdown_is_made_of_every_table(folder, capsys):
    assert gpu_page.main([]) == 0
    said = capsys.readouterr().out
    assert said.count("### ") == len(gpu_summary.TABLES) and "| 8b | no-image |" in said
    assert gpu_page.main(["parked"]) == 0 and capsys.readouterr().out.count("### ") == 1


def test_the_tables_go_between_the_marks_of_a_page_and_nowhere_else(folder, tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text(f"before\n{gpu_page.BEGIN}\nold\n{gpu_page.END}\nafter\n")
    assert gpu_page.main(["parked", "--into", str(page)]) == 0
    once = page.read_text()
    assert (
        once.startswith("before\n")
        and once.endswith("after\n")
        and "old" not in once
        and "### Parked" in once
    )
    assert gpu_page.main(["parked", "--into", str(page)]) == 0 and page.read_text() == once
    page.write_text("no marks")
    assert (
        gpu_page.main(["--into", str(page)]) == 2
        and "no place" in capsys.readouterr().err
        and page.read_text() == "no marks"
    )
    assert gpu_page.main(["--figure", str(tmp_path / "f.png")]) == 2


def test_the_page_about_the_recorded_gpu_says_what_its_records_say():
    """python -m labkit.lessons.gpu_record --into docs/h100.md --figure docs/h100.png"""
    page = (ROOT / "docs" / "h100.md").read_text(encoding="utf-8")
    assert page == gpu_page.with_tables(page, gpu_summary.markdown(gpu_record.recorded("h100")))


@st.composite
def damaged(draw):
    doc = copy.deepcopy(record())
    for _ in range(draw(st.integers(1, 4))):
        every = list(places(doc))
        depth = draw(st.integers(1, 8))
        path = draw(st.sampled_from([p for p in every if len(p) == depth] or every))
        parent = doc
        for step in path[:-1]:
            parent = parent[step]
        how = draw(st.sampled_from(["set", "set", "remove", "wrap"]))
        if how == "remove":
            del parent[path[-1]]
        else:
            parent[path[-1]] = (
                [parent[path[-1]]]
                if how == "wrap"
                else copy.deepcopy(draw(st.sampled_from(VALUES)))
            )
    return doc


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(damaged())
def test_a_damaged_record_is_refused_or_shown_and_a_terminal_obeys_none_of_it(
    tmp_path_factory, doc
):
    path = tmp_path_factory.mktemp("r") / "gpu-trials-second.json"
    path.write_text(json.dumps(doc, indent=1))
    try:
        found = (gpu_record.read(path),)
    except BadInput as error:
        assert error.what
        return
    for said in [
        gpu_summary.markdown(found),
        gpu_summary.text(found),
        gpu_summary.html(found, "x"),
        *(p.text for p in gpu_figures.every(found)),
    ]:
        assert "\x1b" not in said and "\u202e" not in said


@pytest.mark.parametrize("path", REAL, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_every_record_of_the_repository_is_sound_and_drawn(path):
    found = (gpu_record.read(path),)
    assert "INVENTED" not in path.read_text()
    assert printable.text(gpu_summary.text(found)) and len(gpu_figures.every(found)) == len(
        gpu_figures.FIGURES
    )


def test_the_made_up_record_has_every_trial_that_is_read():
    assert set(results("1b")) >= {
        "facts",
        "model",
        "cuda-checkpoint",
        "cuda-checkpoint-criu",
        "stack",
        "decode",
        "wake",
        "load-warm",
        "context",
    }

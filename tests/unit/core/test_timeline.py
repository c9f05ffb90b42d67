from __future__ import annotations

import multiprocessing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import timeline
from labkit.core.timeline import Span


def test_a_span_written_by_one_process_is_read_by_another(tmp_path):
    path = str(tmp_path / "t.jsonl")
    with timeline.span("load", source="server", path=path, loader="pickle") as facts:
        facts["bytes"] = 7
    (found,) = timeline.read(path)
    assert (found.name, found.source, found.detail) == (
        "load",
        "server",
        {"loader": "pickle", "bytes": 7},
    )
    assert found.start_s <= found.end_s


def test_the_environment_names_the_file(tmp_path, monkeypatch):
    monkeypatch.setenv("LABKIT_TIMELINE", str(tmp_path / "e.jsonl"))
    monkeypatch.setenv("LABKIT_SOURCE", "agent")
    timeline.write("pull", 1.0, 2.0)
    assert timeline.read(tmp_path / "e.jsonl")[0].source == "agent"


def test_outside_a_trial_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_TIMELINE", raising=False)
    monkeypatch.chdir(tmp_path)
    assert timeline.write("pull", 1.0, 2.0).duration_s == 1.0 and not list(tmp_path.iterdir())


def test_a_failed_block_leaves_its_span_and_what_failed(tmp_path):
    path = str(tmp_path / "t.jsonl")
    with pytest.raises(KeyError), timeline.span("load", path=path):
        raise KeyError("x")
    assert timeline.read(path)[0].detail["failed"] == "KeyError"


@given(st.binary(max_size=200))
def test_a_torn_or_foreign_line_never_hides_the_good_ones(tmp_path_factory, junk):
    path = tmp_path_factory.mktemp("t") / "t.jsonl"
    timeline.write("pull", 1.0, 2.0, path=str(path))
    with open(path, "ab") as out:
        out.write(junk.replace(b"\n", b"") + b"\n")
    timeline.write("start", 2.0, 3.0, path=str(path))
    assert {"pull", "start"} <= {s.name for s in timeline.read(path)}


def test_a_missing_file_is_an_empty_timeline(tmp_path):
    assert timeline.read(tmp_path / "none") == []


def _write_many(path: str, name: str) -> None:
    for i in range(200):
        timeline.write(name, i, i + 1, path=path, filler="x" * 100)


def test_lines_of_many_writers_never_mix(tmp_path):
    path = str(tmp_path / "t.jsonl")
    writers = [
        multiprocessing.get_context("spawn").Process(target=_write_many, args=(path, f"w{i}"))
        for i in range(3)
    ]
    for w in writers:
        w.start()
    for w in writers:
        w.join()
    assert len(timeline.read(path)) == 600


INTERVALS = st.lists(st.tuples(st.floats(-5, 15), st.floats(0, 5)), max_size=12)


@given(INTERVALS)
def test_overlapping_phases_are_counted_once(intervals):
    spans = [Span("x", a, a + d) for a, d in intervals]
    covered = timeline.union_s(spans, 0, 10)
    assert -1e-9 <= covered <= min(10, sum(s.duration_s for s in spans)) + 1e-9
    assert covered == pytest.approx(timeline.union_s(list(reversed(spans)) + spans, 0, 10))


def test_a_phase_and_its_parts_are_told_apart():
    assert (
        Span("load", 0, 1).is_phase
        and not Span("load.download", 0, 1).is_phase
        and Span("load.download", 0, 1).phase == "load"
    )

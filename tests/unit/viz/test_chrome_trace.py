"""A trial becomes a trace that its readers take whole: every rule of the format, for every record
that ships with the lab, and for trials that no machine had."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit import cli
from labkit.core import records
from labkit.core.records import Run, Trial
from labkit.errors import BadInput
from labkit.stack.replay import of_gpu_trials
from labkit.viz import chrome_trace
from labkit.viz.trace_events import Slice, Track, document, encoded, is_trace, lanes
from tests.support.trace_rules import broken_rules

DATA = Path(__file__).parents[3] / "data"
RECORDS = sorted(
    p
    for p in (*DATA.glob("fixtures/*.json"), *DATA.glob("recorded/*/*.json"))
    if not of_gpu_trials(p)
)


def span(name, start_s, end_s, source="server", **detail):
    return {"name": name, "start_s": start_s, "end_s": end_s, "source": source, "detail": detail}


def run_of(*spans, **more) -> Run:
    ends_s = max(s["end_s"] for s in spans)
    trial = Trial("naive", 0, 0, **{"total_s": ends_s, "spans": list(spans), **more})
    return Run("r", "2026-01-01T00:00:00Z", trials=(trial,))


def events_of(run: Run, kind: str = "X") -> list[dict]:
    doc = chrome_trace.trace(run, chrome_trace.choose(run, 1))
    assert broken_rules(encoded(doc)) == []
    return [e for e in doc["traceEvents"] if e["ph"] == kind]


def names_of(run: Run, kind: str) -> list[str]:
    return [e["args"]["name"] for e in events_of(run, "M") if e["name"] == kind]


@pytest.mark.parametrize("path", RECORDS, ids=lambda p: p.stem)
def test_every_trial_of_every_record_keeps_the_formats_rules(path):
    run = records.read(path)
    with_spans = [n for n, t in enumerate(run.trials, 1) if t.spans]
    assert with_spans
    for n in with_spans:
        doc = chrome_trace.trace(run, chrome_trace.choose(run, n))
        assert broken_rules(encoded(doc)) == []
        slices = {e["name"] for e in doc["traceEvents"] if e["ph"] == "X"}
        assert {s["name"] for s in run.trials[n - 1].spans} <= slices


MOMENTS_S = st.floats(-2, 5, allow_nan=False)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(MOMENTS_S, st.floats(0, 4)), max_size=14))
def test_slices_on_lanes_nest_whatever_they_were(given_slices):
    slices = [Slice(f"s{i}", at_s, at_s + s) for i, (at_s, s) in enumerate(given_slices)]
    doc = document([chrome_trace.Process("p", (Track("t", slices),))], {})
    assert broken_rules(encoded(doc)) == []
    assert sorted(s.name for lane in lanes(slices) for s in lane) == sorted(s.name for s in slices)


def test_what_nests_stays_on_one_lane_and_what_overlaps_gets_another():
    load, read, late = Slice("load", 0, 4), Slice("load.read", 1, 2), Slice("pull", 3, 6)
    assert lanes([load, read, late]) == [[load, read], [late]]


def test_each_process_of_a_trial_has_its_name_and_its_spans():
    run = run_of(
        span("pull", 0, 1, "agent"), span("load", 1, 2), span("first_token", 2, 3, "client")
    )
    assert names_of(run, "process_name") == [
        "cold start of naive",
        "client",
        "node agent",
        "server",
    ]


def test_what_began_before_t0_is_cut_there_and_says_so():
    (cut,) = [e for e in events_of(run_of(span("load.wait", -1.5, 2))) if e["name"] == "load.wait"]
    assert (cut["ts"], cut["dur"]) == (0, 2_000_000)
    assert cut["args"]["began_before_t0_s"] == 1.5


def test_floors_stand_beside_their_phases():
    run = run_of(span("pull", 1, 3, "agent"), floors={"pull": 0.5}, phases={"pull": 2.0})
    (floor,) = [e for e in events_of(run) if e["name"] == "pull: floor"]
    assert (floor["ts"], floor["dur"]) == (1_000_000, 500_000)


def test_a_rate_is_drawn_from_where_its_interval_began_and_a_gauge_from_its_moment():
    series = {
        "t_s": [-0.1, 0.2, 0.4],
        "cpu_share": [0.1, 0.5, 0.25],
        "memory_available_bytes": [1e6, 2e6, 3e6],
        "words": ["a", "b", "c"],
        "other": [math.nan, True, 1],
    }
    found = [
        (e["name"], e["ts"], *e["args"].items())
        for e in events_of(run_of(span("load", 0, 1), samples={"series": series}), "C")
    ]
    assert [f for f in found if f[0] == "cpu"] == [
        ("cpu", 0, ("%", 50.0)),
        ("cpu", 200_000, ("%", 25.0)),
    ]
    assert [f[1] for f in found if f[0] == "memory available"] == [200_000, 400_000]


def test_single_transfers_are_slices_of_their_store():
    facts = {
        "transfers": {
            "paths": [
                ["registry", "/v2/lab/subject/blobs/sha256:0123456789ab"],
                ["bucket", "/a/b"],
            ],
            "rows": [[0, 0.1, 0.4, 10], [0, 0.2, 0.5, 20], [1, 0.3, 0.3, 0]],
            "left_out": 7,
        },
        "stores": {"registry": {"requests": 9, "bytes_sent": 30, "by_path": {"x": {}}}},
    }
    run = run_of(span("pull", 0, 1, "agent"), facts=facts)
    found = [(e["name"], e["args"]["bytes"]) for e in events_of(run) if "path" in e["args"]]
    assert found == [("sha256:0123456789ab", 10), ("sha256:0123456789ab", 20), ("b", 0)]
    tracks = names_of(run, "thread_name")
    assert {"registry", "registry (2)", "bucket"} <= set(tracks)
    marks = [e["name"] for e in events_of(run, "i")]
    assert "7 small transfers are not drawn" in marks
    most = max(e["args"]["requests"] for e in events_of(run, "C") if "registry" in e["name"])
    assert most == 2


def test_nothing_of_a_record_reaches_the_file_unmasked_or_unprintable(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh12345678")
    run = run_of(
        span("load\x1b[2J", 0, 1, "server\u202e", url="http://x/?key=hf_abcdefgh12345678"),
        evidence=[{"technique": "x", "engaged": True, "how": "hf_abcdefgh12345678", "facts": {}}],
        facts={"attempts": math.inf},
    )
    doc = chrome_trace.trace(run, chrome_trace.choose(run, 1))
    assert broken_rules(encoded(doc)) == []
    assert b"hf_abcdefgh" not in encoded(doc)


def test_what_is_simulated_or_replayed_says_so_where_it_is_seen_first():
    run = run_of(span("load", 0, 1))
    stamped = replace(run, experiment={"simulated": "fixture"})
    assert names_of(stamped, "process_name")[0].endswith("[simulated: fixture]")


def test_a_trial_is_chosen_by_the_number_that_show_prints(capsys):
    path = DATA / "fixtures" / "fixture_overlap.json"
    run = records.read(path)
    assert cli.main(["show", str(path), "--trials"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    printed = {words[0]: words[2] for words in lines if words[3:4] == ["ok"]}
    chosen = {n: chrome_trace.choose(run, n).trial.arm for n in range(1, len(run.trials) + 1)}
    assert printed == {str(n): arm for n, arm in chosen.items()}


def test_without_a_number_it_is_the_median_trial_of_the_arm():
    run = records.read(DATA / "fixtures" / "fixture_overlap.json")
    chosen = chrome_trace.choose(run, arm="overlap")
    assert run.trials[chosen.number - 1] is chosen.trial
    assert sorted(t.total_s for t in run.of_arm("overlap"))[2] == chosen.trial.total_s


@pytest.mark.parametrize(
    "number, arm, why",
    [
        (99, "", "holds 22"),
        (22, "", "has no spans"),
        (1, "nobody", "is of arm"),
        (0, "no", "no arm"),
    ],
)
def test_a_trial_that_is_none_is_refused_with_its_reason(number, arm, why):
    run = records.read(DATA / "fixtures" / "fixture_arms.json")
    with pytest.raises(BadInput, match=why):
        chrome_trace.choose(run, number, arm)


def test_the_command_writes_a_trace_again_and_never_over_a_strangers_file(tmp_path, capsys):
    record, out = DATA / "fixtures" / "fixture_overlap.json", tmp_path / "t.json.gz"
    for _ in range(2):
        assert cli.main(["trace", str(record), "--trial", "2", "--out", str(out)]) == 0
    assert "ui.perfetto.dev" in capsys.readouterr().out
    assert is_trace(out.read_bytes()) and broken_rules(gzip.decompress(out.read_bytes())) == []
    mine = tmp_path / "mine.json"
    mine.write_text('{"traceEvents":[]}')
    assert cli.main(["trace", str(record), "--out", str(mine)]) == 2
    assert mine.read_text() == '{"traceEvents":[]}' and "  fix: " in capsys.readouterr().err


def test_the_command_reports_as_json_what_it_wrote(tmp_path, capsys):
    record, out = DATA / "fixtures" / "fixture_naive.json", tmp_path / "t.json"
    assert cli.main(["trace", str(record), "--out", str(out), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["out"] == str(out)
    assert report["events"] == len(json.loads(out.read_text())["traceEvents"])


def test_a_record_of_gpu_trials_is_refused(capsys):
    assert cli.main(["trace", str(DATA / "recorded/h100/gpu-trials-first.json")]) == 2
    assert "GPU trials" in capsys.readouterr().err


def test_a_trace_of_a_private_record_is_its_owners_only(tmp_path):
    record, out = tmp_path / "r.json", tmp_path / "t.json"
    record.write_bytes((DATA / "fixtures" / "fixture_naive.json").read_bytes())
    record.chmod(0o600)
    assert cli.main(["trace", str(record), "--out", str(out)]) == 0
    assert out.stat().st_mode & 0o777 == 0o600


def test_a_notebook_gets_the_trace_beside_its_record_and_the_command(
    workspace, monkeypatch, capsys
):
    monkeypatch.setenv("LABKIT_HOME", str(workspace.root))
    run = records.read(DATA / "fixtures" / "fixture_arms.json")
    records.write(run, workspace.runs / f"{run.id}.json")
    path = chrome_trace.save_beside_record(run, "estargz-lazy, not optimised")
    assert path == workspace.runs / "fixture_arms-estargz-lazy-not-optimised.trace.json.gz"
    assert broken_rules(gzip.decompress(path.read_bytes())) == []
    printed = capsys.readouterr().out
    assert f"labkit trace {workspace.runs / run.id}.json --trial N" in printed


def test_a_trial_that_other_work_disturbed_says_so():
    run = run_of(span("load", 0, 1), disturbed="others used 46 % of the CPUs")
    (whole,) = [e for e in events_of(run) if "[disturbed]" in e["name"]]
    assert whole["args"]["disturbed"] == "others used 46 % of the CPUs"

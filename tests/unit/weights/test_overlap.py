"""Weights that start to arrive at t0: a shard has its name only when whole, and the loader waits
for names, not for luck."""

from __future__ import annotations

import pytest

from labkit.core.node_state import NodeState, PlanState, WeightsState
from labkit.core.plan import LaunchPlan, StepContext
from labkit.core.timeline import Span, read
from labkit.errors import LabError, TransferError
from labkit.net.serving import serving
from labkit.objects.publish import publish_model
from labkit.technique import Artifact, Observation, technique
from labkit.weights import overlap


@pytest.fixture
def checkpoint(tmp_path):
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "config.json").write_text("{}")
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 40_000)
    return made


def context(tmp_path, **more):
    return StepContext(
        node=tmp_path,
        port=0,
        timeline_path=tmp_path / "timeline.jsonl",
        ledger=None,
        server_args=[],
        server_env={},
        server_binds=[],
        **more,
    )


def test_the_shards_arrive_whole_and_the_server_is_led_to_them(tmp_path, checkpoint):
    publish_model(tmp_path / "store", checkpoint, "models/x")
    with serving("store", tmp_path / "store") as served:
        ctx = context(tmp_path)
        overlap.fetch_small(ctx, "s3://lab/models/x", {"AWS_ENDPOINT_URL": served.url})
        overlap.fetch_shards(ctx, "s3://lab/models/x", {"AWS_ENDPOINT_URL": served.url})
    assert (tmp_path / "model/model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()
    assert [s.name for s in read(ctx.timeline_path)] == ["load.ahead"]


def test_the_shards_leave_the_link_to_a_mount_until_it_has_what_the_start_touches(tmp_path):
    ctx = context(tmp_path)
    link = overlap.ImageFirst(ctx, parts=2)
    assert all(link.may_go() for _ in range(5))  # nothing is mounted yet
    for _ in range(5):
        link.done(None)
    sign = tmp_path / "lazyfs.prefetched"
    ctx.state.link_free_when = str(sign)
    assert [link.may_go() for _ in range(3)] == [True, True, False]
    link.done(None)
    assert [link.may_go() for _ in range(2)] == [True, False]
    sign.touch()
    assert all(link.may_go() for _ in range(5))


def test_a_mount_that_is_stuck_holds_the_shards_up_for_a_while_only(tmp_path, monkeypatch):
    link = overlap.ImageFirst(
        context(tmp_path, state=NodeState(link_free_when=str(tmp_path / "never"))), parts=0
    )
    now = [100.0]
    monkeypatch.setattr(overlap.time, "monotonic", lambda: now[0])
    assert not link.may_go()
    now[0] += overlap.YIELD_S + 1
    assert link.may_go() and link.yielded_s > overlap.YIELD_S


def test_shards_come_whole_beside_a_mount_that_never_says_it_is_done(tmp_path, checkpoint):
    publish_model(tmp_path / "store", checkpoint, "models/x")
    with serving("store", tmp_path / "store") as served:
        ctx = context(tmp_path, state=NodeState(link_free_when=str(tmp_path / "never")))
        overlap.fetch_small(ctx, "s3://lab/models/x", {"AWS_ENDPOINT_URL": served.url})
        facts = overlap.fetch_shards(ctx, "s3://lab/models/x", {"AWS_ENDPOINT_URL": served.url})
    assert facts["bytes_fetched"] == 10_240_000
    assert (tmp_path / "model/model.safetensors").read_bytes() == (
        checkpoint / "model.safetensors"
    ).read_bytes()


def test_a_store_that_is_gone_is_told_to_the_waiting_loader(tmp_path):
    (tmp_path / "model").mkdir()
    ctx = context(tmp_path)
    ctx.state.hand_on(overlap.Target(tmp_path / "model"))
    with pytest.raises(TransferError):
        overlap.fetch_shards(
            ctx, "s3://lab/models/none", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
        )
    with pytest.raises(TransferError, match="did not arrive"):
        overlap.wait_for(tmp_path / "model", ["model.safetensors"], patience_s=60)


def test_the_loader_waits_until_every_shard_has_its_name(tmp_path):
    asked = []

    def pause(_):
        asked.append(1)
        if len(asked) == 3:
            (tmp_path / "a").touch()

    overlap.wait_for(tmp_path, ["a"], pause=pause)
    assert len(asked) == 3


def test_patience_ends(tmp_path):
    with pytest.raises(TransferError, match="within"):
        overlap.wait_for(tmp_path, ["never"], patience_s=0, pause=lambda _: None)


def test_read_ahead_goes_through_every_file(tmp_path, checkpoint):
    facts = overlap.read_ahead(context(tmp_path), list(map(str, checkpoint.iterdir())))
    assert facts["bytes_read"] == sum(f.stat().st_size for f in checkpoint.iterdir())


@pytest.mark.parametrize(
    "scenario, first",
    [
        ("fresh-node", ["fetch_small", "fetch_shards"]),
        ("warm-node", ["expect_loader", "read_ahead"]),
    ],
)
def test_the_move_stands_before_every_other_step(scenario, first, tmp_path):
    state = (
        {"bucket": "http://127.0.0.1:1", "store": "s3://lab"} if scenario == "fresh-node" else {}
    )
    plan = LaunchPlan(stack={"weights": "overlap"}, scenario=scenario, state=PlanState(**state))
    artifact = Artifact(
        "overlap",
        "d",
        {"model_dir": str(tmp_path)},
        {"model_key": "models/x", "weights_bytes": 5, "files": [], "weight_files": []},
    )
    made = technique("overlap").apply(plan, artifact)
    assert [s.call.rpartition(":")[2] for s in made.steps] == first
    assert made.steps[-1].background


def test_a_move_that_began_after_the_start_is_no_overlap():
    plan = LaunchPlan(stack={"weights": "overlap"}, state=PlanState(weights=WeightsState(bytes=10)))
    start = Span("start", 0.0, 1.0)
    late = Observation(plan, spans=(start, Span("load.ahead", 1.5, 2.0, detail={"bytes": 10})))
    early = Observation(plan, spans=(start, Span("load.ahead", 0.1, 2.0, detail={"bytes": 10})))
    short = Observation(plan, spans=(start, Span("load.ahead", 0.1, 2.0, detail={"bytes": 9})))
    asked = technique("overlap")
    assert [asked.verify(s).engaged for s in (late, early, short)] == [False, True, False]


def test_reading_ahead_ends_where_the_loader_takes_over(tmp_path, checkpoint, monkeypatch):
    ctx = context(tmp_path)
    overlap.expect_loader(ctx)
    taken = ctx.server_env[overlap.TAKEN_OVER]
    monkeypatch.setattr(overlap, "READ_BYTES", 1 << 20)
    exists, looks = overlap.os.path.exists, []

    def look(path):
        if path == taken and len(looks) == 3:
            overlap.Path(taken).touch()
        looks.append(path)
        return exists(path)

    monkeypatch.setattr(overlap.os.path, "exists", look)
    read_bytes = overlap.read_ahead(ctx, sorted(map(str, checkpoint.iterdir())))["bytes_read"]
    span = read(ctx.timeline_path)[0]
    assert 0 < read_bytes < 256 * 40_000 and span.detail["taken_over"] is True


def test_without_a_loader_that_says_so_everything_is_read_ahead(tmp_path, checkpoint):
    assert (
        overlap.read_ahead(context(tmp_path), list(map(str, checkpoint.iterdir())))["bytes_read"]
        == 256 * 40_000 + 2
    )


def test_the_loader_says_that_it_has_come(tmp_path, monkeypatch):
    import torch

    monkeypatch.setenv(overlap.TAKEN_OVER, str(tmp_path / "taken"))
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(LabError):
        # the file is empty: there is nothing to load
        overlap.load(torch.nn.Linear(1, 1), str(tmp_path))
    assert (tmp_path / "taken").exists()


def taken_over(read_bytes, rchar):
    plan = LaunchPlan(
        stack={"weights": "overlap"},
        state=PlanState(weights=WeightsState(bytes=1000, files=("/m/model.safetensors",))),
    )
    spans = (
        Span("load.ahead", 0.0, 1.0, "agent", {"bytes": read_bytes, "taken_over": True}),
        Span("start", 0.1, 0.2, "agent", {}),
    )
    return Observation(plan=plan, spans=spans, proc={"io": {"rchar": rchar}, "maps": []})


def test_a_read_ahead_that_was_taken_over_is_proven_by_what_the_loader_read():
    technique_ = technique("overlap")
    assert technique_.verify(taken_over(400, 2000)).engaged
    assert not technique_.verify(taken_over(400, 10)).engaged
    assert not technique_.verify(taken_over(0, 2000)).engaged

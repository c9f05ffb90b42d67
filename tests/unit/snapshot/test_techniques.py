"""The snapshot techniques' part of a plan, and what they take for evidence. Nothing here needs
CRIU."""

from __future__ import annotations

import pytest

from labkit.core import probes
from labkit.core.node_state import PlanState
from labkit.core.plan import LaunchPlan, Step
from labkit.errors import BadInput
from labkit.snapshot import container_technique, techniques, transport
from labkit.technique import Artifact, Observation, technique

IMAGE, STORED, MODEL, LIBRARIES = 170_000_000, 90_000_000, 5_000_000, 40_000_000


def artifact(name: str = "criu-process") -> Artifact:
    return Artifact(
        name,
        "0123456789abcdef",
        {"snapshot": "/artifacts/s", "model_dir": "/models/m"},
        {
            "size_bytes": IMAGE,
            "stored_bytes": STORED,
            "pages_bytes": IMAGE - 1000,
            "restore_bytes": IMAGE + LIBRARIES + MODEL,
            "library_bytes": LIBRARIES,
            "model_key": "models/tiny-safetensors-0123",
            "mapped": {"/models/m/model.safetensors": MODEL},
            "nonce": "n0",
            "secrets": [],
        },
    )


def fresh(name: str = "criu-process", **state) -> LaunchPlan:
    plan = LaunchPlan(
        stack={"snapshot": name},
        scenario="fresh-node",
        link="1gbit",
        state=PlanState(bucket="http://x", **state),
        floors_bytes={"pull": 1000, "import": 7},
        steps=(
            Step("pull", "image:pull"),
            Step("unpack", "image:unpack"),
            Step("start", "image:start"),
        ),
    )
    return technique(name).apply(plan, artifact(name))


def seen(plan: LaunchPlan, sent: dict[str, int], **identity) -> Observation:
    paths = {f"/lab/{key}/file": {"bytes_sent": size} for key, size in sent.items()}
    return Observation(
        plan=plan,
        facts={
            "identity": {"nonce": "n0", "reseeded": 1, **identity},
            "restore": {"image_bytes": IMAGE},
        },
        stores={
            "bucket": {"by_path": paths, "bytes_sent": sum(sent.values())},
            "registry": {"bytes_sent": 0},
        },
    )


def test_on_a_fresh_node_what_crosses_the_link_is_fetched_first_and_counted_in_its_floor():
    plan = fresh()
    assert [s.phase for s in plan.steps] == ["pull.begin", "pull", "restore"] and plan.steps[
        0
    ].args["model_url"].endswith("models/tiny-safetensors-0123")
    assert plan.floors_bytes == {
        "pull": 1000 + STORED,
        "restore": LIBRARIES,
        "restore@memcpy": IMAGE + LIBRARIES + MODEL,
        "restore@link@t0": MODEL,
    }
    assert "/artifacts/s" not in plan.cold_paths


def test_a_container_keeps_the_steps_that_bring_its_image_and_reads_nothing_from_the_disk():
    plan = fresh("criu-container")
    assert [s.call for s in plan.steps] == [
        "labkit.snapshot.transport:start",
        "image:pull",
        "image:unpack",
        "labkit.snapshot.transport:wait",
        "labkit.snapshot.container:restore",
    ]
    assert plan.floors_bytes["restore"] == 0


def test_a_lazy_mount_fetches_what_the_restored_process_touched_and_not_what_a_start_would():
    mount = Step("mount", "image:mount", {"options": ["--no-background"]})
    plan = technique("criu-container").apply(
        LaunchPlan(
            stack={"snapshot": "criu-container"},
            scenario="fresh-node",
            link="1gbit",
            state=PlanState(bucket="http://x"),
            steps=(mount, Step("start", "image:start")),
        ),
        artifact("criu-container"),
    )
    assert [s.phase for s in plan.steps] == [
        "pull.begin",
        "mount",
        "mount.touched",
        "pull",
        "restore",
    ]
    assert plan.steps[1].args["options"] == ["--no-background", "--no-prefetch"]


class Wrong(Exception):
    pass


@pytest.mark.parametrize("until", ["manifest", "restorable", "facts"])
def test_what_ends_the_fetch_of_a_snapshot_reaches_whoever_waits_for_the_rest_of_it(until):
    def fetch(download):
        for step in ("manifest", "restorable"):
            if step == until:
                raise Wrong
            getattr(download, step).set_result({})
        raise Wrong

    download, steps = transport.SnapshotDownload(fetch), ["manifest", "restorable", "facts"]
    for step in steps[: steps.index(until)]:
        assert getattr(download, step).result(5) == {}
    for step in steps[steps.index(until) :]:
        with pytest.raises(Wrong):
            getattr(download, step).result(5)


def test_on_a_warm_node_the_snapshot_is_made_cold_and_read_from_the_disk():
    plan = technique("criu-process").apply(
        LaunchPlan(stack={"snapshot": "criu-process"}, scenario="warm-node"), artifact()
    )
    assert set(plan.cold_paths) == {"/artifacts/s", "/models/m/model.safetensors"}
    assert (
        plan.floors_bytes == {"restore": IMAGE + LIBRARIES + MODEL}
        and not plan.state.snapshot_crossing
    )


def test_bytes_that_the_bucket_did_not_send_are_no_evidence():
    plan = fresh()
    snapshot, model = plan.state.snapshot_crossing
    whole = technique("criu-process").verify(seen(plan, {snapshot: STORED, model: MODEL}))
    assert (
        whole.engaged
        and whole.facts["bytes_over_link"] == {snapshot: STORED, model: MODEL}
        and "1gbit" in whole.how
    )
    for sent in ({snapshot: STORED - 1, model: MODEL}, {snapshot: STORED}, {model: MODEL}, {}):
        assert not technique("criu-process").verify(seen(plan, sent)).engaged


@pytest.mark.parametrize("identity", [{"nonce": "n1"}, {"reseeded": 0}])
def test_another_process_or_old_random_state_is_no_evidence(identity):
    plan = fresh()
    snapshot, model = plan.state.snapshot_crossing
    assert (
        not technique("criu-process")
        .verify(seen(plan, {snapshot: STORED, model: MODEL}, **identity))
        .engaged
    )


def test_a_container_whose_image_did_not_cross_the_link_is_no_evidence(monkeypatch):
    plan = fresh("criu-container")
    snapshot, model = plan.state.snapshot_crossing
    look = seen(plan, {snapshot: STORED, model: MODEL})
    look.proc["ns"] = {"mnt": "mnt:[1]", "pid": "pid:[1]"}
    refused = technique("criu-container").verify(look)
    assert not refused.engaged and "nothing of the OCI image crossed" in refused.how
    look.stores["registry"]["bytes_sent"] = 5_000_000
    found = technique("criu-container").verify(look)
    assert found.engaged and found.facts["image_bytes_over_link"] == 5_000_000


def test_an_image_that_starts_its_containers_itself_is_refused():
    with pytest.raises(BadInput, match="starts its containers itself"):
        fresh("criu-container", started_by="labkit.image.containerd_steps:start")


def test_where_podman_is_the_only_runtime_the_refusal_says_so(monkeypatch):
    monkeypatch.setattr(
        techniques,
        "capability",
        lambda name: probes.Capability(
            name, name != "runc", "no runc" if name == "runc" else "", "", "apt-get install runc"
        ),
    )
    monkeypatch.setattr(
        container_technique.shutil,
        "which",
        lambda name: "/usr/bin/podman" if name == "podman" else None,
    )
    found = technique("criu-container").available({})
    assert not found.ok and "podman is here" in found.missing and "runc" in found.fix

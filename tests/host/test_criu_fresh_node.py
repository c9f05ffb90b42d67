"""A fresh node has nothing of a snapshot: image and model cross the link, and the same process
answers on the other side."""

from __future__ import annotations

import os

import pytest

from labkit.core.workspace import Workspace
from labkit.errors import BadInput
from labkit.stack import experiment

PROCESS, CONTAINER = "no-image,snapshot=criu-process", "naive,snapshot=criu-container"


@pytest.fixture(scope="module")
def home(lab_home) -> Workspace:
    return Workspace.at(lab_home)


@pytest.fixture
def libraries_as_they_are(monkeypatch):
    """The host's own libraries may be mapped by this very process, and what is mapped cannot be
    made cold: it is not what is looked at here."""
    from labkit.technique import technique

    monkeypatch.setattr(type(technique("host-env")), "apply", lambda self, plan, artifact: plan)


def evidence_of(run, arm: str) -> dict:
    trial = run.of_arm(arm, only_ok=False)[0]
    assert trial.outcome == "ok", (trial.outcome, trial.error, trial.log_tail[-600:])
    found = trial.evidence[-1]
    assert found["engaged"] and found["technique"] == arm.rpartition("=")[2]
    return {"trial": trial, **found["facts"]}


def crossed(facts: dict) -> dict[str, int]:
    return {key.split("/")[0]: size for key, size in facts["bytes_over_link"].items()}


def left(home: Workspace) -> list[list[str]]:
    """Node directories, ledgers, and what was served: stores and packed snapshots. A snapshot
    itself is kept."""
    kept = [
        name
        for name in os.listdir(home.artifacts)
        if name.startswith(("registry-", "store-")) or ".packed" in name
    ]
    return [sorted(os.listdir(home.nodes)), sorted(os.listdir(home.ledger)), sorted(kept)]


@pytest.mark.needs("root", "criu")
def test_a_process_comes_over_the_link_and_answers_as_itself(home, tmp_path, libraries_as_they_are):
    before = left(home)
    run = experiment(
        [PROCESS],
        preset="tiny",
        blocks=1,
        scenario="fresh-node",
        link="1gbit",
        workspace=home,
        out=tmp_path / "run.json",
    )
    facts = evidence_of(run, PROCESS)
    trial, pulled, restored = (
        facts["trial"],
        facts["trial"].facts["steps"]["pull"],
        facts["trial"].facts["steps"]["restore"],
    )
    assert facts["nonce"] == facts["expected"] and facts["reseeded"] >= 1
    assert set(trial.phases) == {"pull", "restore", "first_token"}
    assert (
        pulled["compression"] == "zstd"
        and crossed(facts)["snapshots"] >= pulled["snapshot_bytes_fetched"] > 5_000_000
    )
    assert crossed(facts)["models"] >= restored["model_bytes_fetched"] > 1_000_000
    assert (
        trial.floors["pull"] >= pulled["snapshot_bytes_fetched"] / 125e6 * 0.99
        and trial.floors["restore"] >= restored["model_bytes_fetched"] / 125e6 * 0.99
    )
    assert (
        trial.total_s
        >= (pulled["snapshot_bytes_fetched"] + restored["model_bytes_fetched"]) / 125e6
    )
    ended = {s["name"]: s["end_s"] for s in trial.spans}
    # not let run before the last byte of the model
    assert ended["restore.checked"] >= ended["pull.model"]
    assert left(home) == before


@pytest.mark.needs("root", "criu")
def test_a_snapshot_that_is_not_compressed_crosses_the_link_whole_and_answers_alike(
    home, tmp_path, monkeypatch, libraries_as_they_are
):
    monkeypatch.setenv("LABKIT_SNAPSHOT_COMPRESSION", "none")
    run = experiment(
        [PROCESS],
        preset="tiny",
        blocks=1,
        scenario="fresh-node",
        link="1gbit",
        workspace=home,
        out=tmp_path / "run.json",
    )
    facts = evidence_of(run, PROCESS)
    assert facts["trial"].facts["steps"]["pull"]["compression"] == "none"
    assert crossed(facts)["snapshots"] >= facts["image_bytes"] > 50_000_000


@pytest.mark.timeout(300)
@pytest.mark.needs("root", "criu", "runc")
def test_a_container_s_image_snapshot_and_model_come_over_the_link(home, tmp_path):
    run = experiment(
        [CONTAINER],
        preset="tiny",
        blocks=1,
        scenario="fresh-node",
        link="1gbit",
        workspace=home,
        out=tmp_path / "run.json",
    )
    facts = evidence_of(run, CONTAINER)
    trial = facts["trial"]
    assert facts["nonce"] == facts["expected"] and set(facts["namespaces"]) == {"mnt", "pid"}
    assert (
        5_000_000 < crossed(facts)["snapshots"] < 0.7 * facts["image_bytes"]
        and facts["image_bytes_over_link"] > 50_000_000
    )
    assert {"pull", "unpack", "restore"} <= set(trial.phases) and not {
        "start",
        "import",
        "load",
    } & set(trial.phases)
    assert facts["rootfs"].startswith(str(home.nodes))


@pytest.mark.timeout(300)
@pytest.mark.needs("root", "criu", "runc", "fuse")
def test_a_container_on_a_lazy_mount_brings_only_what_the_restored_process_touches(home, tmp_path):
    stack = "naive,image=estargz-lazy,snapshot=criu-container"
    run = experiment(
        [stack],
        preset="tiny",
        blocks=1,
        scenario="fresh-node",
        link="1gbit",
        workspace=home,
        out=tmp_path / "run.json",
    )
    facts = evidence_of(run, stack)
    trial = facts["trial"]
    assert {"mount", "pull", "restore"} <= set(trial.phases) and not {
        "start",
        "import",
        "load",
    } & set(trial.phases)
    steps = trial.facts["steps"]
    assert (
        steps["mount"]["prefetch_planned_bytes"] == 0
        and steps["mount.touched"]["touched_bytes"] > 10_000_000
    )
    assert 0 < facts["image_bytes_over_link"] < 0.3 * steps["mount"]["blobs_bytes"]
    begun = {s["name"]: s["start_s"] for s in trial.spans}
    # the snapshot comes while the image is mounted
    assert begun["pull.snapshot"] < begun["mount.touched"] < begun["restore"]


def test_a_zygote_is_refused_on_a_fresh_node_with_the_reason(workspace):
    from labkit.core.plan import LaunchPlan
    from labkit.stack.ablate import candidates
    from labkit.technique import Artifact, technique

    with pytest.raises(BadInput, match="resident before t0") as caught:
        technique("zygote").apply(
            LaunchPlan(stack={"process": "zygote", "image": "host-env"}, scenario="fresh-node"),
            Artifact("zygote"),
        )
    assert "warm-node" in caught.value.fix
    assert "zygote" in candidates({}, layers=("process",), scenario="fresh-node")[1]
    assert "zygote" in candidates({}, layers=("process",), scenario="warm-node")[0]

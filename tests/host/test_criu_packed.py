"""A snapshot packed on the node's disk: the same process answers, from fewer bytes; a damaged one
is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labkit.core.workspace import Workspace
from labkit.snapshot import packing, store
from labkit.stack import experiment
from labkit.stack.experiment import prepared

STACKS = {
    "criu-process-packed": "no-image,snapshot=criu-process-packed",
    "criu-container-packed": "naive,snapshot=criu-container-packed",
}


@pytest.fixture(scope="module")
def home(lab_home) -> Workspace:
    return Workspace.at(lab_home)


@pytest.mark.timeout(300)
@pytest.mark.needs("root", "criu", "runc")
def test_the_dumped_container_answers_from_fewer_bytes(home, tmp_path):
    run = experiment(
        [STACKS["criu-container-packed"]],
        preset="tiny",
        blocks=1,
        scenario="warm-node",
        workspace=home,
        out=tmp_path / "run.json",
    )
    trial = run.trials[0]
    assert trial.ok, (trial.outcome, trial.error, trial.log_tail[-600:])
    facts = trial.facts["steps"]["restore"]
    assert (
        facts["unpacked_bytes"] > 50_000_000
        and facts["packed_bytes"] < 0.4 * facts["unpacked_bytes"]
    )
    assert (
        set(trial.phases) == {"restore", "first_token"}
        and "unpacked from" in trial.evidence[-1]["how"]
    )


@pytest.mark.needs("root", "criu")
def test_a_damaged_frame_ends_the_restore_before_anything_runs(home, monkeypatch):
    from labkit.technique import technique

    with prepared(
        STACKS["criu-process-packed"], preset="tiny", scenario="hot-node", workspace=home
    ) as trial:
        # other processes of these tests have the host's torch mapped
        assert trial().outcome in ("ok", "cache_unproven")
        made = next(
            p for p in home.artifacts.glob("criu-process-*-packed") if (p / packing.INDEX).exists()
        )
        pages = max((made / "images").iterdir(), key=lambda p: p.stat().st_size)
        kept = pages.read_bytes()
        try:
            pages.write_bytes(
                kept[: len(kept) // 2]
                + bytes([kept[len(kept) // 2] ^ 1])
                + kept[len(kept) // 2 + 1 :]
            )
            done = trial()
            assert not done.ok
            assert done.outcome == "cache_unproven" or "damaged" in done.error["what"], done.error
        finally:
            pages.write_bytes(kept)
    assert technique("criu-process-packed").excluded_scenarios == ("fresh-node",)


@pytest.mark.needs("root", "criu")
def test_what_packing_made_can_be_unpacked_to_the_bit(home, tmp_path):
    from labkit.core.plan import StepContext
    from labkit.snapshot.unpacking import unpack

    with prepared(
        STACKS["criu-process-packed"], preset="tiny", scenario="hot-node", workspace=home
    ):
        packed = next(
            p for p in home.artifacts.glob("criu-process-*-packed") if (p / packing.INDEX).exists()
        )
    node = tmp_path / "node"
    node.mkdir()
    ctx = StepContext(
        node=node,
        port=0,
        timeline_path=tmp_path / "timeline",
        ledger=None,
        server_args=[],
        server_env={},
        server_binds=[],
    )
    try:
        unpack(ctx, str(packed))
        store.open_snapshot(Path(ctx.state.snapshot_dir)).verify()
    finally:
        for end in reversed(ctx._ends):
            end()
        shutil.rmtree(node)

"""A full pull brings the image whole and right, through faults; a wrong byte never gets its name on
disk."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from labkit.core.ledger import Ledger
from labkit.core.node_state import NodeState
from labkit.errors import BadInput, TransferError
from labkit.image import oci, pull, tiny
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.net.client import Client, Retry
from labkit.net.serving import serving

FAST = Retry(attempts=4, first_s=0.01, most_s=0.05, honour_s=0.05)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    top = tmp_path_factory.mktemp("source")
    manifest = tiny.tiny_layout(top / "layout", size_bytes=1_000_000)
    root = top / "registry"
    root.mkdir()
    publish_image(root, top / "layout", tiny.REFERENCE)
    return root, manifest


@pytest.fixture
def ledger(workspace):
    with Ledger.open(workspace, watch=False) as opened:
        yield opened


def _context(tmp_path: Path, url: str) -> SimpleNamespace:
    node = tmp_path / "node"
    node.mkdir()
    return SimpleNamespace(node=node, state=NodeState(registry=url, image_reference=tiny.REFERENCE))


def test_the_steps_leave_a_root_directory_and_its_config(tmp_path, source, ledger):
    root, manifest = source
    with serving("registry", root, ledger=ledger) as served:
        ctx = _context(tmp_path, served.url)
        facts = pull.full_pull(ctx)
        pull.unpack(ctx)
        sent = served.stats()["bytes_sent"]
    assert facts["bytes_fetched"] >= manifest.layers_bytes <= sent
    assert (Path(ctx.state.rootfs) / "etc/hostname").read_text() == "tiny\n"
    assert ctx.state.image_config["config"]["WorkingDir"] == "/app"


@pytest.mark.parametrize(
    "fault",
    ["503:nth=2,retry_after=0.01", "429:nth=2,retry_after=0.01", "reset:nth=3", "truncate:nth=3"],
)
def test_faults_that_a_client_survives_are_survived(tmp_path, source, ledger, fault):
    root, manifest = source
    with serving("registry", root, ledger=ledger, faults=[fault]) as served:
        pulled, facts = pull.pull_into(
            Layout(tmp_path / "got"),
            f"{served.url}/{tiny.REFERENCE}",
            client=Client(retry=FAST),
        )
    assert pulled == manifest and facts["retries"] >= 1
    for blob in Layout(tmp_path / "got").blobs(pulled):
        assert (
            oci.digest_of(Layout(tmp_path / "got").blob_path(blob.digest).read_bytes())
            == blob.digest
        )


def test_corruption_that_never_ends_is_an_error_and_keeps_no_blob(tmp_path, source, ledger):
    root, manifest = source
    biggest = max(manifest.layers, key=lambda b: b.size_bytes)
    with (
        serving(
            "registry", root, ledger=ledger, faults=[f"corrupt:rate=1,path=/blobs/{biggest.digest}"]
        ) as served,
        pytest.raises(TransferError, match="digest"),
    ):
        pull.pull_into(
            Layout(tmp_path / "got"),
            f"{served.url}/{tiny.REFERENCE}",
            client=Client(retry=FAST),
        )
    assert biggest.digest[7:] not in os.listdir(tmp_path / "got/blobs/sha256")


def test_a_second_pull_fetches_no_blob(tmp_path, source, ledger):
    root, _ = source
    with serving("registry", root, ledger=ledger) as served:
        reference = f"{served.url}/{tiny.REFERENCE}"
        pull.pull_into(Layout(tmp_path / "got"), reference)
        assert pull.pull_into(Layout(tmp_path / "got"), reference)[1]["bytes_fetched"] == 0


def test_a_blob_of_the_layout_that_is_damaged_is_fetched_again(tmp_path, source, ledger):
    root, manifest = source
    with serving("registry", root, ledger=ledger) as served:
        reference, into = f"{served.url}/{tiny.REFERENCE}", Layout(tmp_path / "got")
        pull.pull_into(into, reference)
        path = into.blob_path(manifest.layers[0].digest)
        path.write_bytes(bytes(path.stat().st_size))
        assert pull.pull_into(into, reference)[1]["bytes_fetched"] == path.stat().st_size
    into.check_blob(manifest.layers[0])


def test_a_layer_that_must_not_be_distributed_comes_from_its_owner(tmp_path, ledger):
    owner = Layout(tmp_path / "owner")
    manifest = tiny.tiny_layout(owner.path, size_bytes=100_000)
    publish_image(tmp_path / "registry", owner.path, tiny.REFERENCE)
    with serving("registry", tmp_path / "registry", ledger=ledger) as served:
        bound = [
            replace(
                layer,
                media_type=oci.layer_type("gzip", ".nondistributable."),
                other={"urls": ["file:///etc/passwd", f"{served.url}/v2/lab/tiny/blobs/{d}"]},
            )
            for layer in manifest.layers
            for d in (layer.digest,)
        ]
        elsewhere = Layout.create(tmp_path / "elsewhere")
        elsewhere.write_blob(owner.read_blob(manifest.config), oci.CONFIG)
        elsewhere.add(manifest.with_blobs(manifest.config, bound), "lab/bound:v1")
        publish_image(tmp_path / "registry", elsewhere.path, "lab/bound:v1")
        into = Layout(tmp_path / "got")
        pull.pull_into(into, f"{served.url}/lab/bound:v1", client=Client(retry=FAST))
    pull.ensure_rootfs(into.path, "lab/bound:v1", tmp_path / "roots")


def test_an_image_that_is_not_there_says_so(tmp_path, source, ledger):
    root, _ = source
    with (
        serving("registry", root, ledger=ledger) as served,
        pytest.raises(TransferError, match="404"),
    ):
        pull.pull_into(
            Layout(tmp_path / "got"),
            f"{served.url}/lab/other:latest",
            client=Client(retry=FAST),
        )


def test_a_reference_without_a_registry_is_refused(tmp_path):
    with pytest.raises(BadInput, match="names no registry"):
        pull.pull_into(Layout(tmp_path / "got"), "lab/subject:latest")


def test_the_warm_nodes_root_is_made_once_for_a_manifest(tmp_path):
    tiny.tiny_layout(tmp_path / "layout")
    first, config = pull.ensure_rootfs(tmp_path / "layout", tiny.REFERENCE, tmp_path / "roots")
    inode = first.stat().st_ino
    again, _ = pull.ensure_rootfs(tmp_path / "layout", tiny.REFERENCE, tmp_path / "roots")
    assert (
        again == first
        and again.stat().st_ino == inode
        and config["config"]["Cmd"] == ["/usr/bin/app"]
    )

"""containerd pulls from the embedded registry, and through Docker's registry out of the embedded
bucket."""

from __future__ import annotations

import pytest

from labkit.bench import pull_rivals
from labkit.core.ledger import Ledger, open_entries
from labkit.image.publish import publish_image
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.serving import serving

pytestmark = pytest.mark.needs("containers", "docker-registry", "skopeo")


def test_containerd_pulls_from_registry_and_bucket_and_leaves_nothing(tmp_path, workspace):
    # a layer above 32 MB: the registry moves it in the bucket by copying parts
    tiny_layout(tmp_path / "image", 60_000_000)
    publish_image(tmp_path / "registry", tmp_path / "image", REFERENCE)
    with Ledger.open(workspace) as ledger:
        with serving(
            "store",
            tmp_path / "store",
            ledger=ledger,
            options=("--with-registry", str(tmp_path / "registry")),
        ) as served:
            assert (
                pull_rivals.ctr_pull(f"{served.address}/{REFERENCE}", ledger, workspace.nodes) > 0
            )
            with pull_rivals.docker_registry(
                served.url, served.env, ledger, workspace.nodes
            ) as address:
                pull_rivals.skopeo_copy(
                    f"oci:{tmp_path / 'image'}:{REFERENCE}",
                    f"docker://{address}/{REFERENCE}",
                    "--dest-tls-verify=false",
                )
                served.reset()
                pull_rivals.ctr_pull(f"{address}/{REFERENCE}", ledger, workspace.nodes)
            assert not served.stats()["by_status"].get("501"), (
                "the registry asked the bucket for something it has not"
            )
            blobs = [
                path
                for path in served.stats()["by_path"]
                if path.startswith("/lab/docker/") and path.endswith("/data")
            ]
            assert blobs, "the layers did not come out of the bucket"
        assert not open_entries(ledger.path)
    assert not list(workspace.nodes.iterdir())

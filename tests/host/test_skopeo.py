"""A real client against the embedded registry: both directions, under each fault that a client is
meant to survive."""

from __future__ import annotations

import os
import subprocess

import pytest

from labkit.image import oci
from labkit.image.oci_layout import Layout
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.serving import serving

pytestmark = pytest.mark.needs("skopeo")

#: skopeo (1.9) gets through these by itself …
SURVIVED = [
    "429:nth=3,retry_after=1",
    "reset:nth=1,path=/blobs/,min_bytes=100000",
    "straggler:nth=1,path=/blobs/,slowed_to=1MB/s",
]
#: … and gives these up at once or later, whatever --retry-times says; called again it goes on with
#: what is there.
SECOND_TRY = [
    "503:nth=3,retry_after=1",
    "500:nth=3",
    "truncate:nth=1,path=/blobs/,min_bytes=100000",
]


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "tiny"
    manifest = tiny_layout(path, 2_000_000)
    Layout(path).add(manifest, "latest")  # skopeo names images of a layout by tag
    return path


def skopeo(*args, check=True):
    done = subprocess.run(
        ["skopeo", "--insecure-policy", *args], capture_output=True, text=True, timeout=120
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def copy(source, target, *more, **options):
    # This registry speaks plain HTTP.
    return skopeo(
        "copy",
        "--retry-times=3",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        *more,
        source,
        target,
        **options,
    )


@pytest.mark.parametrize("fault", ["", *SURVIVED, *SECOND_TRY])
def test_skopeo_pushes_and_pulls_the_same_image(layout, tmp_path, fault):
    def get(*what):
        if copy(*what, check=fault not in SECOND_TRY).returncode:
            copy(*what)

    with serving("registry", tmp_path / "registry") as served:
        where = f"docker://{served.address}/{REFERENCE}"
        if fault.startswith(("4", "5")):
            served.set_faults([fault])
        get(f"oci:{layout}:latest", where)
        pushed = served.stats()
        served.set_faults([fault] if fault else [])
        get(where, f"oci:{tmp_path / 'back'}:latest")
        hits = {**pushed["faults"], **served.stats()["faults"]}
    assert bool(hits) == bool(fault)
    want = Layout(layout).manifest("latest")
    assert Layout(tmp_path / "back").manifest("latest").layers == tuple(
        oci.Descriptor(d.media_type, d.digest, d.size_bytes, d.annotations) for d in want.layers
    )
    for layer in want.layers:
        assert (
            oci.digest_of(Layout(tmp_path / "back").blob_path(layer.digest).read_bytes())
            == layer.digest
        )


def test_a_corrupt_layer_is_refused_by_skopeo_too(layout, tmp_path):
    with serving("registry", tmp_path / "registry") as served:
        where = f"docker://{served.address}/{REFERENCE}"
        copy(f"oci:{layout}:latest", where)
        served.set_faults(["corrupt:rate=1,path=/blobs/,min_bytes=100000"])
        done = copy(where, f"oci:{tmp_path / 'back'}:latest", check=False)
    assert done.returncode != 0 and "digest" in done.stderr.lower()


def test_a_second_repository_gets_its_layers_by_mount_not_by_upload(layout, tmp_path):
    with serving("registry", tmp_path / "registry") as served:
        copy(f"oci:{layout}:latest", f"docker://{served.address}/lab/one:v1")
        served.reset()
        copy(f"docker://{served.address}/lab/one:v1", f"docker://{served.address}/lab/two:v1")
        assert served.stats()["bytes_received"] < 20_000
        assert (
            "v1"
            in skopeo(
                "list-tags", "--tls-verify=false", f"docker://{served.address}/lab/two"
            ).stdout
        )


@pytest.mark.needs("rclone")
def test_rclone_lists_and_copies_from_the_store(tmp_path):
    from labkit.net.serving import serving
    from labkit.objects.publish import publish_model

    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "w").write_bytes(bytes(range(256)) * 40_000)
    publish_model(tmp_path / "store", tmp_path / "m", "models/x")
    # rclone's own transport refuses a custom CA bundle, which plain HTTP does not need.
    env = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with serving("store", tmp_path / "store") as served:
        remote = [
            ":s3,provider=Other,access_key_id={AWS_ACCESS_KEY_ID},secret_access_key={AWS_SECRET_ACCESS_KEY},endpoint='{AWS_ENDPOINT_URL}':lab".format(
                **served.env
            )
        ]
        for args in (
            ["copy", remote[0] + "/models/x", str(tmp_path / "down")],
            ["copy", str(tmp_path / "down"), remote[0] + "/up"],
            ["check", remote[0] + "/up", str(tmp_path / "m"), "--download"],
        ):
            done = subprocess.run(
                ["rclone", "--config", "/dev/null", *args],
                capture_output=True,
                text=True,
                timeout=60,
                env=env,
            )
            assert done.returncode == 0, done.stderr[-2000:]

"""A layout hands out what its names say, and nothing made from a damaged blob gets a name."""

from __future__ import annotations

import gzip
import io
import json
import os
import shutil
import tarfile

import pytest
import zstandard

from labkit.cli.image_push import name_in
from labkit.errors import BadInput
from labkit.image import oci, push
from labkit.image.estargz.convert import convert
from labkit.image.oci_layout import Layout
from labkit.image.platforms import architecture
from labkit.image.publish import publish_image
from labkit.image.unpack import unpack_image
from labkit.net.server import HTTPServer
from labkit.objects.client import open_bucket
from labkit.objects.store import Store, environment

NAME = "lab/x:v1"
PACK = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "none": lambda data: data,
}


def archive(name: str, size: int = 30_000) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size = size
        tar.addfile(info, io.BytesIO(os.urandom(size)))
    return out.getvalue()


def image(path, codec: str = "gzip", *, manifest: dict | None = None, config: dict | None = None):
    """A layout of two layers as another builder writes it: indented, with fields of its own."""
    layout = Layout.create(path)
    tars = [archive("base"), archive("app")]
    layers = [
        layout.write_blob(PACK[codec](tar), oci.layer_type(codec), title=f"layer {at}")
        for at, tar in enumerate(tars)
    ]
    rootfs = {"type": "layers", "diff_ids": [oci.digest_of(tar) for tar in tars], "own": 1}
    doc = {"architecture": "amd64", "os": "linux", "rootfs": rootfs, **(config or {})}
    described = layout.write_blob(json.dumps(doc, indent=1).encode(), oci.CONFIG)
    listed = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": described.as_json(),
        "layers": [layer.as_json() for layer in layers],
        **(manifest or {}),
    }
    layout.add(oci.parse_manifest(json.dumps(listed, indent=3).encode()), NAME)
    return layout


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """codec -> a layout that is not to be changed."""
    top = tmp_path_factory.mktemp("layouts")
    return {codec: image(top / codec, codec) for codec in PACK}


def flip(raw: bytes) -> bytes:
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


DAMAGE = {
    "a flipped byte": flip,
    "a cut": lambda raw: raw[:-20],
    "nothing": lambda raw: b"",
    "a byte more": lambda raw: raw + b"\0",
}


def bucket_of(layout, target):
    with (
        HTTPServer(Store(target / "store")) as server,
        open_bucket("s3://lab/pushed", environment(server.url)) as bucket,
    ):
        push.push(layout, NAME, bucket)


#: Every way to read an image of a layout into something new.
READERS = {
    "unpack": lambda layout, to: unpack_image(layout, layout.manifest(NAME), to / "root"),
    "convert": lambda layout, to: convert(layout, NAME, Layout.create(to / "out")),
    "recompress": lambda layout, to: push.recompress(layout, NAME, Layout.create(to / "o"), "zstd"),
    "link": lambda layout, to: push.recompress(layout, NAME, Layout.create(to / "o"), "gzip"),
    "push": bucket_of,
    "publish_objects": lambda layout, to: push.publish_objects(to / "store", layout, NAME),
    "registry add": lambda layout, to: publish_image(to / "registry", layout.path, NAME),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("codec", PACK)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_layer_is_refused_by_name_and_nothing_comes_of_it(
    sound, tmp_path, damage, codec, reader
):
    shutil.copytree(sound[codec].path, tmp_path / "layout")
    layout = Layout(tmp_path / "layout")
    second = layout.manifest(NAME).layers[1]
    path = layout.blob_path(second.digest)
    path.write_bytes(DAMAGE[damage](path.read_bytes()))
    target = tmp_path / "target"
    target.mkdir()
    with pytest.raises(BadInput, match=f"{second.digest} is damaged"):
        READERS[reader](layout, target)
    kept = {p.name: p.read_bytes() for p in target.rglob("*") if p.is_file()}
    assert kept.keys().isdisjoint({second.digest[7:], "index.json", "v1"})
    assert not path.stat().st_size or path.read_bytes() not in kept.values()
    assert not list(target.glob("o*/blobs/sha256/*")) and not (target / "root").exists()


@pytest.mark.parametrize("reader", READERS)
def test_a_layer_that_is_not_what_the_config_says_is_not_unpacked(sound, tmp_path, reader):
    shutil.copytree(sound["gzip"].path, tmp_path / "layout")
    layout = Layout(tmp_path / "layout")
    manifest = layout.manifest(NAME)
    forged = layout.config(manifest)
    forged["rootfs"]["diff_ids"].reverse()
    layout.add(
        manifest.with_blobs(layout.write_blob(oci.canonical(forged), oci.CONFIG), manifest.layers),
        NAME,
    )
    if reader in ("link", "push", "publish_objects", "registry add"):
        READERS[reader](layout, tmp_path)  # bytes go on as they are
        return
    with pytest.raises(BadInput, match="the config says"):
        READERS[reader](layout, tmp_path)
    assert not (tmp_path / "root").exists()
    for out in ("out", "o"):
        assert not list((tmp_path / out).rglob("blobs/sha256/*"))


@pytest.mark.parametrize("codec", PACK)
def test_a_layer_that_was_built_broken_is_named(tmp_path, codec):
    """Its digest is right, and it ends in the middle."""
    layout = Layout.create(tmp_path)
    tar = archive("x")
    cut = PACK[codec](tar)[:-3000]
    layer = layout.write_blob(cut, oci.layer_type(codec))
    doc = {"rootfs": {"type": "layers", "diff_ids": [oci.digest_of(tar)]}}
    config = layout.write_blob(oci.canonical(doc), oci.CONFIG)
    layout.add(oci.Manifest(config, (layer,)), NAME)
    for reader in ("unpack", "convert", "recompress"):
        if codec == "zstd" and reader == "recompress":
            continue  # it is in that codec, and goes on as it is
        with pytest.raises(BadInput, match=layer.digest):
            READERS[reader](layout, tmp_path / "to")


def test_a_missing_blob_is_named_and_so_is_its_owner_where_it_has_one(tmp_path):
    layout = image(tmp_path)
    layer = layout.manifest(NAME).layers[0]
    layout.blob_path(layer.digest).unlink()
    with pytest.raises(BadInput, match=f"{layer.digest} is missing"):
        unpack_image(layout, layout.manifest(NAME), tmp_path / "root")
    bound = oci.Descriptor(layer.media_type, layer.digest, 1, other={"urls": ["http://owner/x"]})
    with pytest.raises(BadInput, match="is missing") as refused:
        layout.check_blob(bound)
    assert "http://owner/x" in refused.value.why


FIELDS = {
    "artifactType": "application/x-lab",
    "subject": {"mediaType": oci.MANIFEST, "digest": "sha256:" + "b" * 64, "size": 3},
    "annotations": {"z": "1", "a": "2"},
    "unknown": {"deep": [1]},
}
HISTORY = {
    "author": "someone",
    "history": [
        {"created_by": "ADD base"},
        {"created_by": "ENV A=1", "empty_layer": True},
        {"created_by": "ADD app"},
    ],
    "docker_version": "27",
    "config": {"Env": ["A=1"], "Healthcheck": {"Test": ["NONE"]}},
}


@pytest.mark.parametrize("how", ["convert", "recompress"])
def test_a_rewritten_image_differs_in_its_layers_only(tmp_path, how):
    layout = image(tmp_path / "layout", manifest=FIELDS, config=HISTORY)
    target = Layout.create(tmp_path / "target")
    if how == "convert":
        convert(layout, NAME, target)
    else:
        push.recompress(layout, NAME, target, "none")
    before, after = layout.manifest(NAME), target.manifest(NAME)
    for field, value in FIELDS.items():
        assert json.loads(after.as_bytes())[field] == value
    assert [layer.annotations["title"] for layer in after.layers] == ["layer 0", "layer 1"]
    old, new = layout.config(before), target.config(after)
    if how == "recompress":
        assert target.read_blob(after.config) == layout.read_blob(before.config)
    old["rootfs"].pop("diff_ids"), new["rootfs"].pop("diff_ids")
    assert new == old
    unpack_image(target, after, tmp_path / "root")
    assert {"base", "app"} <= set(os.listdir(tmp_path / "root"))


def test_an_image_that_is_in_the_codec_already_keeps_its_digest(sound, tmp_path):
    target = Layout.create(tmp_path)
    done = push.recompress(sound["zstd"], NAME, target, "zstd")
    assert done.digest == sound["zstd"].manifest(NAME).digest == target.manifest(NAME).digest


def test_the_digest_that_a_push_reports_is_that_of_what_lies_in_the_bucket(sound, tmp_path):
    with (
        HTTPServer(Store(tmp_path)) as server,
        open_bucket("s3://lab/p", environment(server.url)) as bucket,
    ):
        digest = push.push(sound["gzip"], NAME, bucket)["digest"]
        for key in (push.manifest_key("lab/x", "v1"), push.blob_key(digest)):
            assert oci.digest_of(bucket.get(key, 1 << 20).body) == digest


def test_listing_another_image_loses_nothing_of_the_index(sound, tmp_path):
    shutil.copytree(sound["gzip"].path, tmp_path / "layout")
    path, layout = tmp_path / "layout/index.json", Layout(tmp_path / "layout")
    doc = json.loads(path.read_text())
    doc["annotations"] = {"of": "the index"}
    doc["manifests"][0] |= {"artifactType": "x/y", "urls": ["http://h/"], "platform": {"os": "x"}}
    path.write_text(json.dumps(doc))
    manifest = layout.manifest(NAME)
    layout.add(manifest, "lab/x:v2")
    layout.add(manifest, "lab/x:v2")
    now = json.loads(path.read_text())
    assert now["annotations"] == doc["annotations"] and now["manifests"][0] == doc["manifests"][0]
    assert len(now["manifests"]) == 2 and now["manifests"][1]["platform"] == {
        "architecture": "amd64",
        "os": "linux",
    }


@pytest.mark.parametrize(
    "annotations,name",
    [
        ({oci.REF_NAME: NAME}, NAME),
        ({oci.REF_NAME: "v1"}, NAME),
        (
            {oci.REF_NAME: "v1", "io.containerd.image.name": "docker.io/lab/x:v1"},
            "docker.io/lab/x:v1",
        ),
        (None, NAME),
        ({oci.REF_NAME: "other"}, ""),
    ],
)
def test_an_image_is_found_as_each_tool_lists_it(sound, tmp_path, annotations, name):
    shutil.copytree(sound["gzip"].path, tmp_path / "layout")
    path = tmp_path / "layout/index.json"
    doc = json.loads(path.read_text())
    # a single image is taken whatever machine it is for, as skopeo and umoci do
    doc["manifests"][0] |= {"annotations": annotations, "platform": {"architecture": "vax"}}
    path.write_text(json.dumps(doc))
    assert Layout(tmp_path / "layout").manifest(name) == sound["gzip"].manifest(NAME)


def test_one_name_for_several_machines_is_one_image(sound, tmp_path):
    shutil.copytree(sound["gzip"].path, tmp_path / "layout")
    path, layout = tmp_path / "layout/index.json", Layout(tmp_path / "layout")
    doc = json.loads(path.read_text())
    mine = {**doc["manifests"][0], "platform": {"os": "linux", "architecture": architecture()}}
    other = {**mine, "digest": "sha256:" + "0" * 64, "platform": {"os": "linux"}}
    path.write_text(json.dumps({**doc, "manifests": [other, mine]}))
    assert name_in(layout, "") == NAME
    assert layout.manifest(NAME).digest == mine["digest"]
    assert layout.manifest(f"any@{mine['digest']}").digest == mine["digest"]
    with pytest.raises(BadInput, match="lists no image of the digest"):
        layout.manifest(f"lab/x:v1@sha256:{'1' * 64}")


def test_an_image_of_another_name_is_not_taken(tmp_path):
    layout = Layout.create(tmp_path)
    layout.add(oci.Manifest(layout.write_blob(b"{}", oci.CONFIG), ()), "lab/one:latest")
    with pytest.raises(BadInput, match="lab/two"):
        layout.manifest("lab/two:latest")


def test_adding_a_name_again_replaces_it(tmp_path):
    layout = Layout.create(tmp_path)
    for body in (b"{}", b"[]"):
        last = layout.add(oci.Manifest(layout.write_blob(body, oci.CONFIG), ()), "lab/one:latest")
    assert [d.digest for d in layout.index()] == [last.digest]


@pytest.mark.parametrize("index", ["{", "[]", '{"manifests": [[]]}', '{"manifests": {}}', "{}"])
def test_a_broken_index_is_refused_in_words(sound, tmp_path, index):
    shutil.copytree(sound["gzip"].path, tmp_path / "layout")
    (tmp_path / "layout/index.json").write_text(index)
    with pytest.raises(BadInput):
        Layout(tmp_path / "layout").manifest(NAME)
    with pytest.raises(BadInput):
        publish_image(tmp_path / "registry", tmp_path / "layout", NAME)

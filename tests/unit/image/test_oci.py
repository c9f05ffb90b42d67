"""OCI documents are read as hostile input: what parses is believable, everything else is a
BadInput."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image import oci

DIGEST = "sha256:" + "a" * 64
GOOD = {
    "schemaVersion": 2,
    "mediaType": oci.MANIFEST,
    "config": {"mediaType": oci.CONFIG, "digest": DIGEST, "size": 2},
    "layers": [{"mediaType": oci.LAYER_GZIP, "digest": DIGEST, "size": 10}],
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(max_size=12) | st.sampled_from([*list(GOOD), "digest", "size"]),
            inner,
            max_size=5,
        )
    ),
)


def test_a_manifest_reads_back_as_it_was_written():
    manifest = oci.parse_manifest(json.dumps(GOOD).encode())
    assert oci.parse_manifest(manifest.as_bytes()) == manifest


@given(st.binary(max_size=300) | JSON.map(lambda doc: json.dumps(doc).encode()))
def test_no_bytes_make_the_parsers_fail_other_than_with_bad_input(raw):
    for parse in (oci.parse_manifest, oci.parse_index, oci.parse_config):
        with contextlib.suppress(BadInput):
            parse(raw)


@given(JSON, st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "annotations"]))
def test_a_manifest_with_one_strange_field_is_refused_or_still_believable(value, key):
    try:
        manifest = oci.parse_manifest(json.dumps({**GOOD, key: value}).encode())
    except BadInput:
        return
    assert all(
        layer.size_bytes >= 0 and layer.digest.startswith("sha256:") for layer in manifest.layers
    )


@pytest.mark.parametrize(
    "digest",
    [
        "sha256:../../etc/passwd",
        "sha256:" + "A" * 64,
        "sha256:" + "a" * 63,
        "md5:" + "a" * 32,
        "",
        None,
        7,
        DIGEST + "\n",
    ],
)
def test_a_digest_that_could_become_a_path_is_refused(digest):
    with pytest.raises(BadInput):
        oci.check_digest(digest)


@pytest.mark.parametrize("size", [-1, 1 << 60, True, "10", 1.5, None])
def test_a_size_that_cannot_be_believed_is_refused(size):
    with pytest.raises(BadInput):
        oci.parse_descriptor({"mediaType": oci.LAYER, "digest": DIGEST, "size": size})


def test_a_document_beyond_the_limit_is_refused_unread():
    with pytest.raises(BadInput, match="bytes"):
        oci.parse_manifest(b" " * (oci.DOCUMENT_LIMIT_BYTES + 1))


def test_a_manifest_keeps_its_bytes_and_a_changed_one_the_fields_that_are_not_modelled():
    doc = {
        **GOOD,
        "artifactType": "x/y",
        "subject": {"mediaType": oci.MANIFEST, "digest": DIGEST, "size": 1},
        "annotations": {"b": "1", "a": None},
        "unknown": [1, {"deep": None}],
    }
    doc["layers"] = [
        {**GOOD["layers"][0], "data": "e30=", "annotations": {"title": "x"}, "more": 1}
    ]
    raw = json.dumps(doc, indent=3).encode()
    manifest = oci.parse_manifest(raw)
    assert (
        manifest.as_bytes() == raw
        and manifest.with_blobs(manifest.config, manifest.layers).as_bytes() == raw
    )
    new = manifest.layers[0].as_other_bytes(DIGEST, 7)
    written = json.loads(manifest.with_blobs(manifest.config, [new]).as_bytes())
    assert {k: v for k, v in written.items() if k not in ("layers", "annotations")} == {
        k: v for k, v in doc.items() if k not in ("layers", "annotations")
    }
    assert written["layers"] == [
        {**GOOD["layers"][0], "size": 7, "annotations": {"title": "x"}, "more": 1}
    ]


def test_notes_on_the_old_bytes_of_a_layer_do_not_outlive_them():
    notes = {
        "containerd.io/snapshot/stargz/toc.digest": DIGEST,
        "io.github.containers.zstd-chunked.manifest-position": "1:2:3:1",
        "org.opencontainers.image.title": "kept",
    }
    other = {"urls": ["http://elsewhere/"], "data": "e30=", "artifactType": "x/y"}
    layer = oci.Descriptor(oci.LAYER_GZIP, DIGEST, 1, notes, {}, other).as_other_bytes(DIGEST, 2)
    assert layer.annotations == {"org.opencontainers.image.title": "kept"}
    assert layer.other == {"artifactType": "x/y"}


@pytest.mark.parametrize(
    "codec,like,wanted",
    [
        ("zstd", "application/vnd.docker.image.rootfs.diff.tar.gzip", oci.LAYER_ZSTD),
        ("none", oci.LAYER_GZIP, oci.LAYER),
        (
            "gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            oci.NONDISTRIBUTABLE + "+gzip",
        ),
        ("zstd", oci.NONDISTRIBUTABLE + "+gzip", oci.NONDISTRIBUTABLE + "+zstd"),
    ],
)
def test_a_recompressed_layer_has_ocis_type_and_stays_bound_to_its_owner(codec, like, wanted):
    assert oci.layer_type(codec, like) == wanted


def test_a_changed_docker_image_is_an_oci_image_in_all_its_parts():
    docker = {
        **GOOD,
        "mediaType": oci.DOCKER_MANIFEST,
        "config": {**GOOD["config"], "mediaType": oci.DOCKER_CONFIG},
    }
    manifest = oci.parse_manifest(json.dumps(docker).encode())
    written = json.loads(manifest.with_blobs(manifest.config, manifest.layers).as_bytes())
    assert (written["mediaType"], written["config"]["mediaType"]) == (oci.MANIFEST, oci.CONFIG)


@pytest.mark.parametrize(
    "doc",
    [
        {**GOOD, "manifests": [GOOD["config"]]},
        {**GOOD, "mediaType": oci.INDEX, "manifests": []},
        {**GOOD, "mediaType": None, "manifests": [GOOD["config"]]},
    ],
)
def test_a_document_that_is_a_manifest_to_one_and_an_index_to_another_is_refused(doc):
    with pytest.raises(BadInput, match="index"):
        oci.is_index(doc)


def test_gos_null_is_an_empty_list():
    assert oci.index_from({"manifests": None}) == ()
    assert oci.manifest_from({**GOOD, "layers": None, "mediaType": None}).layers == ()
    assert oci.parse_config(b'{"rootfs": {"diff_ids": null}, "config": null}', 0)

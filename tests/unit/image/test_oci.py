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
from labkit.image.oci_layout import Layout

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


@pytest.mark.parametrize(
    "text,shown",
    [
        ("lab/subject", "lab/subject:latest"),
        ("http://h:5000/lab/x:1", "http://h:5000/lab/x:1"),
        (f"lab/x@{DIGEST}", f"lab/x@{DIGEST}"),
    ],
)
def test_references_are_completed(text, shown):
    assert str(oci.parse_reference(text)) == shown


@pytest.mark.parametrize(
    "text",
    ["", "Lab/X", "http://host", "ftp://h/x", "a/../b", "x:tag/y", "x@sha256:zz", "lab/x: y"],
)
def test_what_is_no_reference_says_how_to_write_one(text):
    with pytest.raises(BadInput):
        oci.parse_reference(text)


def test_a_damaged_blob_is_not_handed_out(tmp_path):
    layout = Layout.create(tmp_path)
    blob = layout.write_blob(b"{}", oci.CONFIG)
    layout.blob_path(blob.digest).write_bytes(b"[]")
    with pytest.raises(BadInput, match="damaged"):
        layout.read_blob(blob)


def test_an_image_of_another_name_or_machine_is_not_taken(tmp_path):
    layout = Layout.create(tmp_path)
    layout.add(oci.Manifest(layout.write_blob(b"{}", oci.CONFIG), ()), "lab/one:latest")
    with pytest.raises(BadInput, match="lab/two"):
        layout.manifest_descriptor("lab/two:latest")
    with pytest.raises(BadInput, match="not for"):
        oci.choose(
            [oci.Descriptor(oci.MANIFEST, DIGEST, 1, {}, {"architecture": "vax", "os": "linux"})]
        )


def test_adding_a_name_again_replaces_it(tmp_path):
    layout = Layout.create(tmp_path)
    for body in (b"{}", b"[]"):
        last = layout.add(oci.Manifest(layout.write_blob(body, oci.CONFIG), ()), "lab/one:latest")
    assert [d.digest for d in layout.index()] == [last.digest]

"""Packed checkpoints: the same to the bit, in fewer bytes; damaged or forged ones are refused."""

from __future__ import annotations

import contextlib
import json
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.net.serving import serving
from labkit.objects.client import open_bucket
from labkit.objects.publish import publish_model
from labkit.weights import packed


def weights(count: int = 3_000_000) -> bytes:
    import torch

    return (
        torch.randn(count, generator=torch.Generator().manual_seed(1))
        .to(torch.bfloat16)
        .view(torch.uint8)
        .numpy()
        .tobytes()
    )


@given(raw=st.binary(max_size=3000), width=st.sampled_from(packed.WIDTHS))
@settings(deadline=None)
def test_any_bytes_come_back_at_any_width(raw, width):
    assert bytes(packed.join(packed.split(raw, width), width, len(raw))) == raw


@given(data=st.binary(max_size=300), width=st.sampled_from(packed.WIDTHS), size=st.integers(0, 500))
@settings(deadline=None)
def test_any_frame_is_read_or_refused(data, width, size):
    with contextlib.suppress(BadInput):
        assert len(packed.join(data, width, size)) == size


@given(
    raw=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.integers() | st.text(max_size=5),
            lambda c: (
                st.lists(c, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["files", "frames", "width", "size_bytes", "x"]), c, max_size=4
                )
            ),
        ).map(lambda d: json.dumps(d).encode()),
    )
)
@settings(deadline=None)
def test_any_index_is_read_or_refused(raw):
    with contextlib.suppress(BadInput):
        packed.parse_index(raw)


def test_bfloat16_weights_shrink_by_a_third_and_its_width_is_found():
    raw = weights(1 << 20)
    assert packed.width_of(raw) == 2
    assert 0.6 < len(packed.split(raw, 2)) / len(raw) < 0.72


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    top = tmp_path_factory.mktemp("packed")
    (top / "m").mkdir()
    (top / "m" / "model.safetensors").write_bytes(b"{}" + bytes(6) + weights() + b"tail")
    facts = packed.pack(top / "m", ["model.safetensors"], top / "packed")
    publish_model(top / "bucket", top / "packed", "models/p")
    with serving("store", top / "bucket") as served:
        yield top, served, facts


def bring(top, served, target) -> int:
    fd = os.open(target, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        with open_bucket("s3://lab/models/p", {"AWS_ENDPOINT_URL": served.url}) as bucket:
            index = packed.parse_index(bucket.get(packed.INDEX).body)
            return packed.fetch(
                bucket.client,
                bucket.url,
                {name: (about, fd) for name, about in index.items()},
                connections=4,
            )
    finally:
        os.close(fd)


def test_a_packed_model_comes_back_byte_for_byte_over_a_bucket(published, tmp_path):
    top, served, facts = published
    served.reset()
    crossed = bring(top, served, tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == (top / "m" / "model.safetensors").read_bytes()
    assert (
        crossed == facts["stored_bytes"] < 0.72 * facts["size_bytes"]
        and served.stats()["bytes_sent"] >= crossed
    )


@given(at=st.integers(0, 10**9))
@settings(deadline=None, max_examples=10)
def test_a_model_that_was_damaged_in_the_bucket_is_refused(published, at, tmp_path_factory):
    top, served, _ = published
    path = top / "bucket" / "lab" / "models" / "p" / "model.safetensors"
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[at % len(damaged)] ^= 1
    path.unlink()  # a hard link of what was packed
    path.write_bytes(damaged)
    try:
        with pytest.raises(BadInput):
            bring(top, served, tmp_path_factory.mktemp("node") / "here")
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("row, value", [(0, 1), (1, 0), (1, 1 << 40), (2, 8), (3, 0), (3, 1 << 40)])
def test_frames_that_do_not_cover_their_file_are_refused(published, row, value):
    doc = json.loads((published[0] / "packed" / packed.INDEX).read_text())
    doc["files"]["model.safetensors"]["frames"][0][row] = value
    with pytest.raises(BadInput):
        packed.parse_index(json.dumps(doc).encode())

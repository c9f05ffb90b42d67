"""Layers are decompressed by what they are, whole or not at all."""

from __future__ import annotations

import gzip
import struct

import pytest
import zstandard

from labkit.errors import BadInput
from labkit.image.codecs import codec_of, decompress

DATA = bytes(range(256)) * 20 + bytes(4000)


def frame(data: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(data)


def skippable(data: bytes) -> bytes:
    return struct.pack("<II", 0x184D2A5C, len(data)) + data


def plain(packed: bytes, step: int = 1000, *, fast: bool = False) -> bytes:
    pieces = (packed[at : at + step] for at in range(0, len(packed), step))
    return b"".join(decompress(pieces, fast=fast))


@pytest.mark.parametrize(
    "media_type,codec",
    [
        ("application/vnd.oci.image.layer.v1.tar", "none"),
        ("application/vnd.oci.image.layer.v1.tar+gzip", "gzip"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar", "none"),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", "gzip"),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.diff.tar+zstd", "zstd"),
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "gzip"),
    ],
)
def test_layers_of_both_families_are_known(media_type, codec):
    assert codec_of(media_type) == codec


@pytest.mark.parametrize("media_type", ["", "x/y", "a.tar+gzip+encrypted", "a.tar+xz", "a.tar\n"])
def test_what_is_no_tar_is_not_unpacked(media_type):
    with pytest.raises(BadInput, match="media type"):
        codec_of(media_type)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("step", [1, 3, 1000, 1 << 20])
def test_the_first_bytes_say_what_a_layer_is(step, fast):
    for packed in (DATA, gzip.compress(DATA), frame(DATA), skippable(b"x" * 9) + frame(DATA)):
        assert plain(packed, step, fast=fast) == DATA
    assert plain(b"") == b"" and plain(b"ab") == b"ab"


@pytest.mark.parametrize("fast", [False, True])
def test_members_and_padding_follow_a_gzip_member_and_nothing_else(fast):
    member = gzip.compress(DATA)
    for tail, wanted in (
        (member, DATA * 2),
        (gzip.compress(b"") + member, DATA * 2),
        (bytes(5000), DATA),
        (bytes(7) + member, DATA * 2),
    ):
        for step in (1, 700, 1 << 20):
            assert plain(member + tail, step, fast=fast) == wanted
    for tail in (b"not gzip at all", bytes(512) + b"not gzip at all", member[:-1], member[:5]):
        with pytest.raises(BadInput, match="gzip"):
            plain(member + tail, fast=fast)


FRAMES = {
    "checksum": {"write_checksum": True},
    "no size": {"write_content_size": False},
    "long window": {"compression_params": zstandard.ZstdCompressionParameters(window_log=27)},
}


@pytest.mark.parametrize("options", FRAMES.values(), ids=FRAMES)
def test_zstd_frames_of_every_kind_are_joined(options):
    one = frame(DATA, **options)
    for packed in (one + one, one + skippable(b"toc") + one + skippable(b"")):
        assert plain(packed, 5) == plain(packed, 1 << 20) == DATA * 2


@pytest.mark.parametrize("options", FRAMES.values(), ids=FRAMES)
def test_a_cut_zstd_frame_is_never_a_shorter_layer(options):
    """Wherever it is cut, and as the second frame as well as the first."""
    one = frame(DATA, **options)
    for before in (b"", one):
        for end in range(4, len(one)):
            with pytest.raises(BadInput, match="zstd"):
                plain(before + one[:end], 1 << 20)
    with pytest.raises(BadInput, match="zstd"):
        plain(one + skippable(b"x" * 100)[:-1])


def test_a_zstd_bomb_comes_out_in_bounded_pieces():
    sizes = [len(chunk) for chunk in decompress([frame(bytes(50 << 20))])]
    assert max(sizes) <= 1 << 20 and sum(sizes) == 50 << 20

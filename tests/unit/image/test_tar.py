"""The tar reader agrees with Python's on honest archives, and refuses dishonest ones in words."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image.codecs import OUT_BYTES, Hashed, decompress
from labkit.image.layers import gzip_chunks
from labkit.image.tar import TarReader

NAMES = st.text(
    st.characters(blacklist_characters="\0/", blacklist_categories=("Cs",)),
    min_size=1,
    max_size=150,
)


def _pieces(raw: bytes, size: int):
    return (raw[at : at + size] for at in range(0, len(raw), size))


def _read(raw: bytes, piece: int = 1000):
    reader, found = TarReader(_pieces(raw, piece)), []
    for member in reader:
        found.append((member, b"".join(bytes(v) for v in reader.data())))
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(NAMES, st.binary(max_size=1500), st.integers(0, 0o7777), st.integers(0, 2**33)),
        max_size=6,
    ),
    st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
    st.integers(1, 2000),
)
def test_members_are_what_the_standard_library_wrote(files, form, piece):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, data, mode, mtime in files:
            head = tarfile.TarInfo(name)
            head.size, head.mode, head.mtime = len(data), mode, mtime
            tar.addfile(head, io.BytesIO(data))
    found = _read(out.getvalue(), piece)
    assert [(m.name.rstrip("/"), d, m.mode, m.mtime_ns) for m, d in found if m.type == "0"] == [
        (n, d, mode, mtime * 10**9) for n, d, mode, mtime in files
    ]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=2048))
def test_random_bytes_are_refused_or_empty(raw):
    with contextlib.suppress(BadInput):
        assert _read(raw) == [] or len(raw) >= 512


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 3000), st.integers(0, 255))
def test_one_changed_byte_never_makes_another_error_than_bad_input(at, value):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        head = tarfile.TarInfo("ü" * 120)
        head.size, head.pax_headers = 700, {"SCHILY.xattr.user.a": "b", "mtime": "1.5"}
        tar.addfile(head, io.BytesIO(b"x" * 700))
    raw = bytearray(out.getvalue())
    raw[at % len(raw)] = value
    with contextlib.suppress(BadInput):
        _read(bytes(raw))


def test_a_truncated_stream_is_refused():
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        head = tarfile.TarInfo("a")
        head.size = 5000
        tar.addfile(head, io.BytesIO(b"x" * 5000))
    with pytest.raises(BadInput, match="ends inside"):
        _read(out.getvalue()[:3000])


def test_an_extended_header_that_asks_for_memory_is_refused():
    head = tarfile.TarInfo("x")
    head.type, head.size = b"x", 1 << 40
    with pytest.raises(BadInput, match="extended header"):
        _read(head.tobuf(tarfile.GNU_FORMAT))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=5000), max_size=5), st.integers(1, 500), st.booleans())
def test_gunzip_of_many_members_in_any_pieces_gives_the_bytes(parts, piece, fast):
    raw = b"".join(gzip.compress(p) for p in parts)
    assert b"".join(decompress(_pieces(raw, piece), fast=fast)) == b"".join(parts)


@pytest.mark.parametrize("fast", [False, True])
def test_a_bomb_comes_out_in_bounded_pieces(fast):
    bomb = gzip.compress(bytes(200 << 20), 9)
    total = 0
    for chunk in decompress([bomb], fast=fast):
        assert len(chunk) <= OUT_BYTES
        total += len(chunk)
    assert total == 200 << 20


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[:-9],
        lambda raw: raw[:40] + bytes(30) + raw[70:],
    ],
)
def test_damaged_gzip_is_refused(damage, fast):
    raw = gzip.compress(bytes(range(256)) * 50)
    with pytest.raises(BadInput, match="gzip"):
        list(decompress([damage(raw)], fast=fast))


@settings(max_examples=20, deadline=None)
@given(st.binary(max_size=3 << 20), st.integers(1, 4))
def test_parallel_gzip_is_one_stock_member_whatever_the_threads(data, threads):
    packed = b"".join(gzip_chunks([data], threads=threads))
    engine = zlib.decompressobj(wbits=31)
    assert engine.decompress(packed) == data and engine.eof and not engine.unused_data
    assert packed == b"".join(gzip_chunks(_pieces(data, 70_001), threads=1))


def test_a_stream_is_hashed_as_it_passes():
    stream = Hashed([b"ab", b"c"])
    assert list(stream) == [b"ab", b"c"]
    assert stream.digest.startswith("sha256:ba7816bf") and stream.size_bytes == 3

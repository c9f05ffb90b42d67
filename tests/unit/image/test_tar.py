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
from labkit.image.tar_header import bounded_time_ns

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


def _head(name: str = "f", size: int = 0, kind: bytes = b"0", **more) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _summed(head: bytearray) -> bytes:
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    return bytes(head)


def _pax(*records: tuple[str, bytes], kind: bytes = b"x") -> bytes:
    body = b""
    for key, value in records:
        rest = b" " + key.encode() + b"=" + value + b"\n"
        size = len(rest) + len(str(len(rest)))
        body += str(len(rest) + len(str(size))).encode() + rest
    return _head("x", len(body), kind) + body + bytes(-len(body) % 512)


def _old_gnu(extents, stored: bytes, real_size: int) -> bytes:
    fields = [b"%011o\0%011o\0" % pair for pair in extents]
    head = bytearray(_head("f", len(stored), b"S"))
    head[386:482] = b"".join(fields[:4]).ljust(96, b"\0")
    head[482], head[483:495] = len(fields) > 4, b"%011o\0" % real_size
    blocks, fields = b"", fields[4:]
    while fields:
        blocks += b"".join(fields[:21]).ljust(504, b"\0") + bytes([len(fields) > 21]) + bytes(7)
        fields = fields[21:]
    return _summed(head) + blocks + stored


def _pax_0_0(extents, stored: bytes, real_size: int) -> bytes:
    pairs = [
        record
        for offset, size in extents
        for record in (
            ("GNU.sparse.offset", b"%d" % offset),
            ("GNU.sparse.numbytes", b"%d" % size),
        )
    ]
    count = ("GNU.sparse.numblocks", b"%d" % len(extents))
    records = _pax(("GNU.sparse.size", b"%d" % real_size), count, *pairs)
    return records + _head("f", len(stored)) + stored


def _pax_0_1(extents, stored: bytes, real_size: int) -> bytes:
    numbers = ",".join(f"{offset},{size}" for offset, size in extents)
    records = _pax(
        ("GNU.sparse.size", b"%d" % real_size),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.map", numbers.encode()),
    )
    return records + _head("GNUSparseFile.0/f", len(stored)) + stored


def _pax_1_0(extents, stored: bytes, real_size: int) -> bytes:
    numbers = [len(extents), *(n for pair in extents for n in pair)]
    lines = "".join(f"{n}\n" for n in numbers).encode()
    lines += bytes(-len(lines) % 512)
    records = _pax(
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"f"),
        ("GNU.sparse.realsize", b"%d" % real_size),
    )
    return records + _head("GNUSparseFile.0/f", len(lines + stored)) + lines + stored


SPARSE = [_old_gnu, _pax_0_0, _pax_0_1, _pax_1_0]


def _ended(raw: bytes) -> bytes:
    return raw + bytes(-len(raw) % 512) + _head("next", 1) + b"n" + bytes(511 + 1024)


@pytest.mark.parametrize("write", SPARSE)
@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 600_000), st.integers(1, 2000)), min_size=1, max_size=40),
    st.integers(0, 400_000),
)
def test_a_sparse_file_is_read_in_full_as_the_standard_library_does(write, steps, tail):
    extents, at = [], 0
    for hole, size in steps:
        extents.append((at + hole, size))
        at += hole + size
    stored = bytes(range(1, 250)) * (sum(size for _, size in extents) // 249 + 1)
    stored = stored[: sum(size for _, size in extents)]
    raw = _ended(write(extents, stored, at + tail))
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        expected = archive.extractfile("f").read()
    (first, data), (second, _) = _read(raw, 4096)
    assert (first.name, first.size_bytes, second.name) == ("f", at + tail, "next")
    assert data == expected


HOSTILE_MAPS = {
    "pieces that overlap": ([(0, 4), (2, 4)], 8, 100),
    "pieces out of order": ([(50, 4), (0, 4)], 8, 100),
    "a piece beyond the end": ([(98, 4)], 4, 100),
    "more bytes than are stored": ([(0, 4), (10, 90)], 4, 100),
    "fewer bytes than are stored": ([(0, 4)], 40, 100),
}


@pytest.mark.parametrize("write", SPARSE)
@pytest.mark.parametrize("case", HOSTILE_MAPS)
def test_a_sparse_map_that_lies_is_refused_with_the_files_name(write, case):
    extents, stored, real_size = HOSTILE_MAPS[case]
    with pytest.raises(BadInput, match=r"sparse map.* of '.*f'"):
        _read(_ended(write(extents, b"x" * stored, real_size)))


@pytest.mark.parametrize(
    "raw",
    [
        _pax(("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")) + _head(),
        _pax(("GNU.sparse.map", b"0,1,2"), ("GNU.sparse.size", b"9")) + _head(size=1) + b"x",
        _pax(("GNU.sparse.map", b"0,x"), ("GNU.sparse.size", b"9")) + _head(),
        _pax(("GNU.sparse.map", b"0,1")) + _head(size=1) + b"x",
        _pax(("GNU.sparse.map", b"0,0"), ("GNU.sparse.size", b"-1")) + _head(),
        _pax(("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0")) + _head(size=0),
        _pax_1_0([(0, 1)] * 100_000, b"", 1)[: 2048 + 600 * 512],
    ],
    ids=["version", "odd map", "no number", "no size", "negative size", "no map", "cut off"],
)
def test_a_broken_sparse_map_is_refused(raw):
    with pytest.raises(BadInput):
        _read(_ended(raw))


@pytest.mark.parametrize(
    ("raw", "word"),
    [
        (_head("f", uid=1 << 32), "uid 4294967296"),
        (_head("f", gid=(1 << 32) - 1), "gid 4294967295"),
        (_head("f", uid=-2), "uid -2"),
        (_pax(("uid", b"1099511627776")) + _head("f"), "uid 1099511627776"),
        (_pax(("gid", b"-1")) + _head("f"), "'gid' of b'-1'"),
        (_pax(("size", b"9" * 20)) + _head("f"), "size 999"),
        (_pax(("mtime", b"soon")) + _head("f"), "'mtime' of b'soon'"),
        (_head("f", kind=tarfile.CHRTYPE, devmajor=4096), "device major 4096"),
        (_head("f", kind=tarfile.BLKTYPE, devminor=1 << 20), "device minor 1048576"),
        (_head("f", kind=b"V"), "unknown type 'V'"),
        (_head("f", -5), "size -5"),
        (_head("f", -5, kind=b"x"), "size -5"),
        (_head("f", -5, kind=b"L"), "size -5"),
        (_pax(("SCHILY.xattr.", b"v")) + _head("f"), "extended attributes"),
        (_pax(("SCHILY.xattr.user.a", b"v" * 66_000)) + _head("f"), "extended attributes"),
    ],
)
def test_what_no_file_can_have_is_refused_with_the_members_name(raw, word):
    with pytest.raises(BadInput) as refused:
        _read(_ended(raw))
    assert word in refused.value.what and "'f'" in refused.value.what


@pytest.mark.parametrize(
    ("raw", "time_ns"),
    [
        (_head(mtime=-86400), -86400 * 10**9),
        (_pax(("mtime", b"-1.5")) + _head(), -1_500_000_000),
        (_pax(("mtime", b"-0.25")) + _head(), -250_000_000),
        (_pax(("mtime", b"200.")) + _head(), 200 * 10**9),
        (_pax(("mtime", b"1.0000000019")) + _head(), 1_000_000_001),
        (_pax(("mtime", b"")) + _head(mtime=7), 7 * 10**9),
        (_head(mtime=1 << 40), 0),
        (_head(mtime=-(1 << 32)), 0),
        (_pax(("mtime", b"99999999999999")) + _head(), 0),
    ],
)
def test_times_are_those_of_the_header_within_what_a_file_can_have(raw, time_ns):
    assert _read(_ended(raw))[0][0].mtime_ns == time_ns == bounded_time_ns(time_ns)


def _patched(head: bytes, at: int, new: bytes) -> bytes:
    changed = bytearray(head)
    changed[at : at + len(new)] = new
    return _summed(changed)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (_pax(("path", b"")) + _head("f"), ("f", "0", b"")),
        (_pax(("size", b"")) + _head("f", 3) + b"abc" + bytes(509), ("f", "0", b"abc")),
        (_pax(("path", b"of-pax")) + _head("g" * 150), ("g" * 150, "0", b"")),
        (_pax(("linkpath", b"of-pax"), ("uid", b"3")) + _head("f"), ("f", "0", b"")),
        (_pax(("comment", b"0" * 40), kind=b"g") + _head("f"), ("f", "0", b"")),
        (_head("f/", 3) + b"abc" + bytes(509), ("f/", "0", b"abc")),
        (_head("f/", kind=b"\0"), ("f/", "5", b"")),
        (_patched(_head("f", kind=tarfile.SYMTYPE, linkname="t"), 124, b"00000000007\0"), None),
        (_patched(_head("f", kind=tarfile.LNKTYPE, linkname="t"), 124, b"00000000007\0"), None),
        (_pax(("GNU.sparse.map", b"0,4")) + _head("f/", kind=b"5"), ("f/", "5", b"")),
        (_patched(_head("f"), 100, b"0000644\0"), ("f", "0", b"")),
        (_patched(_head("f"), 136, b"0000001\0\0abc"), ("f", "0", b"")),
    ],
)
def test_headers_of_odd_writers_are_read_as_containerd_reads_them(raw, expected):
    (first, data), (second, _) = _read(_ended(raw))
    assert second.name == "next"
    assert expected in (None, (first.name, first.type, data))


def test_a_checksum_of_signed_bytes_is_a_checksum():
    head = bytearray(_head("f\udce9"))
    head[148:156] = b" " * 8
    signed = sum(head) - 256 * sum(byte > 127 for byte in head)
    head[148:156] = b"%06o\0 " % signed
    assert _read(_ended(bytes(head)))[0][0].name == "f\udce9"

"""The eStargz format: what we write reads back, is the same every time, and lies are refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image.estargz import codec, layout, source, writer
from labkit.image.estargz.members import header, toc_entry
from labkit.image.estargz.toc import parse
from labkit.image.tar_header import DIR, FILE, HARDLINK, Member
from tests.support.estargz_files import read_file, toc_of


def tar_of(*items: tuple[str, dict], format: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:", format=format) as archive:
        for name, about in items:
            info = tarfile.TarInfo(name)
            data = about.pop("data", b"")
            info.size = len(data)
            for key, value in about.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


HARD_CASES = tar_of(
    ("usr", {"type": tarfile.DIRTYPE, "mode": 0o755}),
    ("usr/a", {"data": b"hello", "mtime": 1_500_000_000, "mode": 0o4755, "uid": 5}),
    ("usr/many-chunks", {"data": random.Random(1).randbytes(300_000) + bytes(400_000)}),
    ("usr/hard", {"type": tarfile.LNKTYPE, "linkname": "usr/a"}),
    ("usr/soft", {"type": tarfile.SYMTYPE, "linkname": "a"}),
    ("usr/" + "n" * 240, {"data": b"long"}),
    (b"usr/\xff\xfe".decode("utf-8", "surrogateescape"), {"data": b"not utf-8"}),
    ("empty", {}),
    ("null", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 3}),
    ("pipe", {"type": tarfile.FIFOTYPE}),
    (".wh.gone", {}),
    ("attributes", {"data": b"x", "pax_headers": {"SCHILY.xattr.user.k": "v"}}),
    ("far-future", {"data": b"y", "mtime": 9e9, "uid": 3_000_000}),
)


def make(raw: bytes, directory, name: str = "blob", **options):
    with source.spool([raw[i : i + 1000] for i in range(0, len(raw), 1000)], directory) as layer:
        written = writer.write(layer, directory / name, **options)
    return written, (directory / name).read_bytes()


def members(archive):
    with tarfile.open(
        fileobj=io.BytesIO(archive), errors="surrogateescape", encoding="utf-8"
    ) as tar:
        return tar.getmembers()


def test_any_runtime_unpacks_the_blob_and_finds_the_diff_id(tmp_path):
    written, blob = make(HARD_CASES, tmp_path)
    plain = gzip.decompress(blob)
    assert "sha256:" + hashlib.sha256(plain).hexdigest() == written.diff_id
    assert (
        "sha256:" + hashlib.sha256(blob).hexdigest() == written.digest
        and len(blob) == written.size_bytes
    )
    ours = {m.name: m for m in members(plain)}
    for theirs in members(HARD_CASES):
        same = ours[theirs.name]
        if theirs.islnk():  # some readers apply a link's own header to the file
            assert (same.linkname, same.mode) == (theirs.linkname, ours[theirs.linkname].mode)
            continue
        for key in ("type", "mode", "uid", "size", "linkname", "devmajor", "devminor"):
            assert getattr(same, key) == getattr(theirs, key), (theirs.name, key)
        assert int(same.mtime) == int(theirs.mtime)
    assert ours["attributes"].pax_headers["SCHILY.xattr.user.k"] == "v"


def test_every_file_reads_back_by_ranges(tmp_path):
    written, blob = make(HARD_CASES, tmp_path, chunk_bytes=64 << 10)
    toc = toc_of(blob, written.toc_digest)
    with tarfile.open(fileobj=io.BytesIO(HARD_CASES)) as archive:
        for info in archive:
            if info.isreg():
                assert read_file(blob, toc, info.name) == archive.extractfile(info).read()
    assert read_file(blob, toc, "usr/hard") == b"hello"


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_same_input_gives_the_same_blob_with_any_number_of_threads(tmp_path, threads):
    assert (
        make(HARD_CASES, tmp_path, threads=threads, prioritised=["empty", "usr/hard"])[0]
        == make(HARD_CASES, tmp_path, "again", threads=3, prioritised=["empty", "usr/hard"])[0]
    )


def test_prioritised_files_come_first_with_their_parents_and_link_targets(tmp_path):
    written, blob = make(HARD_CASES, tmp_path, prioritised=["attributes", "usr/hard", "not/there"])
    names = [m.name for m in members(blob)]
    assert names[:5] == ["attributes", "usr", "usr/a", "usr/hard", layout.PREFETCH]
    assert written.missing == ("not/there",) and 0 < written.prefetch_bytes < 1000
    assert toc_of(blob, written.toc_digest).prefetch_end == written.prefetch_bytes


def test_without_prioritised_files_the_other_landmark_is_there(tmp_path):
    written, blob = make(HARD_CASES, tmp_path)
    assert layout.NO_PREFETCH in [m.name for m in members(blob)] and written.prefetch_bytes == 0


def test_converting_an_estargz_layer_again_leaves_its_own_files_out(tmp_path):
    _, blob = make(HARD_CASES, tmp_path, prioritised=["usr/a"])
    _, again = make(gzip.decompress(blob), tmp_path, "again", prioritised=["usr/a"])
    assert again == blob


def test_sparse_members_are_written_out_in_full(tmp_path):
    raw = bytearray(
        tar_of(("sparse", {"data": b"A" * 512 + b"B" * 512}), format=tarfile.GNU_FORMAT)
    )
    # an old GNU sparse header: two pieces of 512 bytes, at 0 and at 1 MiB, of a file of 1 MiB + 512
    head = raw[:512]
    head[156:157] = b"S"
    head[386 : 386 + 48] = b"".join(b"%011o\0" % n for n in (0, 512, 1 << 20, 512))
    head[482], head[483:495] = 0, b"%011o\0" % ((1 << 20) + 512)
    head[148:156] = b" " * 8
    head[148:156] = b"%06o\0 " % sum(head)
    raw[:512] = head
    written, blob = make(bytes(raw), tmp_path, chunk_bytes=100_100)
    assert (
        read_file(blob, toc_of(blob, written.toc_digest), "sparse")
        == b"A" * 512 + bytes((1 << 20) - 512) + b"B" * 512
    )


def test_a_decompression_bomb_is_refused(tmp_path):
    with (
        pytest.raises(BadInput, match="expands"),
        source.spool([bytes(1000)] * 20, tmp_path, limit_bytes=10_000),
    ):
        pass


@given(st.integers(0, 2**60))
def test_the_footer_is_51_bytes_and_gives_its_offset_back(offset):
    raw = layout.pack_footer(offset)
    assert len(raw) == 51 and layout.unpack_footer(raw) == offset and gzip.decompress(raw) == b""


@given(st.binary(max_size=80))
def test_no_other_bytes_are_a_footer(raw):
    with pytest.raises(BadInput):
        layout.unpack_footer(raw)


@given(st.binary(min_size=1, max_size=5000), st.integers(1, 6000))
def test_a_member_gives_the_bytes_asked_for_or_nothing(data, size):
    member = codec.compress(data)
    if size <= len(data):
        assert codec.decompress(member + b"what follows", size) == data[:size]
    else:
        with pytest.raises(BadInput):
            codec.decompress(member, size)


@settings(deadline=None)
@given(st.data())
def test_a_corrupt_blob_never_gives_wrong_bytes(tmp_path_factory, data):
    written, blob = _BLOB.setdefault(
        "it", make(HARD_CASES, tmp_path_factory.mktemp("blob"), chunk_bytes=100_000)
    )
    broken = bytearray(blob)
    for _ in range(data.draw(st.integers(1, 3))):
        broken[data.draw(st.integers(0, len(blob) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        toc = toc_of(bytes(broken), written.toc_digest)
        for name, right in (("usr/a", b"hello"), ("attributes", b"x")):
            assert read_file(bytes(broken), toc, name) == right
    except BadInput:
        pass


_BLOB: dict = {}


def test_a_chunk_in_front_of_a_huge_member_costs_only_itself():
    assert codec.decompress(codec.compress(b"abc" + bytes(50_000_000)), 3) == b"abc"


def test_a_toc_other_than_the_manifests_is_refused(tmp_path):
    _written, blob = make(HARD_CASES, tmp_path)
    with pytest.raises(BadInput, match="not the one its manifest names"):
        toc_of(blob, "sha256:" + "0" * 64)


def entry(name="a", **more) -> dict:
    return {
        "name": name,
        "type": "reg",
        "size": 10,
        "mode": 0o644,
        "offset": 0,
        "chunkDigest": "sha256:" + "0" * 64,
    } | more


SECOND_CHUNK = {
    "name": "a",
    "type": "chunk",
    "chunkOffset": 5,
    "offset": 9,
    "chunkDigest": "sha256:" + "0" * 64,
}
HOSTILE = {
    "a name that climbs": [entry("../etc/passwd")],
    "a name in the middle that climbs": [entry("a/../../b")],
    "a name with NUL": [entry("a\0b")],
    "a name that is a number": [entry(7)],
    "no name": [{"type": "reg"}],
    "an unknown type": [entry(type="socket")],
    "a negative size": [entry(size=-1)],
    "a size of 2**70": [entry(size=2**70)],
    "a float size": [entry(size=1.5)],
    "a boolean size": [entry(size=True)],
    "an offset behind the TOC": [entry(offset=1001)],
    "a chunk in the TOC": [entry(offset=1000)],
    "a negative offset": [entry(offset=-5)],
    "a chunk without digest": [entry(chunkDigest="")],
    "a digest of md5": [entry(chunkDigest="md5:0")],
    "chunks with a gap": [
        entry(chunkSize=3),
        SECOND_CHUNK,
    ],
    "chunks that overlap": [
        entry(chunkSize=6),
        SECOND_CHUNK,
    ],
    "chunks beyond the size": [entry(chunkSize=11)],
    "too few chunks": [entry(chunkSize=4)],
    "a chunk of another file": [
        entry(chunkSize=4),
        {"name": "b", "type": "chunk", "chunkOffset": 4, "offset": 9},
    ],
    "a chunk without a file": [{"name": "a", "type": "chunk"}],
    "two chunks in one place": [entry(), entry("b")],
    "a chunk of 200 MB": [entry(size=200 << 20)],
    "a hard link out of the root": [{"name": "a", "type": "hardlink", "linkName": "../../b"}],
    "an owner of 2**32": [entry(uid=2**32)],
    "an owner that means unchanged": [entry(gid=2**32 - 1)],
    "a device that no kernel has": [{"name": "a", "type": "char", "devMajor": 4096}],
    "a name of 300 bytes": [entry("n" * 300)],
    "a name that is no text": [entry("\ud800")],
    "a 30th of February": [entry(modtime="2020-02-30T00:00:00Z")],
    "a time without a zone": [entry(modtime="2020-02-20T00:00:00")],
    "a time of day that is none": [entry(modtime="2020-02-20T24:00:00Z")],
    "a time that is none": [entry(modtime="yesterday")],
    "a time that is a number": [entry(modtime=3)],
    "attributes that are a list": [entry(xattrs=[1])],
    "attributes that are not base64": [entry(xattrs={"user.a": "*"})],
    "an entry that is a string": ["a"],
    "a shared member": [entry(innerOffset=5)],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_toc_is_refused(case):
    with pytest.raises(BadInput):
        parse(json.dumps({"version": 1, "entries": HOSTILE[case]}).encode(), toc_offset=1000)


def test_what_a_foreign_toc_calls_null_is_not_there():
    nothing = dict.fromkeys(("mode", "uid", "modtime", "xattrs", "devMajor"))
    raw = {"version": 1, "entries": [{"name": "./d/", "type": "dir", **nothing}]}
    (one,) = parse(json.dumps(raw).encode(), toc_offset=1000).entries
    assert (one.name, one.mode, one.uid, one.mtime_ns, one.xattrs) == ("d", 0, 0, 0, {})


@pytest.mark.parametrize(
    ("text", "time_ns"),
    [
        ("", 0),
        ("1970-01-01T00:00:01Z", 10**9),
        ("1969-12-31T23:59:59.5Z", -(10**9) // 2),
        ("2020-02-29T12:00:00.123456789123+02:00", 1582970400123456789),
        ("2020-02-29T12:00:00-00:30", 1582979400 * 10**9),
        ("2016-12-31T23:59:60z", 1483228800 * 10**9),
        ("0001-01-01T00:00:00Z", 0),
        ("0000-01-01T00:00:00Z", 0),
        ("9999-12-31T23:59:59Z", 0),
    ],
)
def test_a_tocs_time_is_what_go_reads_within_what_a_file_can_have(text, time_ns):
    raw = {"version": 1, "entries": [{"name": "d", "type": "dir", "modtime": text}]}
    assert parse(json.dumps(raw).encode(), toc_offset=1000).entries[0].mtime_ns == time_ns


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"version":2,"entries":[]}',
        b'{"version":1,"entries":{}}',
        b'{"version":1}',
        b"[" * 100_000,
        b"\xff",
    ],
)
def test_what_is_no_toc_is_refused(raw):
    with pytest.raises(BadInput):
        parse(raw, toc_offset=1000)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)
some_entry = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b/c", "a/b", "..", "/", ""]) | json_values,
        "type": (
            st.sampled_from(["reg", "dir", "chunk", "hardlink", "symlink", "char"]) | json_values
        ),
        "size": st.integers(0, 100) | json_values,
        "offset": st.integers(0, 1000) | json_values,
        "chunkOffset": st.integers(0, 100) | json_values,
        "chunkSize": st.integers(0, 100) | json_values,
        "chunkDigest": st.just("sha256:" + "0" * 64) | json_values,
        "linkName": st.sampled_from(["a", "b/c"]) | json_values,
        "modtime": st.text(max_size=25) | json_values,
        "xattrs": json_values,
        "mode": json_values,
        "devMajor": json_values,
    },
)


@settings(max_examples=300, deadline=None)
@given(st.lists(some_entry, max_size=6))
def test_a_toc_is_sound_or_refused_never_a_crash(entries):
    try:
        parsed = parse(json.dumps({"version": 1, "entries": entries}).encode(), toc_offset=1000)
    except BadInput:
        return
    for one in parsed.entries:
        assert ".." not in one.name.split("/") and not one.name.startswith("/")
        assert sum(c.size for c in one.chunks) == (one.size if one.kind == "reg" else 0)
        assert all(0 <= c.start < c.end <= 1000 for c in one.chunks)


@given(st.text(max_size=60))
def test_touched_ranges_are_sorted_ranges_of_the_blob_or_refused(text):
    try:
        ranges = layout.parse_ranges(text, 500)
    except BadInput:
        return
    assert all(0 <= a < b <= 500 for a, b in ranges) and ranges == sorted(ranges)


def test_a_directory_named_without_slash_gets_one_and_a_link_keeps_its_target():
    assert header(Member("d", DIR, 0o755), 0)[:2] == b"d/"
    assert toc_entry(Member("l", HARDLINK, link="d/x"))["linkName"] == "d/x"


@given(
    st.binary(min_size=1, max_size=300).filter(lambda b: b"\0" not in b and b.strip(b"/")),
    st.integers(-5, 2**36),
    st.integers(0, 2**31),
)
def test_any_header_is_read_back_by_tarfile(name, seconds, uid):
    text = name.decode("utf-8", "surrogateescape").strip("/")
    member = Member(text, FILE, 0o600, uid, uid, 0, seconds * 10**9)
    (info,) = members(header(member, 0) + bytes(1024))
    assert (info.name, info.uid, int(info.mtime)) == (text, uid, seconds)

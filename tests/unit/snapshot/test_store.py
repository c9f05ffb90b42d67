"""Snapshots on disk: whole or not there, tied to their host, checked byte for byte, no secret named
by value."""

from __future__ import annotations

import itertools
import os
import stat
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.snapshot import readahead, store
from labkit.snapshot.explain import SnapshotRefused


def make(target, *, pages: bytes = b"p" * 5_000_000, **more) -> store.Snapshot:
    with store.writing(target) as part:
        (part / "images" / "pages-1.img").write_bytes(pages)
        (part / "images" / "core-1.img").write_bytes(b"core")
        store.seal(
            part,
            store.Manifest(
                "criu-process",
                store.host_fingerprint(),
                "4.2",
                "2026-01-01",
                store.describe(part / "images"),
                **more,
            ),
        )
    return store.open_snapshot(target)


def test_a_sealed_snapshot_is_readable_by_its_owner_only(tmp_path):
    snapshot = make(tmp_path / "s")
    assert stat.S_IMODE(snapshot.path.stat().st_mode) == 0o700
    assert {stat.S_IMODE(p.stat().st_mode) for p in snapshot.criu_images.iterdir()} == {0o600}
    assert stat.S_IMODE((snapshot.path / "manifest.json").stat().st_mode) == 0o600


def test_a_dump_that_fails_leaves_nothing_and_keeps_the_old_snapshot(tmp_path):
    old = make(tmp_path / "s", pages=b"old")
    with pytest.raises(OSError), store.writing(tmp_path / "s") as part:
        (part / "images" / "pages-1.img").write_bytes(b"half")
        raise OSError("No space left on device")
    assert os.listdir(tmp_path) == ["s"]
    assert (store.open_snapshot(old.path).criu_images / "pages-1.img").read_bytes() == b"old"


def test_half_a_snapshot_is_never_restorable(tmp_path):
    with pytest.raises(SnapshotRefused), store.writing(tmp_path / "s") as part:
        (part / "images" / "pages-1.img").write_bytes(b"half")
    for name in ("s", ".s.1.part"):
        with pytest.raises(SnapshotRefused):
            store.open_snapshot(tmp_path / name)


def test_a_dump_in_place_of_another_leaves_nothing_of_the_first(tmp_path):
    make(tmp_path / "s")
    make(tmp_path / "s")
    assert os.listdir(tmp_path) == ["s"]


@given(
    key=st.sampled_from(["kernel", "cpu", "cpu_features", "machine"]),
    other=st.text(min_size=1, max_size=20),
)
@settings(deadline=None, max_examples=12)
def test_one_changed_byte_of_the_place_is_refused_with_the_reason(key, other, tmp_path_factory):
    snapshot = make(tmp_path_factory.mktemp("place") / "s", pages=b"x")
    snapshot.refuse_if_foreign()
    if other == snapshot.manifest.place[key]:
        return
    foreign = replace(
        snapshot, manifest=replace(snapshot.manifest, place={**snapshot.manifest.place, key: other})
    )
    with pytest.raises(SnapshotRefused) as caught:
        foreign.refuse_if_foreign()
    assert other in caught.value.what


def test_another_major_version_of_criu_is_refused(tmp_path):
    snapshot = make(tmp_path / "s", pages=b"x")
    snapshot.refuse_if_foreign(criu="4.9")
    with pytest.raises(SnapshotRefused, match="CRIU"):
        snapshot.refuse_if_foreign(criu="3.17")


@given(
    name=st.sampled_from(["pages-1.img", "core-1.img"]),
    at=st.integers(0, 4_999_999),
    cut=st.booleans(),
)
@settings(deadline=None, max_examples=12)
def test_any_damaged_byte_is_found(name, at, cut, tmp_path_factory):
    snapshot = make(tmp_path_factory.mktemp("damage") / "s")
    path = snapshot.criu_images / name
    data = bytearray(path.read_bytes())
    at %= len(data)
    path.write_bytes(data[:at] if cut else data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    with pytest.raises(SnapshotRefused, match=name):
        snapshot.verify()


@given(at=st.integers(0, 4_999_999))
@settings(deadline=None, max_examples=12)
def test_reading_ahead_finds_any_damaged_byte_of_the_pages(at, tmp_path_factory):
    snapshot = make(tmp_path_factory.mktemp("ahead") / "s")
    path = snapshot.criu_images / "pages-1.img"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with (
        readahead.reading(readahead.pieces_of(snapshot)) as ahead,
        pytest.raises(SnapshotRefused, match="pages-1.img"),
    ):
        ahead.checked()
    ahead.join()


def test_reading_ahead_sees_every_byte_of_a_whole_snapshot(tmp_path):
    snapshot = make(tmp_path / "s")
    pieces = readahead.pieces_of(snapshot)
    with readahead.reading(pieces) as ahead:
        ahead.checked()
    ahead.join()
    assert ahead.asked_bytes == ahead.checked_bytes == 5_000_000 == readahead.piece_bytes(pieces)


def test_a_file_of_the_working_set_that_is_gone_stops_nothing(tmp_path):
    snapshot = make(tmp_path / "s", working_set={"/nowhere/lib.so": [[0, 4096]]})
    with readahead.reading(readahead.pieces_of(snapshot)) as ahead:
        ahead.checked()
    ahead.join()


@given(
    ranges=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**4)), max_size=20),
    gap=st.integers(0, 10**4),
)
def test_merged_ranges_cover_what_they_were_made_of_and_stay_apart(ranges, gap):
    merged = readahead.merge(ranges, gap)
    for offset, length in ranges:
        assert any(o <= offset and offset + length <= o + n for o, n in merged)
    assert all(a[0] + a[1] + gap < b[0] for a, b in itertools.pairwise(merged))


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "MY_API_KEY", "db_password", "GITHUB_PAT", "Credential"],
)
def test_secrets_are_named_and_scrubbed(name):
    environment = {name: "value", "PATH": "/bin", "SSH_AUTH_SOCK": "/run/x"}
    assert store.secrets_in(environment) == [name]
    assert store.scrubbed(environment) == {"PATH": "/bin", "SSH_AUTH_SOCK": "/run/x"}


def test_what_is_no_secret_is_neither_named_nor_scrubbed_and_a_password_in_a_url_is():
    environment = {
        "TOKENIZERS_PARALLELISM": "false",
        "XDG_SESSION_ID": "3",
        "MODEL_KEY": "models/small",
        "DATABASE_URL": "postgres://me:sesame99@db/x",
        "HTTP_PROXY": "http://proxy:3128",
    }
    assert store.secrets_in(environment) == ["DATABASE_URL"] and "sesame99" not in str(
        store.scrubbed(environment)
    )


def modes(folder) -> set[tuple[bool, str]]:
    return {(p.is_dir(), oct(stat.S_IMODE(p.stat().st_mode))) for p in (folder, *folder.rglob("*"))}


OWNERS = {(True, "0o700"), (False, "0o600")}


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_snapshot_stays_its_owners_packed_published_fetched_and_unpacked(
    tmp_path, monkeypatch, compression
):
    from labkit.core.plan import StepContext
    from labkit.net.serving import serving
    from labkit.objects.client import open_bucket
    from labkit.snapshot import packing, process, transport, unpacking

    # there is no files.img in it to edit
    monkeypatch.setattr("labkit.snapshot.criu_images.move", lambda *_, **__: None)
    before = os.umask(0o022)
    try:
        snapshot = make(tmp_path / "s", secrets=("HF_TOKEN",))
        packing.pack(snapshot, tmp_path / "packed", compression)
        packing.publish(snapshot, tmp_path / "bucket", "snapshots/s", compression=compression)
        with (
            serving("store", tmp_path / "bucket") as running,
            open_bucket("s3://lab/snapshots/s", {"AWS_ENDPOINT_URL": running.url}) as bucket,
        ):
            transport.pull(bucket, tmp_path / "pulled")
        ctx = StepContext(tmp_path / "node", 0, tmp_path / "timeline", None, [], {}, [])
        ctx.node.mkdir()
        unpacking.unpack(ctx, str(tmp_path / "packed"))
        process.stage_images(snapshot, tmp_path / "placed", port=None, moved={})
    finally:
        os.umask(before)
    for made in (
        tmp_path / "packed",
        tmp_path / "pulled",
        ctx.node / "snapshot",
        tmp_path / "placed",
    ):
        assert modes(made) <= OWNERS, made
    assert {
        mode
        for is_dir, mode in modes(tmp_path / "bucket" / "lab" / "snapshots" / "s")
        if not is_dir
    } == {"0o600"}


def test_a_snapshot_stays_its_owners_where_it_is_copied_to_another_file_system(
    tmp_path, monkeypatch
):
    from labkit.objects.hardlink import link_or_copy
    from labkit.snapshot import process

    snapshot = make(tmp_path / "s", pages=b"x" * 5000)

    def other_file_system(*_):
        raise OSError("Invalid cross-device link")

    monkeypatch.setattr(os, "link", other_file_system)
    monkeypatch.setattr("labkit.snapshot.criu_images.move", lambda *_, **__: None)
    assert link_or_copy(
        snapshot.criu_images / "pages-1.img", tmp_path / "bucket" / "pages-1.img"
    ) in (
        "copied",
        "cloned",
    )
    assert stat.S_IMODE((tmp_path / "bucket" / "pages-1.img").stat().st_mode) == 0o600
    assert modes(process.stage_images(snapshot, tmp_path / "placed", port=None, moved={})) == OWNERS


def test_pushing_a_snapshot_says_whose_secrets_go_with_it_and_no_value(
    tmp_path, monkeypatch, capsys
):
    import json

    from labkit.cli import main
    from labkit.net.serving import serving

    monkeypatch.setenv("LABKIT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_TOKEN", "sesame-4421-x")
    make(tmp_path / "s", pages=b"sesame-4421-x", secrets=("HF_TOKEN",))
    (tmp_path / "bucket").mkdir()
    with serving("store", tmp_path / "bucket") as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        assert main(["snapshot", "push", str(tmp_path / "s"), "s3://lab/x"]) == 0
    said = capsys.readouterr()
    assert "with the values of HF_TOKEN" in said.out and json.loads(said.out.splitlines()[-1])[
        "secrets"
    ] == ["HF_TOKEN"]
    assert "sesame-4421-x" not in said.out + said.err


def test_a_manifest_that_names_files_outside_is_refused(tmp_path):
    snapshot = make(tmp_path / "s", pages=b"x")
    text = (snapshot.path / "manifest.json").read_text().replace("core-1.img", "../core-1.img")
    (snapshot.path / "manifest.json").write_text(text)
    with pytest.raises(SnapshotRefused):
        store.open_snapshot(snapshot.path)


@given(data=st.binary(max_size=300))
@settings(deadline=None, max_examples=12)
def test_any_manifest_is_read_or_refused(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("manifest")
    (folder / "manifest.json").write_bytes(data)
    with pytest.raises(SnapshotRefused):
        store.open_snapshot(folder)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_a_published_snapshot_comes_back_byte_for_byte(tmp_path, compression):
    from labkit.net.serving import serving
    from labkit.objects.client import open_bucket
    from labkit.snapshot import packing, transport

    snapshot = make(tmp_path / "s", pages=os.urandom(3_000_000) + bytes(6_000_000))
    facts = packing.publish(snapshot, tmp_path / "bucket", "snapshots/s", compression=compression)
    assert sorted(os.listdir(tmp_path)) == ["bucket", "s"] and sorted(
        os.listdir(tmp_path / "bucket")
    ) == [".labkit", "lab"]
    assert (facts["stored_bytes"] < 5_000_000) == (compression == "zstd")
    with (
        serving("store", tmp_path / "bucket") as running,
        open_bucket("s3://lab/snapshots/s", {"AWS_ENDPOINT_URL": running.url}) as bucket,
    ):
        transport.pull(bucket, tmp_path / "node")
    store.open_snapshot(tmp_path / "node").verify()


@given(
    at=st.integers(0, 10**9),
    name=st.sampled_from(["pages-1.img", "core-1.img"]),
    compression=st.sampled_from(["none", "zstd"]),
)
@settings(deadline=None, max_examples=8)
def test_a_snapshot_that_was_damaged_in_the_bucket_is_refused_on_the_node(
    at, name, compression, tmp_path_factory
):
    from labkit.net.serving import serving
    from labkit.objects.client import open_bucket
    from labkit.snapshot import packing, transport

    top = tmp_path_factory.mktemp("bucket")
    packing.publish(
        make(top / "s", pages=os.urandom(1_000_000) + bytes(4_000_000)),
        top / "bucket",
        "snapshots/s",
        compression=compression,
    )
    path = top / "bucket" / "lab" / "snapshots" / "s" / "images" / name
    data = bytearray(path.read_bytes())
    data[at % len(data)] ^= 1
    path.unlink()
    path.write_bytes(data)
    with (
        serving("store", top / "bucket") as running,
        open_bucket("s3://lab/snapshots/s", {"AWS_ENDPOINT_URL": running.url}) as bucket,
        pytest.raises(SnapshotRefused, match=name),
    ):
        transport.pull(bucket, top / "node")
        store.open_snapshot(top / "node").verify()


def test_build_ids_are_left_to_criu_where_a_library_is_not_the_file_of_the_dump(tmp_path):
    from labkit.snapshot.process import stamp_of, validation

    library = tmp_path / "libx.so"
    library.write_bytes(b"code")
    there = make(tmp_path / "s", pages=b"x", libraries={str(library): list(stamp_of(str(library)))})
    assert validation(there) == ["--file-validation", "filesize"]
    os.utime(library, ns=(0, 1))
    assert validation(there) == []
    library.unlink()
    assert validation(there) == [] and validation(make(tmp_path / "old", pages=b"x")) == []

"""Layout in, eStargz layout out; access records in both tools' words."""

from __future__ import annotations

import json

import pytest

from labkit.errors import BadInput
from labkit.image import access_record, oci
from labkit.image.access_record import Access
from labkit.image.estargz import layer_cache, layout
from labkit.image.estargz.convert import convert
from labkit.image.layers import LayerEntry, write_image, write_layer
from labkit.image.oci_layout import Layout
from labkit.image.tiny import REFERENCE, tiny_layers, tiny_layout
from tests.support.estargz_files import read_file, toc_of


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    base = tmp_path_factory.mktemp("images")
    tiny_layout(base / "plain", 600_000)
    record = [
        Access("usr/bin/app-again", 0),
        Access("usr/lib/libbig.so", ranges=((0, 10),)),
        Access("nowhere"),
    ]
    converted = convert(
        Layout(base / "plain"),
        REFERENCE,
        Layout.create(base / "lazy"),
        record=record,
        options=layer_cache.Options(1 << 16),
    )
    return base, converted


def test_the_converted_image_holds_the_same_files(images):
    base, _ = images
    lazy = Layout(base / "lazy")
    for entries, descriptor in zip(
        tiny_layers(600_000), lazy.manifest(REFERENCE).layers, strict=True
    ):
        blob = lazy.blob_path(descriptor.digest).read_bytes()
        toc = toc_of(blob, descriptor.annotations[layout.TOC_DIGEST])
        for name, entry in entries.items():
            if entry.data is not None:
                assert read_file(blob, toc, name) == entry.data


def test_diff_ids_and_annotations_are_those_of_the_new_blobs(images):
    base, converted = images
    lazy = Layout(base / "lazy")
    manifest = lazy.manifest(REFERENCE)
    assert lazy.config(manifest)["rootfs"]["diff_ids"] == [w.diff_id for w in converted.layers]
    for descriptor, written in zip(manifest.layers, converted.layers, strict=True):
        with lazy.plain_layer(descriptor, written.diff_id) as tar:
            plain = b"".join(tar)
        assert (
            len(plain) == int(descriptor.annotations[layout.UNCOMPRESSED_SIZE])
            and oci.digest_of(plain) == written.diff_id
        )


def test_only_the_touched_chunks_of_a_file_are_to_be_prefetched(images):
    base, converted = images
    first = Layout(base / "lazy").manifest(REFERENCE).layers[0]
    ranges = layout.parse_ranges(first.annotations[layout.TOUCHED_RANGES], first.size_bytes)
    assert 200_000 < sum(b - a for a, b in ranges) < converted.layers[0].prefetch_bytes


def test_what_the_record_names_and_no_layer_holds_is_reported(images):
    assert images[1].facts["files_not_in_image"] == ["nowhere"]


def test_nothing_but_the_layout_is_left_in_the_target(images):
    base, _ = images
    assert sorted(p.name for p in (base / "lazy").iterdir()) == [
        "blobs",
        "index.json",
        "oci-layout",
    ]


def test_a_record_reads_back_and_first_touches_win(tmp_path):
    accesses = [
        Access("usr/bin/python3", 0, "sha256:" + "a" * 64, 0.25, ((0, 4096), (8192, 9000))),
        Access("etc/x"),
    ]
    path = access_record.write(tmp_path / "record", accesses)
    assert access_record.read(path) == accesses
    path.write_text(path.read_text() + '{"path":"etc/x","at_s":9}\n')
    assert access_record.read(path) == accesses


def test_the_reference_tools_record_is_read(tmp_path):
    path = tmp_path / "record"
    path.write_text(
        '{"path":"/bin/sh","manifestDigest":"sha256:00","layerIndex":1}\n{"path":"lib/x.so","layerIndex":0}\n'
    )
    assert [(a.path, a.layer) for a in access_record.read(path)] == [("bin/sh", 1), ("lib/x.so", 0)]
    assert [a.path for a in access_record.of_layer(access_record.read(path), 0)] == ["lib/x.so"]


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "[]",
        "7",
        '{"path":5}',
        '{"path":"../x"}',
        '{"path":"x","layerIndex":"a"}',
        '{"path":"x","ranges":[[5,1]]}',
        '{"path":"x","ranges":7}',
        "\x00",
    ],
)
def test_a_line_that_is_no_access_is_refused_with_its_number(tmp_path, line):
    path = tmp_path / "record"
    path.write_text(json.dumps({"path": "ok"}) + "\n" + line + "\n")
    with pytest.raises(BadInput, match="line 2"):
        access_record.read(path)


# ---- layers converted before

READS = [Access("usr/bin/app-again", 0), Access("usr/lib/libbig.so", 0, ranges=((0, 10),))]


@pytest.fixture
def edited(tmp_path):
    """convert(text of the app, record) in a folder of its own each: the base layers stay, the last
    one changes."""
    number = iter(range(9))

    def make(app: bytes, record=READS, *, level: int = 6, any_order: bool = False):
        at = next(number)
        source = Layout.create(tmp_path / f"source-{at}")
        layers = [*tiny_layers(600_000), {"srv/app.py": LayerEntry(data=app)}]
        write_image(
            source, [(str(i), write_layer(source, e)) for i, e in enumerate(layers)], {}, REFERENCE
        )
        target = Layout.create(tmp_path / f"lazy-{at}")
        converted = convert(
            source,
            REFERENCE,
            target,
            record=record,
            options=layer_cache.Options(1 << 16, level),
            cached=layer_cache.search(tmp_path.glob("lazy-*"), any_order=any_order),
        )
        layer_cache.note(target, source.manifest(REFERENCE), converted)
        return converted, target

    return make


def test_an_edit_of_the_app_converts_its_layer_and_links_the_others(edited):
    first, there = edited(b"print(1)")
    second, here = edited(b"print(2)")
    assert first.facts["layers_kept"] == 0 and second.facts["layers_kept"] == len(first.layers) - 1
    assert second.layers[:-1] == first.layers[:-1] and second.layers[-1] != first.layers[-1]
    for written in second.layers:
        assert oci.digest_of(here.blob_path(written.digest).read_bytes()) == written.digest
    assert here.manifest(REFERENCE).layers[:-1] == there.manifest(REFERENCE).layers[:-1]
    assert here.blob_path(first.layers[0].digest).samefile(there.blob_path(first.layers[0].digest))
    assert here.config(here.manifest(REFERENCE))["rootfs"]["diff_ids"] == [
        w.diff_id for w in second.layers
    ]


def test_a_start_that_touches_something_else_orders_the_layer_again(edited):
    edited(b"print(1)")
    converted, _ = edited(
        b"print(2)", [*READS, Access("usr/lib/libbig.so", 0, ranges=((200_000, 400_000),))]
    )
    again, _ = edited(
        b"print(3)", [*READS, Access("usr/lib/libbig.so", 0, ranges=((200_000, 400_000),))]
    )
    fewer, _ = edited(b"print(4)", READS[:1])
    assert converted.facts["layers_kept"] == len(converted.layers) - 2
    assert again.facts["layers_kept"] == fewer.facts["layers_kept"] == len(converted.layers) - 1


def test_other_options_keep_nothing_except_where_any_order_and_level_will_do(edited):
    edited(b"print(1)")
    assert edited(b"print(1)", level=1)[0].facts["layers_kept"] == 0
    assert (
        edited(b"print(1)", (), level=9, any_order=True)[0].facts["layers_kept"]
        == len(tiny_layers(600_000)) + 1
    )


@pytest.mark.parametrize("damage", [lambda raw: b"short", lambda raw: raw[:-1] + b"?"])
def test_a_kept_layer_that_is_damaged_is_made_again(edited, damage):
    first, there = edited(b"print(1)")
    path = there.blob_path(first.layers[0].digest)
    path.write_bytes(damage(path.read_bytes()))
    second, here = edited(b"print(1)")
    assert second.facts["layers_kept"] == len(first.layers) - 1 and second.layers == first.layers
    (here.path / layer_cache.NOTE).write_text("{")
    (there.path / layer_cache.NOTE).write_text('{"options": {"a": 1}}')
    assert edited(b"print(1)")[0].facts["layers_kept"] == 0

"""The registry as the distribution specification says, and what it must never do."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput, TransferError
from labkit.image import objectpull, oci, push
from labkit.image.image_source import source_of
from labkit.image.oci_layout import Layout
from labkit.image.publish import publish_image
from labkit.image.pull import pull_into
from labkit.image.registry import Registry
from labkit.image.registry_input import RegistryError, hex_of
from labkit.image.tiny import REFERENCE, tiny_layout
from labkit.net.server import HTTPServer
from labkit.objects.client import open_bucket
from labkit.objects.store import Store, environment


@pytest.fixture(scope="module")
def layout(tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "tiny"
    tiny_layout(path, 600_000)
    return Layout(path)


@pytest.fixture
def registry(tmp_path):
    with HTTPServer(Registry(tmp_path / "registry")) as server:
        yield server


@pytest.fixture
def bucket(tmp_path):
    with HTTPServer(Store(tmp_path / "store")) as server:
        yield server


def call(server, method, path, body=b"", **headers):
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
    answer = connection.getresponse()
    raw = answer.read()
    connection.close()
    return answer.status, {k.lower(): v for k, v in answer.getheaders()}, raw


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def upload(server, data, name="lab/x"):
    status, headers, _ = call(server, "POST", f"/v2/{name}/blobs/uploads/")
    assert status == 202
    return call(server, "PUT", f"{headers['location']}?digest={digest(data)}", data)[0]


def test_an_upload_in_chunks_goes_on_where_it_was(registry):
    data = bytes(range(256)) * 100
    place = call(registry, "POST", "/v2/lab/x/blobs/uploads/")[1]["location"]
    assert call(registry, "PATCH", place, data[:1000], Content_Range="0-999")[0] == 202
    assert call(registry, "PATCH", place, data[5000:], Content_Range="5000-25599")[0] == 416
    assert call(registry, "GET", place)[1]["range"] == "0-999"
    assert call(registry, "PATCH", place, data[1000:20000], Content_Range="1000-19999")[0] == 202
    assert call(registry, "PUT", f"{place}?digest={digest(data)}", data[20000:])[0] == 201
    assert (
        call(registry, "GET", f"/v2/lab/x/blobs/{digest(data)}", Range="bytes=999-1001")[2]
        == data[999:1002]
    )


def test_an_upload_survives_a_restart_of_the_registry(tmp_path):
    data = b"kept over a restart" * 1000
    with HTTPServer(Registry(tmp_path)) as server:
        place = call(server, "POST", "/v2/lab/x/blobs/uploads/")[1]["location"]
        call(server, "PATCH", place, data[:5000])
    with HTTPServer(Registry(tmp_path)) as server:
        assert call(server, "PUT", f"{place}?digest={digest(data)}", data[5000:])[0] == 201


def test_bytes_of_another_digest_never_get_its_name(registry):
    place = call(registry, "POST", "/v2/lab/x/blobs/uploads/")[1]["location"]
    status, _, raw = call(registry, "PUT", f"{place}?digest={digest(b'wanted')}", b"other")
    assert (status, json.loads(raw)["errors"][0]["code"]) == (400, "DIGEST_INVALID")
    assert call(registry, "HEAD", f"/v2/lab/x/blobs/{digest(b'wanted')}")[0] == 404
    assert not list((registry.app.disk.root / "uploads").iterdir())


def test_a_blob_belongs_to_its_repositories_until_mounted_into_another(registry):
    assert upload(registry, b"layer") == 201
    assert call(registry, "HEAD", f"/v2/lab/y/blobs/{digest(b'layer')}")[0] == 404
    assert (
        call(registry, "POST", f"/v2/lab/y/blobs/uploads/?mount={digest(b'layer')}&from=lab/x")[0]
        == 201
    )
    assert call(registry, "HEAD", f"/v2/lab/y/blobs/{digest(b'layer')}")[1]["content-length"] == "5"
    assert (
        call(registry, "POST", f"/v2/lab/y/blobs/uploads/?mount={digest(b'absent')}&from=lab/x")[0]
        == 202
    )


def test_a_manifest_needs_its_blobs_and_then_has_tags(registry):
    upload(registry, b"{}")
    doc = {
        "schemaVersion": 2,
        "mediaType": oci.MANIFEST,
        "config": {"mediaType": oci.CONFIG, "digest": digest(b"{}"), "size": 2},
        "layers": [],
    }
    bad = json.dumps(
        {**doc, "layers": [{"mediaType": oci.LAYER, "digest": digest(b"no"), "size": 2}]}
    ).encode()
    good = json.dumps(doc).encode()
    assert call(registry, "PUT", "/v2/lab/x/manifests/v1", bad)[0] == 400
    assert call(registry, "PUT", f"/v2/lab/x/manifests/{digest(b'another')}", good)[0] == 400
    for tag in ("v1", "v2", "v3"):
        assert (
            call(registry, "PUT", f"/v2/lab/x/manifests/{tag}", good, Content_Type=oci.MANIFEST)[0]
            == 201
        )
    status, headers, raw = call(registry, "GET", "/v2/lab/x/manifests/v2")
    assert (status, raw, headers["content-type"], headers["docker-content-digest"]) == (
        200,
        good,
        oci.MANIFEST,
        digest(good),
    )
    _, headers, raw = call(registry, "GET", "/v2/lab/x/tags/list?n=2")
    assert json.loads(raw)["tags"] == ["v1", "v2"] and "last=v2" in headers["link"]
    assert json.loads(call(registry, "GET", "/v2/lab/x/tags/list?n=2&last=v2")[2])["tags"] == ["v3"]
    assert json.loads(call(registry, "GET", "/v2/_catalog")[2]) == {"repositories": ["lab/x"]}
    assert call(registry, "DELETE", f"/v2/lab/x/manifests/{digest(good)}")[0] == 202
    assert call(registry, "GET", "/v2/lab/x/manifests/v1")[0] == 404


def test_a_layout_is_published_by_link_and_can_be_pulled_while_serving(registry, layout, tmp_path):
    facts = publish_image(registry.app.disk.root, layout.path, REFERENCE)
    assert facts["linked"] == 5 and facts["digest"] == layout.manifest(REFERENCE).digest
    with source_of(f"{registry.url}/{REFERENCE}") as source:
        objectpull.pull(source, tmp_path / "root", scratch=tmp_path / "scratch")
    assert (tmp_path / "root/etc/hostname").read_text() == "tiny\n"
    assert publish_image(registry.app.disk.root, layout.path, REFERENCE)["kept"] == 5


@pytest.mark.parametrize(
    "path",
    [
        "/v2/../../etc/passwd",
        "/v2/lab/x/blobs/sha256:../../x",
        "/v2/LAB/manifests/x",
        "/v2/lab/x/manifests/..",
        "/v2/lab/x/blobs/md5:00",
        "/v2/lab/x/blobs/uploads/../../blobs",
        "/v2/%2e%2e/manifests/x",
        "/nothing",
    ],
)
def test_no_path_leads_out(registry, path):
    assert call(registry, "GET", path)[0] in (400, 404)


@given(st.text(max_size=100))
def test_only_sha256_digests_become_file_names(text):
    with contextlib.suppress(RegistryError):
        assert len(hex_of(text)) == 64


def test_publishing_what_is_no_layout_is_bad_input(tmp_path):
    with pytest.raises(BadInput):
        publish_image(tmp_path / "r", tmp_path, "lab/x:latest")


def sparse(path):
    """An index of this machine's image, and another machine's that is not in the layout."""
    layout = Layout.create(path)
    tiny_layout(path, 100_000)
    mine = layout.index()[0].as_json()
    other = {"mediaType": oci.MANIFEST, "digest": digest(b"far away"), "size": 8}
    other["platform"] = {"architecture": "vax", "os": "linux"}
    doc = {"schemaVersion": 2, "mediaType": oci.INDEX, "manifests": [mine, other], "own": None}
    entry = layout.add_document(json.dumps(doc, indent=2).encode(), oci.INDEX, "lab/all:v1")
    return layout, entry


def test_a_sparse_index_is_published_as_far_as_it_goes_and_pulled_under_its_digest(
    registry, tmp_path
):
    layout, entry = sparse(tmp_path / "layout")
    facts = publish_image(registry.app.disk.root, layout.path, "lab/all:v1")
    assert (facts["digest"], facts["absent"]) == (entry.digest, 1)
    for target in ("v1", entry.digest):
        raw = call(registry, "GET", f"/v2/lab/all/manifests/{target}")[2]
        assert raw == layout.blob_path(entry.digest).read_bytes()
    into = Layout(tmp_path / "by-tag")
    pulled, _ = pull_into(into, f"{registry.url}/lab/all:v1")
    assert into.index()[0].digest == pulled.digest == layout.manifest(REFERENCE).digest
    for name, reference in (("", f"lab/all@{entry.digest}"), (":v1", f"lab/all:v1@{entry.digest}")):
        into = Layout(tmp_path / f"by-digest{name}")
        pulled, _ = pull_into(into, f"{registry.url}/{reference}")
        assert into.index()[0].digest == entry.digest
        assert into.manifest(f"lab/all{name}") == pulled == layout.manifest(REFERENCE)


def test_a_layer_that_must_not_be_distributed_need_not_be_published(registry, tmp_path):
    layout = Layout.create(tmp_path / "layout")
    bound = oci.Descriptor(
        oci.NONDISTRIBUTABLE, digest(b"x"), 1, other={"urls": ["http://owner/x"]}
    )
    layout.add(oci.Manifest(layout.write_blob(b"{}", oci.CONFIG), (bound,)), "lab/x:v1")
    assert publish_image(registry.app.disk.root, layout.path, "lab/x:v1")["absent"] == 1
    assert call(registry, "GET", "/v2/lab/x/manifests/v1")[0] == 200
    other = Layout.create(tmp_path / "other")
    missing = oci.Descriptor(oci.LAYER, digest(b"x"), 1)
    other.add(oci.Manifest(other.write_blob(b"{}", oci.CONFIG), (missing,)), "lab/y:v1")
    with pytest.raises(BadInput, match="is missing"):
        publish_image(registry.app.disk.root, other.path, "lab/y:v1")
    assert call(registry, "GET", "/v2/lab/y/manifests/v1")[0] == 404


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"{",
        lambda raw: raw.replace(b'"layers":[', b'"layers":[[],'),
        lambda raw: b"[]",
        lambda raw: b'{"layers": 5}',
        lambda raw: b"",
    ],
)
def test_a_broken_manifest_is_not_published_and_said_in_words(tmp_path, damage):
    layout = Layout(tmp_path / "layout")
    manifest = tiny_layout(layout.path, 100_000)
    raw = damage(manifest.as_bytes())
    # damaged where it lies, and broken by whoever built it
    layout.add_document(raw, oci.MANIFEST, "lab/broken:v1")
    layout.blob_path(manifest.digest).write_bytes(raw)
    for name in ("lab/broken:v1", REFERENCE):
        with pytest.raises(BadInput):
            publish_image(tmp_path / "registry", layout.path, name)


@pytest.mark.parametrize("name", ["lab/x@" + "sha256:" + "a" * 64, "http://h/lab/x:v1", "Lab", ""])
def test_an_image_is_published_under_a_name_and_a_digest_that_it_has(tmp_path, layout, name):
    with pytest.raises(BadInput):
        publish_image(tmp_path / "registry", layout.path, name)


@pytest.mark.parametrize("tag", ["", ":v7"])
def test_an_image_that_is_named_by_digest_goes_on_under_it(registry, bucket, layout, tag):
    wanted = layout.manifest(REFERENCE)
    name = f"lab/other{tag}@{wanted.digest}"
    assert publish_image(registry.app.disk.root, layout.path, name)["digest"] == wanted.digest
    with open_bucket("s3://lab/pushed", environment(bucket.url)) as target:
        assert push.push(layout, name, target)["digest"] == wanted.digest
    for base in (f"{registry.url}/", "s3://lab/pushed#"):
        with source_of(base + name, environment(bucket.url)) as source:
            assert source.manifest.as_bytes() == wanted.as_bytes()
    tags = call(registry, "GET", "/v2/lab/other/tags/list")[2]
    assert json.loads(tags)["tags"] == ([tag[1:]] if tag else [])


def test_a_bucket_takes_no_index_under_its_digest(bucket, tmp_path):
    layout, entry = sparse(tmp_path / "layout")
    with (
        open_bucket("s3://lab/pushed", environment(bucket.url)) as target,
        pytest.raises(BadInput, match="index"),
    ):
        push.push(layout, f"lab/all@{entry.digest}", target)


# -- images in a bucket ----------------------------------------------------------------------------


def pull(server, prefix, root, scratch, **options):
    with source_of(f"s3://lab/{prefix}#{REFERENCE}", environment(server.url)) as source:
        wanted = objectpull.PullOptions(part_bytes=50_000, **options)
        return objectpull.pull(source, root, scratch=scratch, options=wanted)


def tree(root):
    return {
        str(p.relative_to(root)): (
            p.lstat().st_mode,
            p.lstat().st_size if p.is_file() else 0,
            (
                hashlib.sha256(p.read_bytes()).hexdigest()
                if p.is_file() and not p.is_symlink()
                else ""
            ),
        )
        for p in sorted(root.rglob("*"))
    }


def test_every_codec_unpacks_to_the_same_tree(bucket, layout, tmp_path):
    from labkit.image.unpack import unpack_image

    unpack_image(layout, layout.manifest(REFERENCE), tmp_path / "stock")
    for codec in push.CODECS:
        recompressed = Layout.create(tmp_path / codec)
        push.recompress(layout, REFERENCE, recompressed, codec)
        push.publish_objects(bucket.app.disk.root, recompressed, REFERENCE, prefix=codec)
        facts = pull(bucket, codec, tmp_path / f"root-{codec}", tmp_path / "scratch")
        assert tree(tmp_path / f"root-{codec}") == tree(tmp_path / "stock")
        assert facts["requests"] > 5 and not (tmp_path / "scratch").exists()


def test_recompressing_twice_gives_the_same_digests(layout, tmp_path):
    manifests = [
        push.recompress(layout, REFERENCE, Layout.create(tmp_path / n), "zstd").as_bytes()
        for n in "ab"
    ]
    assert manifests[0] == manifests[1]


def test_a_push_sends_only_what_is_missing(bucket, layout):
    with open_bucket("s3://lab/pushed", environment(bucket.url)) as target:
        first, second = (push.push(layout, REFERENCE, target) for _ in range(2))
    assert (first["sent_blobs"], first["there"], second["sent_blobs"], second["there"]) == (
        4,
        0,
        0,
        4,
    )


def test_an_image_in_a_bucket_is_found_by_its_digest_too(bucket, layout, tmp_path):
    push.publish_objects(bucket.app.disk.root, layout, REFERENCE)
    wanted = layout.manifest(REFERENCE)
    name = f"s3://lab/images#{REFERENCE.partition(':')[0]}@{wanted.digest}"
    with source_of(name, environment(bucket.url)) as source:
        assert source.manifest.as_bytes() == wanted.as_bytes()
    path = bucket.app.disk.path("lab", f"images/{push.blob_key(wanted.digest)}")
    path.unlink()
    path.write_bytes(b"{}")
    with (
        pytest.raises(TransferError, match="another digest"),
        source_of(name, environment(bucket.url)),
    ):
        pass


def test_one_corrupt_answer_is_fetched_again_and_two_are_refused(bucket, layout, tmp_path):
    from labkit.errors import TransferError
    from labkit.net import faults

    push.publish_objects(bucket.app.disk.root, layout, REFERENCE)
    bucket.faults = faults.parse(["corrupt:nth=3,path=/blobs/,min_bytes=40000"])
    assert pull(bucket, "images", tmp_path / "root", tmp_path / "scratch")["attempts"] == 2
    bucket.faults = faults.parse(["corrupt:rate=1,path=/blobs/"])
    with pytest.raises(TransferError):
        pull(bucket, "images", tmp_path / "root2", tmp_path / "scratch2")
    assert not (tmp_path / "root2").exists()


def test_a_killed_pull_goes_on_where_it_was(bucket, layout, tmp_path):
    push.publish_objects(bucket.app.disk.root, layout, REFERENCE)
    pull(bucket, "images", tmp_path / "root", tmp_path / "scratch", keep_blobs=True)
    largest = max(
        (p for p in (tmp_path / "scratch").iterdir() if not p.suffix),
        key=lambda p: p.stat().st_size,
    )
    journal = largest.with_name(largest.name + ".parts")
    journal.write_bytes(journal.read_bytes().split(b"\n")[0] + b"\n12 torn")
    bucket.counters.clear()
    facts = pull(bucket, "images", tmp_path / "again", tmp_path / "scratch")
    assert tree(tmp_path / "again") == tree(tmp_path / "root")
    sent = sum(
        c["bytes_sent"]
        for path, c in bucket.counters.as_json()["by_path"].items()
        if path.endswith(largest.name)
    )
    assert sent == largest_size(layout) - 50_000 and facts["resumed_bytes"] > 0


def largest_size(layout):
    return max(layer.size_bytes for layer in layout.manifest(REFERENCE).layers)


def test_a_layer_that_unpacks_to_something_else_is_refused(bucket, layout, tmp_path):
    recompressed = Layout.create(tmp_path / "forged")
    manifest = push.recompress(layout, REFERENCE, recompressed, "gzip")
    config = json.loads(recompressed.read_blob(manifest.config))
    config["rootfs"]["diff_ids"][0] = digest(b"another")
    forged = oci.Manifest(
        recompressed.write_blob(json.dumps(config).encode(), oci.CONFIG), manifest.layers
    )
    recompressed.add(forged, REFERENCE)
    push.publish_objects(bucket.app.disk.root, recompressed, REFERENCE, prefix="forged")
    with pytest.raises(TransferError, match="unpacked"):
        pull(bucket, "forged", tmp_path / "root", tmp_path / "scratch")
    assert not (tmp_path / "root").exists()


def manifest_of(registry, **more):
    upload(registry, b"config")
    return json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": oci.MANIFEST,
            "config": {"digest": digest(b"config"), "size": 6},
            "layers": [],
            **more,
        }
    ).encode()


@pytest.mark.parametrize(
    "kind",
    [
        "text/html\r\nX-Injected: 1",
        "a/b\n",
        "日本/x",
        "",
        "no-slash",
        5,
        ["a/b"],
        "a/" + "b" * 500,
    ],
)
def test_a_manifest_cannot_say_that_it_is_a_header(registry, kind):
    """Its media type becomes the Content-Type of every answer that holds it."""
    raw = manifest_of(registry, mediaType=kind)
    assert call(registry, "PUT", "/v2/lab/x/manifests/latest", raw)[0] == 400
    assert call(registry, "GET", "/v2/lab/x/manifests/latest")[0] == 404


@pytest.mark.parametrize(
    "subject",
    [
        {"digest": "sha256:x\r\nX-Injected: 1"},
        {"digest": 5},
        {"digest": ["a"]},
        {},
        "x",
        5,
        ["digest"],
    ],
)
def test_a_manifests_subject_is_a_digest_or_refused(registry, subject):
    status, headers, _ = call(
        registry, "PUT", "/v2/lab/x/manifests/latest", manifest_of(registry, subject=subject)
    )
    assert "x-injected" not in headers and (status == 400 or not subject)


@pytest.mark.parametrize(
    "layers", [[{"digest": 5}], [{"digest": None}], [5], "x", [{"digest": "sha256:../../x"}]]
)
def test_layers_that_name_no_digest_are_a_bad_manifest(registry, layers):
    assert (
        call(registry, "PUT", "/v2/lab/x/manifests/latest", manifest_of(registry, layers=layers))[0]
        == 400
    )


def test_a_stored_type_that_no_header_can_hold_is_a_clear_500(registry, capsys):
    """The folder may come from anywhere."""
    call(registry, "PUT", "/v2/lab/x/manifests/latest", manifest_of(registry))
    mark = next((registry.app.disk.repository("lab/x") / "manifests").iterdir())
    mark.write_text("text/html\r\nX-Injected: 1")
    for headers in ({}, {"Range": "bytes=0-1,3-4"}):
        status, found, _ = call(registry, "GET", "/v2/lab/x/manifests/latest", **headers)
        assert status == 500 and "x-injected" not in found
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a" * 256, "/".join(["aaa"] * 80), "lab/blobs", "lab/manifests/x", "tags"]
)
def test_a_name_that_the_folder_cannot_hold_is_refused(registry, name):
    assert call(registry, "POST", f"/v2/{name}/blobs/uploads/")[0] == 400


@pytest.mark.parametrize("n", ["²", "%C2%B2", "-1", "1_0", "+1", "x"])
def test_a_page_size_is_digits(registry, n):
    assert (
        call(
            registry,
            "GET",
            f"/v2/_catalog?n={n.encode('unicode_escape').decode() if n == '²' else n}",
        )[0]
        == 400
    )


def test_what_is_there_is_never_missing_for_want_of_descriptors(registry, monkeypatch):
    """404 would end a pull; 503 is asked again."""
    import errno
    import os

    upload(registry, b"layer")

    def none_left(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("labkit.image.registry.os.open", none_left)
        status, headers, _ = call(registry, "GET", f"/v2/lab/x/blobs/{digest(b'layer')}")
    assert (status, headers["retry-after"]) == (503, "1") and os.open
    assert call(registry, "GET", f"/v2/lab/x/blobs/{digest(b'layer')}")[2] == b"layer"

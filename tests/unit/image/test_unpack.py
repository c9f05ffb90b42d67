"""Layers become directories as the image-spec says; hostile ones are refused and leave nothing
behind."""

from __future__ import annotations

import io
import os
import stat
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image import tiny
from labkit.image.estargz.source import spool
from labkit.image.oci_layout import Layout
from labkit.image.tree import ImageTree, Limits, growing
from labkit.image.unpack import apply_layer, unpack_image

FILE, LINK, HARD, DIR, CHAR, FIFO = (
    tarfile.REGTYPE,
    tarfile.SYMTYPE,
    tarfile.LNKTYPE,
    tarfile.DIRTYPE,
    tarfile.CHRTYPE,
    tarfile.FIFOTYPE,
)


def layer(*members) -> list[bytes]:
    """(name, type, data or link target, mode)"""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, kind, content, mode in members:
            head = tarfile.TarInfo(name)
            head.type, head.mode, head.mtime, head.uid, head.gid = (
                kind,
                mode,
                1_000_000,
                os.getuid(),
                os.getgid(),
            )
            if kind == FILE:
                head.size = len(content)
            elif kind in (LINK, HARD):
                head.linkname = content
            tar.addfile(head, io.BytesIO(content) if kind == FILE else None)
    return [out.getvalue()]


def f(name, data=b"x", mode=0o644):
    return (name, FILE, data, mode)


def grow(rootfs, *layers, limits=Limits(absolute_links=True)):
    with growing(rootfs, limits) as tree:
        for one in layers:
            apply_layer(one, tree)
    return rootfs


def names(root):
    return sorted(
        os.path.relpath(os.path.join(d, n), root) for d, ds, fs in os.walk(root) for n in ds + fs
    )


@pytest.fixture
def outside(tmp_path):
    """A place that a hostile layer would like to reach, beside the root."""
    target = tmp_path / "outside"
    target.mkdir()
    (target / "secret").write_text("host")
    return target


HOSTILE = {
    "climbs": [f("../outside/evil")],
    "climbs inside": [f("a/../../outside/evil")],
    "absolute hard link": [("a", HARD, "/etc/passwd", 0)],
    "hard link out of the root": [("a", HARD, "../outside/secret", 0)],
    "hard link through a symlink of the layer": [
        ("d", LINK, "/etc", 0o777),
        ("a", HARD, "d/passwd", 0),
    ],
    "hard link to nothing": [("a", HARD, "b", 0)],
    "hard link to itself": [("a", HARD, "a", 0)],
    "member through an absolute symlink": [("a", LINK, "/etc", 0o777), f("a/evil")],
    "member through a relative symlink": [
        ("d", DIR, "", 0o755),
        ("a", LINK, "d", 0o777),
        f("a/evil"),
    ],
    "directory through a symlink": [("a", LINK, "/tmp", 0o777), ("a/d", DIR, "", 0o755)],
    "whiteout through a symlink": [("a", LINK, "/etc", 0o777), f("a/.wh.passwd")],
    "member through a symlink that came twice": [
        f("a"),
        ("a", LINK, "/etc", 0o777),
        f("a/evil"),
    ],
    "hard link to a directory": [("d", DIR, "", 0o755), ("a", HARD, "d", 0)],
    "hard link to what it replaces": [f("a/b"), ("a", HARD, "a/b", 0)],
    "file as a directory": [f("a"), f("a/b")],
    "root as a file": [
        f("."),
    ],
    "whiteout of no file": [f(".wh.")],
    "whiteout of the parent": [f("d/.wh...")],
    "name too long": [f("n" * 300)],
    "path too deep": [f("d/" * 300 + "f")],
    "symlink to nothing": [("a", LINK, "", 0o777)],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("openat2", [True, False])
def test_a_hostile_layer_is_refused_and_leaves_nothing(
    tmp_path, outside, members, openat2, monkeypatch
):
    if not openat2:
        first = ImageTree.__init__
        monkeypatch.setattr(
            ImageTree,
            "__init__",
            lambda self, *a: (first(self, *a), setattr(self, "_openat2", False))[0],
        )
    with pytest.raises(BadInput):
        grow(
            tmp_path / "root",
            layer(("d", DIR, "", 0o755)) if members[0][0] != "d" else layer(),
            layer(*members),
        )
    assert sorted(os.listdir(tmp_path)) == ["outside"]
    assert names(outside) == ["secret"] and (outside / "secret").read_text() == "host"


@pytest.mark.parametrize("target", ["/usr/bin", "../outside", "x/../../../outside"])
def test_symlinks_out_of_the_root_are_refused_unless_the_caller_changes_the_root(tmp_path, target):
    with pytest.raises(BadInput) as refused:
        grow(tmp_path / "no", layer(("a", LINK, target, 0o777)), limits=Limits())
    assert "absolute-links" in refused.value.fix
    assert os.readlink(grow(tmp_path / "yes", layer(("a", LINK, target, 0o777))) / "a") == target


def test_no_link_of_a_lower_layer_is_followed(tmp_path, outside):
    root = grow(
        tmp_path / "root",
        layer(("a", LINK, str(outside), 0o777), ("b", LINK, "../outside", 0o777)),
        layer(f("a/file", b"inside"), f("b/.wh.secret"), f("b/.wh..wh..opq"), f("a/.wh.secret")),
    )
    assert (root / "a" / "file").read_bytes() == b"inside" and not (root / "a").is_symlink()
    assert names(outside) == ["secret"]


def test_bombs_stop_at_the_stated_limits(tmp_path):
    with pytest.raises(BadInput, match="limit of 1000 bytes"):
        grow(
            tmp_path / "root",
            layer(f("a", bytes(600)), f("b", bytes(600))),
            limits=Limits(total_bytes=1000),
        )
    with pytest.raises(BadInput, match="too many"):
        grow(tmp_path / "root", layer(*(f(f"f{i}") for i in range(20))), limits=Limits(members=10))
    assert os.listdir(tmp_path) == []


def test_a_sparse_bomb_stops_at_the_limit_as_any_file(tmp_path):
    head = tarfile.TarInfo("f")
    head.pax_headers = {"GNU.sparse.map": "0,0", "GNU.sparse.size": str(1 << 50)}
    bomb = head.tobuf(tarfile.PAX_FORMAT) + bytes(1024)
    with pytest.raises(BadInput, match="limit of 1000 bytes"):
        grow(tmp_path / "root", [bomb], limits=Limits(total_bytes=1000))
    with pytest.raises(BadInput, match="expands"), spool([bomb], tmp_path):
        pass


def test_an_interrupted_unpack_leaves_nothing(tmp_path):
    def stream():
        yield layer(f("a", bytes(100)))[0][:600]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), growing(tmp_path / "root") as tree:
        apply_layer(stream(), tree)
    assert os.listdir(tmp_path) == []


def test_whiteouts_hide_lower_layers_and_spare_their_own(tmp_path):
    root = grow(
        tmp_path / "root",
        layer(f("gone"), f("dir/a"), f("dir/sub/b"), f("opaque/old"), f("opaque/sub/old")),
        layer(
            f(".wh.gone"),
            f("new"),
            f(".wh.new"),
            f("dir/.wh.sub"),
            f("opaque/sub/new"),
            f("opaque/.wh..wh..opq"),
            f("opaque/own"),
            f(".wh..wh.plnk"),
        ),
    )
    assert names(root) == [
        "dir",
        "dir/a",
        "new",
        "opaque",
        "opaque/own",
        "opaque/sub",
        "opaque/sub/new",
    ]


def test_a_later_layer_may_change_what_a_path_is(tmp_path):
    root = grow(
        tmp_path / "root",
        layer(f("a/deep/file"), f("b"), ("c", LINK, "a", 0o777), f("d", b"old")),
        layer(
            f("a", b"now a file"),
            ("b", DIR, "", 0o700),
            f("b/x"),
            ("c", DIR, "", 0o750),
            f("d", b"new"),
        ),
    )
    assert (
        (root / "a").read_bytes() == b"now a file"
        and (root / "b" / "x").exists()
        and (root / "d").read_bytes() == b"new"
    )
    assert stat.S_IMODE((root / "c").lstat().st_mode) == 0o750 and not (root / "c").is_symlink()


def test_modes_times_links_and_fifos_arrive(tmp_path):
    root = grow(
        tmp_path / "root",
        layer(
            ("ro", DIR, "", 0o555),
            f("ro/file", b"data", 0o640),
            ("ro/again", HARD, "ro/file", 0o640),
            ("ro/link", LINK, "file", 0o777),
            ("pipe", FIFO, "", 0o600),
            ("tmp", DIR, "", 0o1777),
        ),
    )
    assert (
        stat.S_IMODE((root / "ro").stat().st_mode) == 0o555
        and stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    )
    assert (root / "ro/file").stat().st_ino == (root / "ro/again").stat().st_ino
    assert {(root / p).lstat().st_mtime for p in ("ro", "ro/file", "ro/link", "pipe", "tmp")} == {
        1_000_000
    }
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)


def test_device_nodes_are_refused_without_root(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(BadInput, match="device node"):
        grow(tmp_path / "root", layer(("null", CHAR, "", 0o666)))


@pytest.mark.needs("root")
def test_device_nodes_and_extended_attributes_arrive_as_root(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        head = tarfile.TarInfo("null")
        head.type, head.devmajor, head.devminor = CHAR, 1, 3
        tar.addfile(head)
        head = tarfile.TarInfo("file")
        head.pax_headers = {"SCHILY.xattr.user.lab": "value"}
        tar.addfile(head, io.BytesIO(b""))
    with growing(tmp_path / "root") as tree:
        apply_layer([out.getvalue()], tree)
        skipped = tree.skipped_xattrs
    assert os.stat(tmp_path / "root/null").st_rdev == os.makedev(1, 3)
    assert skipped or os.getxattr(tmp_path / "root/file", "user.lab") == b"value"


_STEP = st.sampled_from(["", ".", "..", "a", "b", "etc", ".wh.a", ".wh..wh..opq"])
_PATH = st.lists(_STEP, min_size=1, max_size=4).map("/".join)
_MEMBER = st.one_of(
    st.tuples(_PATH, st.just(FILE), st.binary(max_size=20), st.just(0o644)),
    st.tuples(_PATH, st.sampled_from([LINK, HARD]), _PATH, st.just(0o777)),
    st.tuples(_PATH, st.just(DIR), st.just(""), st.just(0o755)),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.lists(_MEMBER, max_size=6), max_size=3), st.booleans())
def test_no_sequence_of_members_writes_outside_the_root(tmp_path_factory, layers, absolute):
    top = tmp_path_factory.mktemp("hostile")
    (top / "a").mkdir()
    (top / "a" / "etc").write_text("host")
    try:
        grow(
            top / "root",
            *(layer(*members) for members in layers),
            limits=Limits(absolute_links=absolute),
        )
    except (BadInput, ValueError):
        assert not (top / "root").exists()
    assert set(os.listdir(top)) <= {"a", "root"}
    assert names(top / "a") == ["etc"] and (top / "a" / "etc").read_text() == "host"


def test_the_tiny_image_unpacks_to_what_its_layers_say(tmp_path):
    manifest = tiny.tiny_layout(tmp_path / "layout")
    facts = unpack_image(Layout(tmp_path / "layout"), manifest, tmp_path / "root")
    root = tmp_path / "root"
    assert facts["layers"] == 3 and (root / "etc/hostname").read_text() == "tiny\n"
    assert os.listdir(root / "opt/old") == ["c"] and not (root / "opt/gone").exists()
    assert (root / "usr/bin/app").stat().st_nlink == 2 and (root / "bin/app").exists()
    assert b"latin-\xe9" in os.listdir(os.fsencode(root / "usr/share"))


def test_a_layer_that_is_not_what_the_config_says_is_refused(tmp_path):
    from dataclasses import replace

    manifest = tiny.tiny_layout(tmp_path / "layout")
    swapped = replace(manifest, layers=(manifest.layers[1], manifest.layers[0], manifest.layers[2]))
    with pytest.raises(BadInput, match="the config says"):
        unpack_image(Layout(tmp_path / "layout"), swapped, tmp_path / "root")
    assert os.listdir(tmp_path) == ["layout"]

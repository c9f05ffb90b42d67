"""The same inputs give the same image; bytecode in it is used; what is not needed stays out."""

from __future__ import annotations

import importlib.util
import io
import os
import py_compile
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from labkit.errors import BadInput
from labkit.image import build, closure, tiny
from labkit.image.elf import interpreter_of
from labkit.image.layers import LayerEntry, tar_chunks, write_layer
from labkit.image.oci_layout import Layout
from labkit.image.rootfs import prepare_root, resolve
from labkit.image.tree import growing
from labkit.image.unpack import apply_layer


def test_the_tiny_image_has_the_same_digest_every_time(tmp_path):
    first, second = tiny.tiny_layout(tmp_path / "a"), tiny.tiny_layout(tmp_path / "b")
    assert first == second
    for blob in Layout(tmp_path / "a").blobs(first):
        assert (
            Layout(tmp_path / "b").blob_path(blob.digest).read_bytes()
            == Layout(tmp_path / "a").blob_path(blob.digest).read_bytes()
        )


def test_a_layer_names_neither_its_builder_nor_its_time(tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"content")
    os.utime(source, (1, 1))
    before = b"".join(tar_chunks({"d/file": LayerEntry(source=source)}))
    os.utime(source, (2_000_000, 2_000_000))
    assert b"".join(tar_chunks({"d/file": LayerEntry(source=source)})) == before
    with tarfile.open(fileobj=io.BytesIO(before)) as archive:
        members = archive.getmembers()
    assert [(m.name, m.uid, m.gid, m.uname, m.mtime) for m in members] == [
        ("d", 0, 0, "", 0),
        ("d/file", 0, 0, "", 0),
    ]


def test_a_source_that_shrinks_while_read_is_an_error(tmp_path):
    source = tmp_path / "file"
    source.write_bytes(b"x" * 100)
    chunks = tar_chunks({"file": LayerEntry(source=source)})
    next(chunks)
    source.write_bytes(b"x")
    with pytest.raises(OSError, match="shrank"):
        list(chunks)


def test_bytecode_in_the_image_is_used_though_all_times_are_zero(tmp_path):
    (tmp_path / "src").mkdir()
    ready, fresh = tmp_path / "src" / "ready.py", tmp_path / "src" / "fresh.py"
    ready.write_text("WORD = 'from source'\n")
    fresh.write_text("WORD = 'from source'\n")
    py_compile.compile(str(ready))
    (tmp_path / "scratch").mkdir()
    entries = closure.tree_entries(tmp_path / "src", "site")
    entries |= closure.bytecode_entries(entries, tmp_path / "scratch")
    assert sorted(n for n in entries if n.endswith(".pyc")) == [
        f"site/__pycache__/{n}.{sys.implementation.cache_tag}.pyc" for n in ("fresh", "ready")
    ]
    with growing(tmp_path / "root") as tree:
        apply_layer(tar_chunks(entries), tree)
    # The sources are changed behind the importer's back: what answers is the bytecode, unchecked.
    for name in ("ready", "fresh"):
        (tmp_path / "root/site" / f"{name}.py").write_text("WORD = 'compiled again'\n")
        output = subprocess.run(
            [sys.executable, "-B", "-c", f"import {name}; print({name}.WORD)"],
            cwd=tmp_path / "root/site",
            capture_output=True,
            text=True,
            check=True,
        )
        assert output.stdout.strip() == "from source"


def test_stale_or_foreign_bytecode_is_not_taken(tmp_path):
    source = tmp_path / "m.py"
    source.write_text("x = 1\n")
    compiled = Path(py_compile.compile(str(source)))
    assert closure.is_current(compiled, source)
    source.write_text("x = 22\n")
    assert not closure.is_current(compiled, source)
    compiled.write_bytes(b"\0" * 16)
    assert not closure.is_current(compiled, source) and not closure.is_current(
        tmp_path / "none.pyc", source
    )


def test_the_dynamic_linker_is_read_from_the_program():
    linker = interpreter_of(os.path.realpath(sys.executable))
    assert linker.startswith("/lib") and os.path.exists(linker)
    assert interpreter_of(__file__) == ""


def test_libraries_outside_the_packages_come_flat_with_libc_among_them():
    entries = closure.library_entries([Path(os.path.realpath(sys.executable))])
    assert len({os.path.dirname(n) for n in entries}) == 1 and any(
        n.endswith("/libc.so.6") for n in entries
    )


def test_distributions_bring_what_they_require_and_leave_out_what_is_said():
    found = closure.distributions(["papermill"])
    assert {"papermill", "nbformat", "jupyter-core"} <= set(found)
    assert "nbformat" not in closure.distributions(
        ["papermill"], without=["nbformat"]
    ) and "jupyter-core" in closure.distributions(["papermill"], without=["nbformat"])
    assert closure.distributions(["no-such-distribution-here"]) == {}


def test_unchanged_inputs_are_not_built_again_and_changed_ones_are(tmp_path, monkeypatch):
    source = tmp_path / "src"
    source.mkdir()
    (source / "a.py").write_text("x = 1\n")
    monkeypatch.setattr(
        build._Parts, "entries", lambda self, part, weights: closure.tree_entries(source, "app")
    )
    lines: list[str] = []
    digests = []
    for text in (None, None, "x = 2\n"):
        if text:
            (source / "a.py").write_text(text)
            os.utime(source / "a.py", (5, 5))
        digests.append(
            build.build(tmp_path / "out", parts=("app",), say=lines.append).config.digest
        )
    assert len(lines) == 2 and digests[0] == digests[1] != digests[2]


def test_weights_without_a_config_are_refused(tmp_path):
    with pytest.raises(BadInput, match="not a model directory"):
        build.build(tmp_path / "out", with_weights=tmp_path)


def test_a_layer_that_fails_half_way_leaves_no_blob(tmp_path):
    layout = Layout.create(tmp_path)
    with pytest.raises(FileNotFoundError):
        write_layer(
            layout, {"a": LayerEntry(data=b"a"), "b": LayerEntry(source=tmp_path / "missing")}
        )
    assert os.listdir(tmp_path / "blobs/sha256") == []


def test_a_root_is_laid_over_an_image_without_writing_into_it(tmp_path):
    image = tmp_path / "image"
    for name in ("usr/lib", "srv/data", "root"):
        (image / name).mkdir(parents=True)
    (image / "lib").symlink_to("usr/lib")
    (image / "file").write_text("x")
    before = sorted(str(p) for p in image.rglob("*"))
    laid = prepare_root(
        image, tmp_path / "root", ["/srv/models/small", "/tmp/x", "/work/deep/dir", "/usr/lib"]
    )
    assert sorted(str(p) for p in image.rglob("*")) == before
    binds = {below for _, below in laid.binds}
    # srv is split: something is to appear in it
    assert binds == {"usr", "root", "file", "srv/data"}
    for point in ("srv/models/small", "tmp/x", "work/deep/dir", "proc", "dev"):
        assert (laid.skeleton / point).is_dir()
    assert os.readlink(laid.skeleton / "lib") == "usr/lib"


def test_a_mount_point_behind_a_symlink_of_the_image_is_refused(tmp_path):
    (tmp_path / "image").mkdir()
    (tmp_path / "image/home").symlink_to("/etc")
    with pytest.raises(BadInput, match="symlink"):
        prepare_root(tmp_path / "image", tmp_path / "root", ["/home/me/lab"])


def test_paths_resolve_inside_the_root_only(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text("inside")
    (tmp_path / "a").symlink_to("/etc")
    (tmp_path / "b").symlink_to("../../../etc/passwd")
    (tmp_path / "loop").symlink_to("loop")
    assert resolve(tmp_path, "/a/passwd") == resolve(tmp_path, "b") == f"{tmp_path}/etc/passwd"
    for bad in ("loop", "nothing"):
        with pytest.raises(BadInput):
            resolve(tmp_path, bad)


def test_the_bytecode_header_is_the_unchecked_kind(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    entries = closure.bytecode_entries(closure.tree_entries(tmp_path, "s"), tmp_path)
    head = next(iter(entries.values())).data
    assert (
        head is not None
        and head[:4] == importlib.util.MAGIC_NUMBER
        and int.from_bytes(head[4:8], "little") == 1
    )


@pytest.mark.parametrize("wanted", [30_000, 95_000, 400_000])
def test_extra_content_of_an_image_is_more_of_the_same_in_any_size(tmp_path, wanted):
    packages = {}
    for i in range(100):
        source = tmp_path / f"file{i}"
        source.write_bytes(b"x" * (i * 40))
        packages[f"site/file{i}"] = LayerEntry(source=source)
    extra = build.extra_entries(packages, wanted)
    assert 0.98 * wanted < sum(e.source.stat().st_size for e in extra.values()) <= wanted
    assert extra == build.extra_entries(packages, wanted) and all(
        name.startswith("opt/extra/") for name in extra
    )


def test_nothing_to_copy_makes_no_extra_content():
    assert build.extra_entries({}, 1000) == {}

"""A layer says the same to whoever applies it: unpacked, merged from a TOC, and converted before
that."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image import changeset
from labkit.image.changeset import clean
from labkit.image.estargz import source, writer
from labkit.image.estargz.reader import read_toc_of_file
from labkit.image.estargz.toc import Toc, TOCEntry
from labkit.image.lazyfs.tree import InodeTree, build
from labkit.image.tree import Limits, growing
from labkit.image.unpack import apply_layer
from tests.support.layer_cases import (
    CASES,
    Case,
    Found,
    M,
    differences,
    observed,
    whole,
    with_names,
)

_KINDS = {"reg": "f", "dir": "d", "symlink": "l", "char": "c", "fifo": "p"}


def unpacked(tars: list[bytes], top: Path) -> dict[str, Found]:
    with growing(top / "root", Limits(absolute_links=True)) as tree:
        for one in tars:
            apply_layer([one], tree)
    return observed(top / "root")


def toc_of(tar: bytes, top: Path) -> Toc:
    """The TOC of the layer as it is converted."""
    with source.spool([tar], top) as layer:
        written = writer.write(layer, top / "blob", prioritised=["d/e/a", "b"], threads=1)
    return read_toc_of_file(top / "blob", written.toc_digest)


def merged(tree: InodeTree) -> dict[str, Found]:
    found: dict[str, Found] = {}
    inodes: dict[int, list[str]] = {}

    def walk(folder: str, node) -> None:
        for leaf, child in (node.children or {}).items():
            path = f"{folder}{os.fsdecode(leaf)}"
            if child.children is None:
                inodes.setdefault(child.ino, []).append(path)
                assert child.nlink >= 1
            found[path] = Found(
                _KINDS[child.kind],
                os.fsdecode(child.target) if child.kind == "symlink" else b"",
                child.mode,
                (child.uid, child.gid),
                child.mtime_ns / 1e9,
                xattrs=tuple(sorted((os.fsdecode(k), v) for k, v in (child.xattrs or {}).items())),
                device=child.rdev,
            )
            walk(path + "/", child)

    walk("", tree.root)
    for group in inodes.values():
        assert tree.at(group[0]).nlink == len(group)
    return with_names(found, inodes.values())


def without_contents(tree: dict[str, Found]) -> dict[str, Found]:
    return {k: replace(v, content=b"") if v.kind == "f" else v for k, v in tree.items()}


def as_user(tree: dict[str, Found]) -> dict[str, Found]:
    """Where the tests run without root, owners and set-id bits are not those of the layer."""
    if os.geteuid() == 0:
        return tree
    return {k: replace(v, owner=None, mode=(v.mode or 0) & 0o1777) for k, v in tree.items()}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_layer_comes_to_the_same_tree_unpacked_and_converted(case: Case, tmp_path):
    if os.geteuid() and any(m.kind == "c" for layer in case.layers for m in layer):
        pytest.skip("device nodes are root's")
    tars = [whole(layer) for layer in case.layers]
    files = unpacked(tars, tmp_path)
    if os.geteuid() == 0:
        assert not differences(files, case.expected)
    lazy = merged(build([toc_of(tar, tmp_path) for tar in tars]))
    assert as_user(lazy) == as_user(without_contents(files))


_PATH = st.sampled_from(["a", "b", "d", "d/a", "d/b", "d/e", "d/e/a", "/d//x", "d/../b"])
_MARK = st.sampled_from([".wh.a", ".wh.d", "d/.wh.a", "d/.wh.e", "d/.wh..wh..opq", ".wh..wh..opq"])
_MEMBER = st.one_of(
    st.builds(M, _PATH, st.just("f"), st.binary(min_size=1, max_size=3), st.just(0o600)),
    st.builds(M, _PATH, st.just("d"), st.just(b""), st.sampled_from([0o700, 0o711])),
    st.builds(M, _PATH, st.just("l"), st.sampled_from(["a", "d", "/d", ".."])),
    st.builds(M, _PATH, st.just("h"), _PATH),
    st.builds(M, _MARK),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.lists(_MEMBER, max_size=9), min_size=1, max_size=3))
def test_any_layers_come_to_the_same_tree_or_are_refused_every_way(tmp_path_factory, layers):
    top = tmp_path_factory.mktemp("any")
    tars = [whole(layer) for layer in layers]
    try:
        files = unpacked(tars, top)
    except BadInput:
        files = None
    try:
        lazy = merged(build([toc_of(tar, top) for tar in tars]))
    except BadInput:
        lazy = None
    if files is None or lazy is None:
        assert files is lazy
    else:
        assert as_user(lazy) == as_user(without_contents(files))


@pytest.mark.parametrize("name", ["..", "a/../../b", "a\0b", "n" * 256, "a/" * 2100, "d/" * 300])
def test_names_that_no_file_below_the_root_has_are_refused(name):
    with pytest.raises(BadInput):
        clean(name)


def test_a_name_of_many_dots_is_short():
    assert clean("./" * 3000 + "f") == clean("a/../" * 1000 + "f") == "f"


@pytest.mark.parametrize("step", [1, -1])
def test_a_long_chain_of_hard_links_is_one_file_in_any_order(step):
    links = [TOCEntry(f"l{i}", "hardlink", link=f"l{i + 1}") for i in range(2000)][::step]
    tree = build([Toc([*links, TOCEntry("l2000", "reg")], 100, 0)])
    assert tree.at("l0") is tree.at("l2000") and tree.at("l0").nlink == 2001


def test_a_layer_that_replaces_its_directories_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(changeset, "_SEARCH_LIMIT", 1000)
    files = [TOCEntry(f"f{i}", "reg") for i in range(100)]
    again = [TOCEntry("d", "dir"), TOCEntry("d/x", "reg"), TOCEntry("d", "reg")]
    assert build([Toc([*files, *again * 5], 100, 0)]).at("d").kind == "reg"
    with pytest.raises(BadInput, match="once more"):
        build([Toc([*files, *again * 20], 100, 0)])

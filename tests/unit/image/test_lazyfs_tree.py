"""Merged layers look like a union mount; caches forget what is wrong and keep their bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.image.estargz.toc import Toc, TOCEntry
from labkit.image.lazyfs import wire
from labkit.image.lazyfs.cache import BLOCK, BlobStore, ChunkMemory, Intervals
from labkit.image.lazyfs.tree import build


def layers(*entries: list[TOCEntry]):
    return build([Toc(list(one), 100, 0) for one in entries])


def reg(name: str, size: int = 0) -> TOCEntry:
    return TOCEntry(name, "reg", size=size)


def test_an_upper_file_replaces_a_lower_one_and_a_directory_keeps_what_is_in_it():
    tree = layers(
        [TOCEntry("d", "dir", mode=0o700), reg("d/a"), reg("d/b")],
        [TOCEntry("d", "dir", mode=0o755), reg("d/a", 5)],
    )
    assert tree.at("d/a").layer == 1 and tree.at("d/b").layer == 0 and tree.at("d").mode == 0o755


def test_a_whiteout_hides_the_layers_below_and_not_its_own():
    tree = layers(
        [reg("d/a"), reg("d/b"), reg("c")],
        [reg("d/.wh.a"), reg("d/.wh.b"), reg("d/b"), reg(".wh.c")],
    )
    assert tree.at("d/a") is None and tree.at("d/b").layer == 1 and tree.at("c") is None


def test_an_opaque_directory_shows_only_its_own_layer():
    tree = layers([reg("d/a"), reg("d/e/f")], [reg("d/new"), reg("d/.wh..wh..opq")])
    assert set(tree.at("d").children) == {b"new"}


def test_a_file_over_a_directory_and_a_directory_over_a_file():
    tree = layers([reg("d/a"), reg("f")], [reg("d"), reg("f/x")])
    assert tree.at("d").kind == "reg" and tree.at("f/x").layer == 1


def test_names_of_one_hard_link_are_one_node_also_when_the_target_comes_later():
    tree = layers(
        [TOCEntry("l2", "hardlink", link="l1"), TOCEntry("l1", "hardlink", link="z"), reg("z", 7)]
    )
    assert (
        tree.at("l1") is tree.at("z") is tree.at("l2")
        and tree.at("z").nlink == 3
        and tree.at("z").size == 7
    )


HOSTILE = {
    "a hard link to nothing": [TOCEntry("a", "hardlink", link="b")],
    "a hard link to itself": [TOCEntry("a", "hardlink", link="a")],
    "hard links in a ring": [
        TOCEntry("a", "hardlink", link="b"),
        TOCEntry("b", "hardlink", link="a"),
    ],
    "a hard link to a directory": [TOCEntry("d", "dir"), TOCEntry("a", "hardlink", link="d")],
    "a symlink to nothing": [TOCEntry("a", "symlink")],
    "a file as directory": [reg("d"), TOCEntry("d/x", "dir")],
    "a symlink as directory": [TOCEntry("d", "symlink", link="."), reg("d/x")],
    "a root that is a file": [reg("")],
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_layer_is_refused(case):
    with pytest.raises(BadInput):
        layers([], HOSTILE[case])


def test_a_hard_link_into_a_lower_layer_is_one_more_name_of_its_file():
    tree = layers([reg("a", 3)], [TOCEntry("b", "hardlink", link="a")])
    assert tree.at("a") is tree.at("b") and tree.at("a").nlink == 2 and tree.at("b").layer == 0


def test_a_roots_entry_is_the_root():
    tree = layers([reg("f")], [TOCEntry("", "dir", mode=0o700, xattrs={"user.a": b"1"})])
    assert tree.root.mode == 0o700 and tree.root.xattrs == {b"user.a": b"1"} and tree.at("f")
    assert tree.nodes[0] is tree.root and tree.at("f").parent is tree.root


def test_an_ordinary_users_mount_shows_their_files_without_set_id_bits():
    node = layers([TOCEntry("su", "reg", mode=0o6755, uid=7)]).at("su")
    mine, roots = (wire.ATTR.unpack(node.attributes(squash)) for squash in ((5, 6), None))
    assert (mine[9] & 0o7777, mine[11], mine[12]) == (0o755, 5, 6)
    assert (roots[9] & 0o7777, roots[11], roots[12]) == (0o6755, 7, 0)


def test_landmarks_and_tocs_are_not_shown():
    assert layers([reg(".prefetch.landmark", 1), reg("stargz.index.json")]).root.children == {}


def test_a_mount_point_lies_where_a_program_of_the_image_finds_it():
    links = [TOCEntry("var/run", "symlink", link="/run"), TOCEntry("a", "symlink", link="a")]
    tree = build([Toc(links, 100, 0)], extra_dirs=["/var/run/lab", "../../up"])
    assert tree.at("run/lab").kind == "dir" and tree.at("var/run").kind == "symlink"
    assert tree.at("up").kind == "dir" and build([Toc(links, 100, 0)], extra_dirs=["a/x"]).nodes


def test_mount_points_for_a_runtime_are_added_and_change_nothing_that_is_there():
    tree = build(
        [Toc([reg("etc/hosts", 3)], 100, 0)],
        extra_dirs=["/srv/models", "etc"],
        extra_files=["etc/hosts", "etc/resolv.conf"],
    )
    assert (
        tree.at("srv/models").kind == "dir"
        and tree.at("etc/hosts").size == 3
        and tree.at("etc/resolv.conf").size == 0
    )


names = st.sampled_from(
    ["a", "b", "d/a", "d/b", "d", "d/e/f", ".wh.a", "d/.wh.b", "d/.wh..wh..opq", ".wh.d", "l/a"]
)
entries = st.builds(
    lambda name, kind, link: TOCEntry(name, kind, link=link if kind == "symlink" else ""),
    names,
    st.sampled_from(["reg", "dir", "symlink"]),
    st.sampled_from(["a", "/d", "..", "l", "."]),
)


@given(st.lists(st.lists(entries, max_size=8), max_size=4))
def test_any_layers_merge_into_a_sound_tree_or_are_refused(stack):
    try:
        tree = layers(*stack)
    except BadInput:
        return
    assert [n.ino for n in tree.nodes] == list(range(1, len(tree.nodes) + 1))
    for node in tree.nodes:
        for name, child in (node.children or {}).items():
            assert not name.startswith(b".wh.") and tree.nodes[child.ino - 1] is child
        assert len(node.attributes()) == wire.ATTR.size


ranges = st.tuples(st.integers(0, 60), st.integers(0, 60)).map(sorted)


@given(st.lists(st.tuples(st.booleans(), ranges), max_size=20), ranges)
def test_intervals_are_a_set_of_integers(steps, requested):
    intervals, model = Intervals(), set()
    for add, (start, end) in steps:
        (intervals.add if add else intervals.remove)(start, end)
        model = model | set(range(start, end)) if add else model - set(range(start, end))
    start, end = requested
    assert intervals.has(start, end) == model.issuperset(
        range(start, end)
    ) and intervals.total == len(model)
    assert {x for a, b in intervals.missing(start, end) for x in range(a, b)} == set(
        range(start, end)
    ) - model


def test_a_blob_knows_what_it_holds_and_another_mount_finds_it(tmp_path):
    blob = BlobStore(tmp_path).open("sha256:" + "a" * 64, 100 * BLOCK)
    blob.write(3 * BLOCK, b"x" * BLOCK)
    assert (
        blob.own(3 * BLOCK, 4 * BLOCK) and not blob.has(3 * BLOCK, 5 * BLOCK) and not blob.has(0, 1)
    )
    other = BlobStore(tmp_path).open("sha256:" + "a" * 64, 100 * BLOCK)
    assert other.has(3 * BLOCK, 4 * BLOCK) and not other.own(3 * BLOCK, 4 * BLOCK)
    assert other.missing(0, 5 * BLOCK)[0] != []
    blob.forget(3 * BLOCK, 4 * BLOCK)
    assert not blob.has(3 * BLOCK, 4 * BLOCK)


def test_a_block_that_was_written_in_part_says_nothing_about_its_rest(tmp_path):
    blob = BlobStore(tmp_path).open("sha256:" + "a" * 64, BLOCK)
    blob.write(100, b"x" * 10)
    assert blob.has(100, 110) and not blob.has(110, 120)


def test_the_size_bound_removes_other_images_before_ones_own_bytes(tmp_path):
    old = BlobStore(tmp_path)
    old.open("sha256:" + "a" * 64, 64 * BLOCK).write(0, b"x" * 64 * BLOCK)
    old.close()
    store = BlobStore(tmp_path, limit_bytes=80 * BLOCK)
    blob = store.open("sha256:" + "b" * 64, 64 * BLOCK)
    blob.write(0, b"y" * 32 * BLOCK)
    assert (
        store.keep_bound() >= 16 * BLOCK
        and store.used_bytes() <= 80 * BLOCK
        and blob.own(0, 32 * BLOCK)
    )


def test_a_blob_in_use_elsewhere_is_not_removed_and_ones_own_front_is(tmp_path):
    other = BlobStore(tmp_path).open("sha256:" + "a" * 64, 64 * BLOCK)
    other.write(0, b"x" * 32 * BLOCK)
    store = BlobStore(tmp_path, limit_bytes=48 * BLOCK)
    blob = store.open("sha256:" + "b" * 64, 64 * BLOCK)
    blob.write(0, b"y" * 32 * BLOCK)
    store.keep_bound()
    assert store.used_bytes() <= 48 * BLOCK and other.path.exists()
    assert not blob.has(0, BLOCK) and blob.has(31 * BLOCK, 32 * BLOCK)


def test_chunks_in_memory_keep_their_bound_and_served_ones_go_first():
    memory = ChunkMemory(30)
    for name in "abc":
        memory.put(name, bytes(10))
    memory.served("c", to_its_end=True)
    memory.put("d", bytes(10))
    assert memory.get("c") is None and memory.get("a") and memory.used_bytes == 30
    assert not memory.put("e", bytes(10), ahead=True)

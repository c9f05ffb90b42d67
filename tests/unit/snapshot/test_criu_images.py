"""CRIU's image files: read, edited, hostile."""

from __future__ import annotations

import contextlib
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.errors import BadInput
from labkit.snapshot import criu_images

FIELD = st.one_of(
    st.tuples(st.integers(1, 300), st.just(0), st.integers(0, 2**64 - 1)),
    st.tuples(st.integers(1, 300), st.just(2), st.binary(max_size=40)),
    st.tuples(st.integers(1, 300), st.just(1), st.binary(min_size=8, max_size=8)),
    st.tuples(st.integers(1, 300), st.just(5), st.binary(min_size=4, max_size=4)),
)


def image(*messages: bytes) -> bytes:
    return struct.pack("<II", criu_images.IMG_COMMON, 0x1234) + b"".join(
        struct.pack("<I", len(m)) + m for m in messages
    )


def listening(port: int) -> bytes:
    socket = criu_images.encode(
        [
            (1, 0, 78),
            (5, 0, 6),
            (criu_images.INET_STATE, 0, criu_images.TCP_LISTEN),
            (criu_images.INET_SRC_PORT, 0, port),
        ]
    )
    return criu_images.encode([(1, 0, 4), (2, 0, 78), (criu_images.ENTRY_INET, 2, socket)])


def opened(identity: int, path: str) -> bytes:
    file = criu_images.encode(
        [(criu_images.REG_ID, 0, identity), (criu_images.REG_NAME, 2, path.encode())]
    )
    return criu_images.encode([(1, 0, 1), (2, 0, identity), (criu_images.ENTRY_REG, 2, file)])


@given(fields=st.lists(FIELD, max_size=12))
@settings(deadline=None)
def test_what_is_encoded_decodes_to_the_same(fields):
    assert criu_images.decode(criu_images.encode(fields)) == fields


@given(data=st.binary(max_size=200))
@settings(deadline=None)
def test_any_bytes_decode_or_are_refused(data):
    try:
        fields = criu_images.decode(data)
    except BadInput:
        return
    assert all(n >= 0 for n, _, _ in fields)


@given(data=st.binary(max_size=200))
@settings(deadline=None)
def test_any_file_is_split_or_refused(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("image") / "files.img"
    path.write_bytes(data)
    with contextlib.suppress(BadInput):
        list(criu_images.entries(path))


@given(port=st.integers(1, 65535), new=st.integers(1, 65535))
@settings(deadline=None)
def test_a_snapshot_moves_to_any_port(port, new, tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    (folder / "files.img").write_bytes(image(listening(port), opened(1, "/lib/x.so")))
    assert criu_images.move(folder, port=new) == {"ports": 1, "paths": 0}
    assert criu_images.listening_ports(folder) == [new]
    assert criu_images.mapped_files(folder) == {1: "/lib/x.so"}


def test_paths_move_by_the_longest_match_and_whole_names_only(tmp_path):
    (tmp_path / "files.img").write_bytes(
        image(opened(1, "/m/a.bin"), opened(2, "/m/deep/b.bin"), opened(3, "/mother"))
    )
    criu_images.move(tmp_path, paths={"/m": "/new", "/m/deep": "/other"})
    assert criu_images.mapped_files(tmp_path) == {1: "/new/a.bin", 2: "/other/b.bin", 3: "/mother"}


def test_moving_nowhere_changes_no_byte(tmp_path):
    before = image(listening(8000), opened(1, "/lib/x.so"))
    (tmp_path / "files.img").write_bytes(before)
    criu_images.move(tmp_path)
    assert (tmp_path / "files.img").read_bytes() == before


def test_a_file_replaced_by_an_edit_does_not_change_its_hard_links(tmp_path):
    original = tmp_path / "original"
    original.write_bytes(image(listening(8000)))
    (tmp_path / "files.img").hardlink_to(original)
    criu_images.move(tmp_path, port=9000)
    assert original.read_bytes() == image(listening(8000))

"""The process that writes an image's files: the same tree as in this process, and nothing kept of
what did not end well."""

from __future__ import annotations

import io
import os
import signal
import tarfile
import time

import pytest

from labkit.errors import BadInput, LabError
from labkit.image.tree import Limits, growing
from labkit.image.unpack import apply_layer
from labkit.image.writer import SLOT_BYTES, SLOTS, Writer, writing


def layer(*members: tuple[str, dict]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, about in members:
            data = about.get("data", b"")
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.mtime = len(data), about.get("mode", 0o644), 1_700_000_000
            for key, value in about.items():
                if key in ("type", "linkname"):
                    setattr(info, key, value)
            tar.addfile(info, io.BytesIO(data) if data else None)
    return out.getvalue()


BIG = os.urandom(1 << 16) * 700  # more than the whole ring
LAYERS = [
    layer(
        ("a/b", {"data": b"one"}),
        ("a/gone", {"data": b"x"}),
        ("big", {"data": BIG}),
        ("ln", {"type": tarfile.SYMTYPE, "linkname": "a/b"}),
    ),
    layer(
        ("a/.wh.gone", {}),
        ("a/c", {"data": b"two", "mode": 0o755}),
        ("hard", {"type": tarfile.LNKTYPE, "linkname": "a/c"}),
    ),
    layer(),
]


def pieces(raw: bytes, size: int = 300_001):
    for at in range(0, len(raw), size):
        yield raw[at : at + size]


def tree_of(root):
    return {
        str(p.relative_to(root)): (
            p.lstat().st_mode,
            p.lstat().st_mtime_ns if not p.is_dir() else 0,
            p.read_bytes() if p.is_file() else b"",
        )
        for p in sorted(root.rglob("*"))
    }


@pytest.mark.parametrize("size", [700, 300_001, 3 * SLOT_BYTES + 5])
def test_the_tree_is_the_one_that_this_process_would_write(tmp_path, size):
    assert len(BIG) > SLOTS * SLOT_BYTES
    with growing(tmp_path / "here") as tree:
        for raw in LAYERS:
            apply_layer(pieces(raw), tree)
    with writing(tmp_path / "there") as writer:
        for raw in LAYERS:
            writer.layer(pieces(raw, size if len(raw) < 1 << 20 else max(size, 65_536)))
        facts = writer.commit()
    assert tree_of(tmp_path / "there") == tree_of(tmp_path / "here")
    assert facts == {
        "members": tree.members,
        "written_bytes": tree.written_bytes,
        "skipped_xattrs": 0,
    }


def test_nothing_has_its_name_before_the_commit_and_nothing_stays_without_one(tmp_path):
    with pytest.raises(ZeroDivisionError), writing(tmp_path / "root") as writer:
        writer.layer(pieces(LAYERS[0]))
        assert not (tmp_path / "root").exists()
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_chunks_that_end_in_an_error_leave_nothing(tmp_path):
    def broken():
        yield LAYERS[0][:100_000]
        raise OSError("the link is gone")

    with pytest.raises(OSError, match="the link is gone"), writing(tmp_path / "root") as writer:
        writer.layer(broken())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("bad", "limits", "match"),
    [
        (layer(("../out", {"data": b"x"})), Limits(), "climbs"),
        (layer(("big", {"data": BIG})), Limits(total_bytes=1 << 20), "limit"),
        (LAYERS[1][:700], Limits(), "sound tar"),
    ],
)
def test_what_is_refused_is_raised_here(tmp_path, bad, limits, match):
    with pytest.raises(BadInput, match=match), writing(tmp_path / "root", limits) as writer:
        writer.layer(pieces(bad))
        # more than the ring: the refusal is seen while sending, or at the commit
        writer.layer(pieces(LAYERS[0]))
        writer.commit()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_there_is_never_written_over(tmp_path):
    (tmp_path / "root").mkdir()
    with pytest.raises(BadInput, match="exists already"), writing(tmp_path / "root") as writer:
        writer.layer(pieces(LAYERS[0]))
        writer.commit()


def test_a_writer_that_is_killed_is_an_error_and_not_a_hang(tmp_path):
    writer = Writer(tmp_path / "root", Limits())
    try:
        writer.layer(pieces(LAYERS[1]))
        os.kill(writer._process.pid, signal.SIGKILL)
        with pytest.raises(LabError, match="status -9"):
            writer.layer(pieces(LAYERS[0]))
            writer.commit()
    finally:
        writer.end()
    assert not (tmp_path / "root").exists()


def test_a_parent_that_is_gone_leaves_nothing(tmp_path):
    writer = Writer(tmp_path / "root", Limits())
    writer.layer(pieces(LAYERS[0]))
    writer._orders.close()  # what the kernel does to a killed parent's pipe
    until = time.monotonic() + 20
    while writer._process.poll() is None and time.monotonic() < until:
        time.sleep(0.01)
    assert writer._process.returncode == 1 and list(tmp_path.iterdir()) == []
    writer.end()

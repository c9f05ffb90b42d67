from __future__ import annotations

import mmap
import os
import tempfile
from pathlib import Path

import pytest

from labkit.core import cold, pages, proc, residency
from labkit.errors import BadInput

PAGE = mmap.PAGESIZE


@pytest.fixture
def disk(tmp_path):
    """A directory whose pages can leave memory; the test's own directory may be on tmpfs."""
    if proc.filesystem_of(tmp_path)["fs"] in residency.NEVER_EVICTABLE:
        pytest.skip("temporary files live in memory here: set TMPDIR to a directory on a disk")
    return tmp_path


def file_of(path, pages: int):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(os.urandom(pages * PAGE))
    return path


def test_settled_cold_is_proven_cold_and_settled_warm_warm(disk):
    file_of(disk / "a" / "weights", 300)
    file_of(disk / "b", 5)
    cold_state = cold.set_cache_state([disk], "cold", caches=False)
    assert (
        cold_state.state,
        cold_state.resident_bytes,
        cold_state.files,
        cold_state.total_bytes,
    ) == ("cold", 0, 2, 305 * PAGE)
    warm_state = cold.set_cache_state([disk], "warm")
    assert (warm_state.state, warm_state.resident_bytes) == ("warm", 305 * PAGE)


def test_proving_changes_nothing(disk):
    file_of(disk / "weights", 100)
    cold.set_cache_state([disk], "warm")
    assert (
        cold.verify_cache_state([disk], "cold").state == "unverified"
        and cold.verify_cache_state([disk], "warm").state == "warm"
    )


def test_half_a_file_in_memory_is_seen_as_half(disk):
    path = file_of(disk / "weights", 512)
    cold.set_cache_state([path], "cold", caches=False)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.seek(100 * PAGE)
        os.read(file.fileno(), 64 * PAGE)
    seen = residency.residency([path])
    assert (
        seen.state == "partial"
        and 64 * PAGE <= seen.resident_bytes < 300 * PAGE
        and seen.stubborn[0]["path"] == str(path)
    )


def test_both_ways_of_asking_the_kernel_agree(disk, monkeypatch):
    path = file_of(disk / "weights", 64)
    cold.set_cache_state([path], "cold", caches=False)
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        file.read(16 * PAGE)
    one = residency.residency([path])
    monkeypatch.setattr(pages, "_SYS_CACHESTAT", 100_000)  # a kernel that has no such call
    other = residency.residency([path])
    assert other.method == "mincore" and one.resident_bytes == other.resident_bytes > 0


def test_pages_that_a_process_has_mapped_refuse_and_are_named(disk):
    path = file_of(disk / "mapped", 64)
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        sum(mapping[::PAGE])  # touched: the pages belong to this process
        state = cold.set_cache_state([path], "cold", caches=False)
    assert (
        state.state == "unverified"
        and "mapped by" in state.note
        and state.resident_bytes == 64 * PAGE
    )


def test_a_hard_link_is_counted_once(disk):
    path = file_of(disk / "a", 3)
    os.link(path, disk / "b")
    assert (
        residency.walk([disk]).total_bytes == 3 * PAGE
        and residency.walk([path, disk / "b", path]).total_bytes == 3 * PAGE
    )


@pytest.mark.parametrize("target", ["../blobs/x", "{disk}/blobs/x"], ids=["relative", "absolute"])
def test_what_a_link_leads_to_is_evicted_and_proven_in_its_place(disk, target):
    blob = file_of(disk / "blobs" / "x", 20)
    (disk / "model").mkdir()
    (disk / "model" / "weights").symlink_to(target.format(disk=disk))
    blob.read_bytes()
    state = cold.set_cache_state([disk / "model"], "cold", caches=False)
    assert (state.state, state.files, state.total_bytes) == ("cold", 1, 20 * PAGE)
    assert residency.residency([blob]).resident_bytes == 0
    blob.read_bytes()
    assert cold.verify_cache_state([disk / "model"], "cold").state == "unverified"


def test_links_of_a_containers_root_mean_that_root_and_no_file_of_this_host(disk):
    outside = file_of(disk / "etc", 2)
    file_of(disk / "root" / "own", 1)
    (disk / "root" / "etc").symlink_to(outside)
    (disk / "root" / "up").symlink_to("../etc")
    tree = residency.walk([disk / "root"], roots=[disk / "root"])
    assert (tree.total_bytes, tree.links_out) == (PAGE, 0)


def test_a_linked_directory_is_walked_once_and_one_around_the_tree_is_left_alone_in_words(disk):
    file_of(disk / "elsewhere" / "weights", 2)
    file_of(disk / "model" / "own", 1)
    (disk / "model" / "more").symlink_to(disk / "elsewhere")
    (disk / "elsewhere" / "back").symlink_to(disk / "model")
    (disk / "model" / "gone").symlink_to("nothing")
    tree = residency.walk([disk / "model"])
    assert (tree.total_bytes, tree.links_out) == (3 * PAGE, 0)
    (disk / "model" / "around").symlink_to("/")
    state = cold.set_cache_state([disk / "model"], "cold", caches=False)
    assert state.state == "unverified" and "1 links were not followed" in state.note


def test_a_link_given_by_name_is_followed(disk):
    file_of(disk / "blob", 2)
    (disk / "weights").symlink_to("blob")
    assert residency.walk([disk / "weights"]).total_bytes == 2 * PAGE


def test_what_is_not_there_cannot_be_proven(tmp_path):
    with pytest.raises(BadInput, match="none"):
        cold.verify_cache_state([tmp_path / "none"])


@pytest.mark.parametrize("want", ["cold", "warm"])
def test_of_no_bytes_neither_cold_nor_warm_is_proven(tmp_path, want):
    (tmp_path / "empty").touch()
    for paths in ([], [tmp_path]):
        state = cold.set_cache_state(paths, want, caches=False)
        assert (state.state, state.method, state.share) == ("unverified", "nothing-to-read", 0.0)
        assert "no byte" in state.note


def test_memory_file_systems_can_never_be_cold():
    shm = "/dev/shm"
    if not os.path.isdir(shm) or proc.filesystem_of(shm)["fs"] != "tmpfs":
        pytest.skip("no tmpfs at /dev/shm")
    path = f"{shm}/labkit-test-{os.getpid()}"
    try:
        with open(path, "wb") as out:
            out.write(b"x" * PAGE)
        state = cold.set_cache_state([path], "cold", caches=False)
    finally:
        os.unlink(path)
    assert (
        state.state == "unverified" and "tmpfs" in state.note and state.never_evictable_files == 1
    )


def test_files_just_written_are_written_out_before_they_are_evicted(disk):
    path = file_of(disk / "dirty", 2000)
    assert (
        cold.set_cache_state([path], "cold", caches=False).state == "cold"
        and path.stat().st_size == 2000 * PAGE
    )


def test_a_state_nobody_knows_is_refused():
    with pytest.raises(BadInput):
        cold.verify_cache_state([], "lukewarm")


@pytest.mark.needs("root", "command:mount")
def test_an_overlay_does_not_pass_for_cold(disk):
    """An overlay's inode has no pages of its own: asked with cachestat it would always look
    cold."""
    import subprocess

    for name in ("lower", "upper", "work", "merged"):
        (disk / name).mkdir()
    file_of(disk / "lower" / "weights", 50)
    try:
        subprocess.run(
            [
                "mount",
                "-t",
                "overlay",
                "overlay",
                "-o",
                f"lowerdir={disk}/lower,upperdir={disk}/upper,workdir={disk}/work",
                str(disk / "merged"),
            ],
            check=True,
        )
    except subprocess.CalledProcessError:
        pytest.skip("overlay cannot be mounted here")
    try:
        assert cold.set_cache_state([disk / "merged"], "warm").resident_bytes == 50 * PAGE
        assert cold.set_cache_state([disk / "merged"], "cold", caches=False).state == "cold"
        assert residency.residency([disk / "lower"]).resident_bytes == 0
    finally:
        subprocess.run(["umount", str(disk / "merged")], check=True)


@pytest.fixture
def open_to_all():
    """A directory that anybody may enter: pytest's own are made 0700, again by each session."""
    with tempfile.TemporaryDirectory(prefix="labkit-test-") as name:
        os.chmod(name, 0o755)
        if proc.filesystem_of(name)["fs"] in residency.NEVER_EVICTABLE:
            pytest.skip("temporary files live in memory here: set TMPDIR to a directory on a disk")
        yield Path(name)


@pytest.mark.needs("root")
def test_the_residency_of_other_peoples_files_is_never_taken_for_absent(open_to_all):
    """The kernel hides it from an ordinary user; hidden is not cold."""
    path = file_of(open_to_all / "theirs", 10)
    os.chmod(path, 0o644)
    ours, theirs = os.pipe()
    child = os.fork()
    if not child:  # a fresh interpreter of nobody's may not be allowed to read this checkout
        try:
            os.setgid(65534)
            os.setuid(65534)
            state = cold.verify_cache_state([path], "cold")
            os.write(
                theirs, f"{state.state} {state.unprovable_files} {state.resident_bytes}".encode()
            )
        except BaseException as error:
            os.write(theirs, f"failed {type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(theirs)
    os.waitpid(child, 0)
    with open(ours) as told:
        said = told.read()
    assert not said.startswith("failed"), said
    state, unprovable, resident = said.split()
    # A kernel may still tell (then the pages just written are seen); it may never make us say cold.
    assert state == "unverified" and (unprovable == "1" or int(resident) > 0)

"""What is read from /proc, held against what this process knows of itself."""

from __future__ import annotations

import mmap
import os

from labkit.core import proc


def test_a_mapped_file_has_its_path_its_offset_and_its_addresses(tmp_path):
    path = tmp_path / "with a space"
    path.write_bytes(bytes(3 * mmap.PAGESIZE))
    with open(path, "rb") as file:
        with mmap.mmap(file.fileno(), mmap.PAGESIZE, access=mmap.ACCESS_READ, offset=mmap.PAGESIZE):
            found = next(r for r in proc.mapped_ranges() if r.path == str(path))
            assert str(path) in proc.mapped_files()
    assert found.offset == mmap.PAGESIZE and found.end - found.start == mmap.PAGESIZE


def test_memory_without_a_file_is_a_range_and_no_file():
    assert any(not r.path for r in proc.mapped_ranges())
    assert all(path.startswith("/") for path in proc.mapped_files())


def test_an_open_file_is_found_under_its_number_until_it_is_closed(tmp_path):
    with open(tmp_path / "x", "w") as file:
        number = file.fileno()
        assert proc.open_files()[number] == str(tmp_path / "x")
    assert proc.open_files().get(number) != str(tmp_path / "x")


def test_the_last_id_of_a_process_is_the_one_it_calls_itself():
    assert proc.namespace_pids(os.getpid())[-1] == os.getpid()


def test_a_process_that_is_gone_has_no_ids():
    child = os.posix_spawn("/bin/true", ["true"], os.environ)
    os.waitpid(child, 0)
    assert proc.namespace_pids(child) == []

"""Free memory laid before a trial: touched, given back, and never more of it than is free."""

from __future__ import annotations

import psutil
import pytest

from labkit.core import free_memory

MIB = 1 << 20


def test_what_was_laid_is_free_again():
    before = psutil.Process().memory_info().rss
    assert free_memory.prefault(130 * MIB) in (0, 260 * MIB)
    assert psutil.Process().memory_info().rss - before < 65 * MIB


@pytest.mark.parametrize(
    "free, laid",
    [
        (0, 0),
        (512 * MIB, 0),
        (512 * MIB + 9000, 8192),
        (600 * MIB, 88 * MIB),
        (4096 * MIB, 200 * MIB),
    ],
)
def test_no_more_than_is_free_and_a_spare_is_left(monkeypatch, free, laid):
    monkeypatch.setattr(free_memory, "free_bytes", lambda: free)
    assert free_memory.prefault(100 * MIB) == laid


def test_memfree_is_what_counts_not_what_cache_could_give(tmp_path):
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc" / "meminfo").write_text(
        "MemTotal: 100 kB\nMemFree:    7 kB\nMemAvailable: 90 kB\n"
    )
    assert free_memory.free_bytes(str(tmp_path)) == 7 << 10
    assert free_memory.free_bytes(str(tmp_path / "nowhere")) == 0
    assert free_memory.free_bytes() > 0


@pytest.mark.parametrize(
    "of, limit, current, free",
    [("", "max", 50, 7 << 10), ("", 4096, 96, 4000), ("a", 4096, 96, 4000), ("a/b", 96, 4096, 0)],
)
def test_the_limit_of_a_control_group_counts(tmp_path, of, limit, current, free):
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "proc" / "meminfo").write_text("MemFree: 7 kB\n")
    (tmp_path / "proc" / "self" / "cgroup").write_text("0::/a/b\n")
    (tmp_path / "sys/fs/cgroup/a/b").mkdir(parents=True)
    group = tmp_path / "sys/fs/cgroup" / of
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{current}\n")
    assert free_memory.free_bytes(str(tmp_path)) == free

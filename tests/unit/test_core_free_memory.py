"""Free memory laid before a trial: touched, given back, and never more of it than is free."""

from __future__ import annotations

import psutil
import pytest

from labkit.core import free_memory

MIB = 1 << 20


def test_what_was_laid_is_free_again():
    before = psutil.Process().memory_info().rss
    assert free_memory.lay(130 * MIB) in (0, 260 * MIB)
    assert psutil.Process().memory_info().rss - before < 65 * MIB


@pytest.mark.parametrize("free, laid", [(0, 0), (512 * MIB, 0), (512 * MIB + 9000, 8192), (600 * MIB, 88 * MIB), (4096 * MIB, 200 * MIB)])
def test_no_more_than_is_free_and_a_spare_is_left(monkeypatch, free, laid):
    monkeypatch.setattr(free_memory, "free_bytes", lambda: free)
    assert free_memory.lay(100 * MIB) == laid


def test_memfree_is_what_counts_not_what_cache_could_give():
    assert free_memory.free_bytes("MemTotal: 100 kB\nMemFree:    7 kB\nMemAvailable: 90 kB\n") == 7 << 10
    assert free_memory.free_bytes("no such line") == 0
    assert free_memory.free_bytes() > 0

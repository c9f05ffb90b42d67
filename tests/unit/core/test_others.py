from __future__ import annotations

import os
import subprocess
import sys

import pytest

from labkit.core import others, sampler
from labkit.core.disturbance import disturbed
from labkit.core.others import Census, Use
from labkit.core.takedown import MARK

SPIN = "import time\nwhile time.process_time() < 0.3: pass\nprint('spun', flush=True); input()"


def census_of(**uses) -> Census:
    """name=(own, waited) seconds → a census; the pid is the name's length."""
    return Census({(len(n), 1): Use(n, own, waited, 0) for n, (own, waited) in uses.items()})


@pytest.mark.parametrize(
    ("before", "after", "cpu_s"),
    [
        ({"a": (5, 0)}, {"a": (7, 0)}, 2),  # was there, and goes on
        ({"a": (5, 0)}, {"a": (5, 0), "bb": (3, 0)}, 3),  # began meanwhile
        ({"a": (5, 0)}, {"a": (5, 4)}, 4),  # began and ended: its parent waited for it
        ({"a": (5, 0), "bb": (60, 1)}, {"a": (5, 63)}, 2),  # ended: 61 s of it were before
        ({"a": (5, 0), "bb": (60, 0)}, {"a": (5, 0)}, 0),  # ended, and nobody waited for it
        ({}, {}, 0),
    ],
)
def test_what_others_used_is_what_they_used_between_the_looks(before, after, cpu_s):
    assert others.used(census_of(**before), census_of(**after))["cpu_s"] == cpu_s


def test_the_process_that_used_the_most_is_named():
    found = others.used(census_of(a=(0, 0), bb=(9, 0)), census_of(a=(2, 0), bb=(9.5, 0)))
    assert found["most"] == "a"


@pytest.mark.parametrize("marked", [True, False])
def test_a_process_is_of_the_run_by_its_mark_or_by_its_parent(monkeypatch, marked):
    """Spinning below this process it is ours; seen from another one, by its mark alone."""
    monkeypatch.setenv(MARK, "labkit-0123456789abcdef/1-1")
    environment = {k: v for k, v in os.environ.items() if marked or k != MARK}
    with subprocess.Popen(
        [sys.executable, "-c", SPIN],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as child:
        child.stdout.readline()
        from_here = {pid for pid, _ in others.census().others}
        from_elsewhere = {pid for pid, _ in others.census(pid=-1).others}
        child.stdin.write(b"\n")
        child.stdin.close()
    assert child.pid not in from_here
    assert (child.pid in from_elsewhere) is not marked


def test_kernel_threads_are_nobody(monkeypatch):
    monkeypatch.delenv(MARK, raising=False)
    assert not {2} & {pid for pid, _ in others.census().others}


def test_the_sampler_says_what_others_used(tmp_path):
    with sampler.sampling(tmp_path / "samples.jsonl"):
        pass
    found = sampler.summary(tmp_path / "samples.jsonl")["others"]
    assert set(found) == {"cpu_s", "disk_bytes", "most", "visible", "steal_s", "cpus"}


def samples(seconds=10.0, visible=True, psi=0.0, disk=(0, 0.0), **seen):
    used = {"cpu_s": 0.0, "steal_s": 0.0, "cpus": 2, "disk_bytes": disk[0], "visible": visible}
    return {
        "seconds": seconds,
        "psi_cpu_some_s": psi * seconds,
        "disk_read_bytes": 1000,
        "disk_busy_s": disk[1],
        "others": {**used, "most": "", **seen},
    }


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        (samples(), ""),
        (samples(psi=0.9), ""),  # its own threads
        (samples(cpu_s=1.9), ""),
        (samples(cpu_s=9.2, most="cc1plus"), "others used 46 % of the CPUs (most: cc1plus)"),
        (samples(cpu_s=1.5, steal_s=1.0), "and the hypervisor took 5 %, limit 10 %"),
        (samples(seconds=0.2, cpu_s=0.06), ""),  # a few ticks of the clock
        (samples(disk=(500, 4.0)), "a disk was busy for others for 20 % of the time"),
        (samples(disk=(50, 4.0)), ""),
        (samples(visible=False, psi=0.9), "for 90 % of the time something waited for a CPU"),
        (samples(visible=False, psi=0.73), ""),
        ({"seconds": 2.0, "psi_cpu_some_s": 1.9}, "95 %"),  # a record of before the census
        ({"seconds": 2.0, "psi_cpu_some_s": "much", "others": 7}, ""),
        ({}, ""),
    ],
)
def test_a_trial_is_disturbed_above_a_stated_limit(seen, reason):
    assert reason in disturbed(seen) if reason else disturbed(seen) == ""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labkit.core import sampler
from labkit.core.ledger import Ledger, start_time

DISKSTATS = """ 254 0 vda 100 5 2048 30 50 1 4096 40 0 123 70 0 0 0 0 9 9
 254 1 vda1 99 5 2000 30 50 1 4096 40 0 120 70 0 0 0 0
   7 0 loop0 9 0 900 1 0 0 0 0 0 1 1
"""


def test_partitions_and_loop_devices_are_not_counted_twice():
    found = sampler.disk_counters(DISKSTATS, {"vda"})
    assert found == {
        "disk_reads": 100,
        "disk_read_bytes": 2048 * 512,
        "disk_write_bytes": 4096 * 512,
        "disk_busy_s": 0.123,
    }


def test_only_loopback_is_the_emulated_network():
    text = (
        "Inter-| Receive\n face |bytes\n    lo: 12345 6 0 0 0 0 0 0 12345 6\n  eth0: 999 1 0 0 0 0"
        " 0 0 1 1\n"
    )
    assert sampler.loopback_bytes(text) == 12345


def test_pressure_is_total_microseconds():
    assert sampler.pressure(
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=987\nfull avg10=0.00 total=12\n"
    ) == {"some": 987, "full": 12}


@given(st.text(max_size=300))
def test_any_text_of_proc_is_numbers_or_nothing(text):
    assert isinstance(sampler.fields(text), dict) and set(sampler.pressure(text)) <= {
        "some",
        "full",
    }
    assert sampler.loopback_bytes("lo:") == 0


def test_a_trial_is_sampled_from_before_its_start_to_after_its_end(tmp_path, workspace):
    path = tmp_path / "samples.jsonl"
    with (
        Ledger.open(workspace, watch=False) as ledger,
        sampler.sampling(path, hertz=50, ledger=ledger) as process,
    ):
        assert len(sampler.read(path)) >= 1
        sum(i * i for i in range(2_000_000))
    assert process.returncode == 0
    found = sampler.summary(path)
    assert (
        found["samples"] >= 2
        and found["seconds"] > 0
        and 0 <= found["cpu_share"] <= 1
        and found["disk_read_bytes"] >= 0
    )
    assert len(found["series"]["t_s"]) == len(found["series"]["cpu_share"])
    json.dumps(found, allow_nan=False)


def test_the_sampler_ends_when_its_harness_is_killed(tmp_path):
    code = (
        "import sys, time\nfrom labkit.core import sampler\n"
        "with sampler.sampling(sys.argv[1]) as p:\n    print(p.pid, flush=True); time.sleep(600)"
    )
    harness = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "s.jsonl")], stdout=subprocess.PIPE, text=True
    )
    assert harness.stdout
    pid = int(harness.stdout.readline())
    harness.send_signal(signal.SIGKILL)
    harness.wait()
    import time

    until = time.monotonic() + 20
    while start_time(pid) and time.monotonic() < until:
        time.sleep(0.02)
    assert not start_time(pid)


def test_a_torn_file_gives_the_samples_it_holds(tmp_path):
    path = tmp_path / "s.jsonl"
    good = {
        "t_s": 1.0,
        "cpu_all_ticks": 10,
        "cpu_busy_ticks": 1,
        "disk_read_bytes": 0,
        "disk_write_bytes": 0,
        "loopback_bytes": 0,
        "memory_available_bytes": 100,
    }
    later = {
        **good,
        "t_s": 3.0,
        "cpu_all_ticks": 30,
        "cpu_busy_ticks": 11,
        "disk_read_bytes": 4000,
        "memory_available_bytes": 60,
    }
    path.write_text(json.dumps(good) + "\n" + json.dumps(later) + '\n{"t_s": 4.0, "cpu')
    found = sampler.summary(path)
    assert (
        found["seconds"],
        found["cpu_share"],
        found["disk_read_bytes"],
        found["peak_memory_bytes"],
    ) == (2.0, 0.5, 4000, 40)
    assert found["series"]["disk_read_bytes_per_s"] == [2000]
    assert sampler.relative(found, 1.0)["series"]["t_s"] == [2.0]


def test_a_missing_file_is_no_samples(tmp_path):
    assert sampler.summary(tmp_path / "none") == {} and sampler.relative({}, 1.0) == {}


@pytest.mark.parametrize("n", [2, 3, 121, 122, 1000])
def test_series_are_thinned_to_what_a_figure_needs(tmp_path, n):
    path = tmp_path / "s.jsonl"
    base = {
        "cpu_busy_ticks": 0,
        "disk_read_bytes": 0,
        "disk_write_bytes": 0,
        "loopback_bytes": 0,
        "memory_available_bytes": 1,
    }
    path.write_text(
        "\n".join(json.dumps({"t_s": float(i), "cpu_all_ticks": i, **base}) for i in range(n))
    )
    assert 1 <= len(sampler.summary(path)["series"]["t_s"]) <= 120


def test_whole_disks_are_those_under_sys_block():
    assert all(os.path.exists(f"/sys/block/{name}") for name in sampler.whole_disks())

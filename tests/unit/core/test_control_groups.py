"""Limits of control groups as hosts really mount them: version 2, version 1, both, inside a
container. /proc and /sys are laid out below a root."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from labkit.core import control_groups, free_memory, host

TOTAL_BYTES = 100 << 20

V2 = "30 24 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
V1_MEMORY = "31 24 0:27 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory"
V1_CPU = "32 24 0:28 / /sys/fs/cgroup/cpu,cpuacct rw,nosuid - cgroup cgroup rw,cpu,cpuacct"
UNIFIED = "33 24 0:29 / /sys/fs/cgroup/unified rw,nosuid - cgroup2 cgroup2 rw"
DOCKER_V1 = "34 24 0:27 /docker/c0ffee /sys/fs/cgroup/memory ro,nosuid - cgroup cgroup rw,memory"


def lay_out(root, groups, mounts, files):
    """`groups`: lines of /proc/self/cgroup; `files`: path below /sys/fs/cgroup -> text."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(
        f"MemTotal: {TOTAL_BYTES >> 10} kB\nMemFree: {TOTAL_BYTES >> 10} kB\n"
    )
    (root / "proc/self/cgroup").write_text("\n".join(groups) + "\n")
    (root / "proc/self/mountinfo").write_text("\n".join(mounts) + "\n")
    for name, text in files.items():
        file = root / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    return str(root)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "limit", "left"),
    [
        (
            ["0::/a/b"],
            [V2],
            {
                "a/b/memory.max": "max",
                "a/b/memory.current": 7,
                "a/memory.max": 4096,
                "a/memory.current": 96,
            },
            4096,
            4000,
        ),
        (
            ["0::/a/b"],
            [V2],
            {
                "a/b/memory.max": 8192,
                "a/b/memory.current": 0,
                "a/memory.max": 4096,
                "a/memory.current": 4000,
            },
            4096,
            96,
        ),
        (
            ["0::/a"],
            [V2],
            {"a/memory.max": "max", "a/memory.high": 4096, "a/memory.current": 96},
            4096,
            4000,
        ),
        (
            ["9:memory:/a/b", "0::/"],
            [V1_MEMORY, UNIFIED],
            {
                "memory/a/b/memory.limit_in_bytes": 9223372036854771712,
                "memory/a/memory.limit_in_bytes": 4096,
                "memory/a/memory.usage_in_bytes": 96,
                "unified/cgroup.procs": "",
            },
            4096,
            4000,
        ),
        (
            ["9:memory:/docker/c0ffee"],
            [DOCKER_V1],
            {"memory/memory.limit_in_bytes": 4096, "memory/memory.usage_in_bytes": 96},
            4096,
            4000,
        ),
        (["0::/../../elsewhere"], [V2], {"memory.max": 4096, "memory.current": 96}, 4096, 4000),
        (["0::/not/mounted/here"], [V2], {"memory.max": 4096, "memory.current": 96}, 4096, 4000),
        (
            ["9:memory:/a/b"],
            [V1_MEMORY],
            {
                "memory/a/memory.use_hierarchy": 0,
                "memory/a/memory.limit_in_bytes": 4096,
                "memory/a/b/memory.limit_in_bytes": 8192,
                "memory/a/b/memory.usage_in_bytes": 0,
            },
            8192,
            8192,
        ),
        (["0::/a"], [V2], {"a/memory.max": "max", "a/memory.current": 5}, None, None),
        (
            ["9:memory:/a"],
            [V1_MEMORY],
            {
                "memory/a/memory.limit_in_bytes": 9223372036854771712,
                "memory/a/memory.usage_in_bytes": 5,
            },
            None,
            None,
        ),
        (["garbage", "::", ""], ["garbage", " - cgroup2"], {"memory.max": 4096}, None, None),
    ],
    ids=[
        "v2, a parent's",
        "v2, the fuller of two",
        "v2, high",
        "hybrid",
        "v1 in a container",
        "v2 outside its namespace",
        "v2 of another namespace",
        "v1 without hierarchy",
        "v2 none",
        "v1 none",
        "unreadable",
    ],
)
def test_the_smallest_limit_on_the_way_up_holds(tmp_path, groups, mounts, files, limit, left):
    root = lay_out(tmp_path, groups, mounts, files)
    assert control_groups.memory_limit_bytes(root) == limit
    assert control_groups.memory_left_bytes(root) == left
    assert host.memory_bytes(root) == (TOTAL_BYTES if limit is None else limit)
    assert free_memory.free_bytes(root) == (TOTAL_BYTES if left is None else left)


@pytest.mark.parametrize(
    ("groups", "mounts", "files", "quota"),
    [
        (["0::/a/b"], [V2], {"a/b/cpu.max": "max 100000", "a/cpu.max": "150000 100000"}, 1.5),
        (["0::/a/b"], [V2], {"a/b/cpu.max": "300000 100000", "a/cpu.max": "max 100000"}, 3.0),
        (
            ["3:cpu,cpuacct:/a"],
            [V1_CPU],
            {"cpu,cpuacct/a/cpu.cfs_quota_us": 50000, "cpu,cpuacct/a/cpu.cfs_period_us": 100000},
            0.5,
        ),
        (
            ["3:cpu,cpuacct:/a"],
            [V1_CPU],
            {"cpu,cpuacct/a/cpu.cfs_quota_us": -1, "cpu,cpuacct/a/cpu.cfs_period_us": 100000},
            None,
        ),
        (["0::/"], [V2], {"cpu.max": "0 0"}, None),
    ],
    ids=["a parent's", "its own", "v1", "v1 none", "nonsense"],
)
def test_the_quota_of_cpus_is_read_in_both_versions(tmp_path, groups, mounts, files, quota):
    root = lay_out(tmp_path, groups, mounts, files)
    assert control_groups.cpu_quota(root) == quota
    allowed = len(os.sched_getaffinity(0))
    assert host.cpu_count(root) == (allowed if quota is None else min(allowed, max(1, int(quota))))


@pytest.mark.needs("root")
def test_a_real_group_of_this_host_limits_the_card_and_the_free_memory():
    from tests.support.ordinary import memory_limit

    with memory_limit(512 << 20) as limit:
        if limit is None:
            pytest.skip("no control group can be made here")
        code = (
            "from labkit.core import host, free_memory; print(host.card()['memory_bytes'],"
            " free_memory.free_bytes())"
        )
        done = subprocess.run(
            [
                "sh",
                "-c",
                f'echo $$ > {limit.group}/cgroup.procs && exec "$@"',
                "sh",
                sys.executable,
                "-c",
                code,
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        total, free = map(int, done.stdout.split())
        assert total == 512 << 20
        assert free < 512 << 20

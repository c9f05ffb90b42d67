from __future__ import annotations

import ctypes
import getpass
import json
import os
import shutil
import socket
import subprocess

import pytest

from labkit.core import capabilities, host, probes, proc
from labkit.errors import BadInput


@pytest.fixture
def fresh():
    capabilities.forget()
    yield
    capabilities.forget()


def test_every_finding_says_why_it_matters_and_every_missing_one_how_to_change_it():
    findings = capabilities.doctor()
    assert [f.name for f in findings] == list(probes.PROBES)
    for f in findings:
        assert f.state in ("OK", "DEGRADED", "MISSING") and f.why
        assert f.state == "OK" or f.fix, f"{f.name} is {f.state} without a fix"
        assert f.ok or f.missing


def test_the_card_is_json_and_names_neither_host_nor_user():
    text = json.dumps(host.card())
    assert socket.gethostname() not in text or len(socket.gethostname()) < 4
    assert os.path.expanduser("~") not in text and f'"{getpass.getuser()}"' not in text.replace(
        '"rootness": "root"', ""
    )
    assert {
        "id",
        "cpu",
        "memory_bytes",
        "kernel",
        "distribution",
        "disk",
        "python",
        "torch",
        "gpus",
        "rootness",
    } <= set(host.card())


@pytest.mark.parametrize(
    "features, action, said",
    [
        ("011001" + "0" * 58, "pageout", {"free_page_reporting": True, "evicts_idle": ["pageout"]}),
        ("011000" + "0" * 58, "stat", {"free_page_reporting": False, "evicts_idle": []}),
        ("", "", {"free_page_reporting": False, "evicts_idle": []}),
    ],
)
def test_who_takes_memory_behind_a_trials_back_is_on_the_card(monkeypatch, features, action, said):
    texts = {"balloon": features, "damon": action}
    monkeypatch.setattr(
        host.glob,
        "glob",
        lambda pattern: [name for name, text in texts.items() if name in pattern and text],
    )
    monkeypatch.setattr(host.proc, "read_text", texts.__getitem__)
    assert host._memory_kept() == said


def test_the_kind_of_host_does_not_change_with_kernel_python_or_rights():
    card = host.card()
    assert (
        host._identity({**card, "kernel": "9.9", "python": "4.0", "rootness": "user"}) == card["id"]
    )
    assert host._identity({**card, "memory_bytes": card["memory_bytes"] * 2}) != card["id"]


def test_a_misspelt_capability_does_not_read_as_a_missing_one():
    with pytest.raises(BadInput) as caught:
        capabilities.capability("fues")
    assert "fuse" in caught.value.fix


def test_what_is_missing_comes_with_its_fix(fresh, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = capabilities.capability("skopeo")
    assert not found.ok and "skopeo" in found.missing and "apt-get install" in found.fix


@pytest.mark.parametrize(
    ("version", "check", "state"),
    [
        ("Version: 4.2", (0, "Looks good."), "OK"),
        ("Version: 3.17.1", (0, "Looks good."), "MISSING"),
        ("Version: 4.0", (1, "Error: no CAP_SYS_ADMIN"), "MISSING"),
        ("garbage", (0, "Looks good."), "MISSING"),
    ],
)
def test_criu_counts_only_when_it_is_new_enough_and_its_own_check_is_content(
    fresh, monkeypatch, version, check, state
):
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/" + name)
    monkeypatch.setattr(
        probes.containers,
        "run",
        lambda argv, timeout_s=10: check if "check" in argv else (0, version),
    )
    monkeypatch.setattr(probes.privileges, "has_sys_admin", lambda: True)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert capabilities.capability("criu").state == state


def test_root_of_an_unprivileged_container_is_not_root(fresh, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(
        proc,
        "read_text",
        lambda path: "CapEff:\t00000000a80425fb" if path == "/proc/self/status" else "",
    )
    assert (
        not capabilities.capability("root").ok
        and "privileged" in capabilities.capability("root").fix
    )


def _driver(monkeypatch, **gpu):
    card = {"name": "NVIDIA H100", "memory_bytes": 1, "driver": "575.57", "mig": False} | gpu
    monkeypatch.setattr(host, "gpus", lambda: [card])


@pytest.mark.parametrize(
    ("gpu", "said"), [({"driver": "535.1"}, "older than 550"), ({"mig": True}, "MIG")]
)
def test_cuda_checkpoint_needs_a_new_driver_and_a_whole_gpu(fresh, monkeypatch, gpu, said):
    _driver(monkeypatch, **gpu)
    assert said in capabilities.capability("cuda-checkpoint").missing


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [
        ("580.159.04", probes.OK, "another GPU"),
        (
            "575.57",
            probes.DEGRADED,
            "CUDA 13; a restore onto another GPU of the same kind (driver 580)",
        ),
        ("565.57", probes.DEGRADED, "cuCheckpointProcess*"),
        ("545.1", probes.DEGRADED, "utility (driver 550)"),
        ("?", probes.OK, "unknown"),
    ],
)
def test_the_doctor_says_what_a_driver_can_do_and_what_it_lacks(
    fresh, monkeypatch, version, state, said
):
    _driver(monkeypatch, driver=version)
    monkeypatch.setattr(host, "torch_cuda", lambda: "12.8")
    found = capabilities.capability("gpu-driver")
    assert (
        found.state == state and said in found.detail and (state == probes.OK or "580" in found.fix)
    )


def test_a_driver_that_is_too_old_for_torch_s_cuda_is_a_missing_one(fresh, monkeypatch):
    _driver(monkeypatch, driver="575.57")
    monkeypatch.setattr(host, "torch_cuda", lambda: "13.0")
    found = capabilities.capability("gpu-driver")
    assert not found.ok and "older than 580, which CUDA 13.0 needs" in found.missing
    monkeypatch.setattr(host, "gpus", list)
    capabilities.forget()
    assert "--gpus all" in capabilities.capability("gpu-driver").fix


def test_cuda_checkpoints_need_the_driver_s_calls_and_no_package(fresh, monkeypatch):
    _driver(monkeypatch)
    monkeypatch.setattr(host, "package_version", lambda name: None)
    calls = type("Lib", (), {"cuCheckpointProcessLock": None})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: calls)
    assert capabilities.capability("cuda-checkpoint").ok
    capabilities.forget()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert "no checkpoint API" in capabilities.capability("cuda-checkpoint").missing


def test_a_gpu_under_a_cpu_build_of_torch_is_missing_with_the_command_that_changes_it(
    fresh, monkeypatch
):
    _driver(monkeypatch)
    monkeypatch.setattr(host, "package_version", lambda name: "2.13.0+cpu")
    assert (
        "CPU only" in capabilities.capability("gpu").missing
        and capabilities.capability("gpu").fix == "make gpu"
    )


def test_credentials_are_seen_but_never_shown(fresh, monkeypatch):
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "hunter2")
    found = capabilities.capability("aws-credentials")
    assert found.ok and "hunter2" not in json.dumps(found.as_json())


def test_a_probe_that_crashes_is_a_finding(fresh, monkeypatch):
    broken = probes.Probe("skopeo", "skopeo", "why", lambda: 1 / 0)
    monkeypatch.setitem(probes.PROBES, "skopeo", broken)
    assert next(f for f in capabilities.doctor() if f.name == "skopeo").missing.startswith(
        "the probe failed: ZeroDivisionError"
    )


def test_packages_and_programs_are_asked_for_by_name():
    assert (
        capabilities.capability("package:json").ok
        and not capabilities.capability("package:no_such_package").ok
    )
    assert (
        capabilities.capability("command:sh").ok
        and not capabilities.capability("command:no-such-program").ok
    )


def test_versions_come_from_metadata_without_an_import():
    code = (
        "import sys; from labkit.core import host; v = host.package_version('torch'); assert"
        " 'torch' not in sys.modules; host.card(); assert 'torch' not in sys.modules"
    )
    subprocess.run([os.sys.executable, "-c", code], check=True)


def test_the_file_system_of_a_path_is_the_deepest_mount():
    assert proc.filesystem_of("/proc/self/stat")["fs"] == "proc"

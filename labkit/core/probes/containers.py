"""Runtimes and tools of containers and snapshots: runc, containerd, skopeo, registries, CRIU.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import os
import re

from labkit.core import host, proc
from labkit.core.probes import criu_cycle
from labkit.core.probes.probe import (
    APT,
    HOST_TOOLS,
    Capability,
    lacking,
    no,
    probe,
    probed,
    program,
    run,
    yes,
)


@probe("runc", "runc", "the runtime `runc`: the image starts as a container under root")
def _runc() -> Capability:
    if lacking("runc"):
        return no("no runc", APT + "runc")
    if not probed("root").ok:
        return no("runc is here, root is not", "sudo -E labkit …; or the runtime userns")
    if not os.access("/sys/fs/cgroup", os.W_OK):
        return no(
            "control groups cannot be written",
            "run the container with --privileged --cgroupns=host",
        )
    return yes(run(["runc", "--version"])[1].split("\n")[0].replace("runc version ", ""))


@probe(
    "containers",
    "containerd",
    "the container runtime's own pull and start, to set beside the lab's",
)
def _containers() -> Capability:
    absent = lacking("containerd", "runc", "ctr")
    if absent:
        return no("no " + ", ".join(absent), APT + "containerd runc")
    if not probed("runc").ok:
        return no(probed("runc").missing, probed("runc").fix)
    words = run(["containerd", "--version"])[1].split()
    return yes(words[2] if len(words) > 2 else "")


@probe(
    "stargz", "stargz snapshotter", "containerd's real lazy pull, the reference for the lab's own"
)
def _stargz() -> Capability:
    absent = lacking("containerd-stargz-grpc", "ctr-remote")
    if absent:
        return no(
            "no " + ", ".join(absent),
            f"{HOST_TOOLS}  (or the release of containerd/stargz-snapshotter, on PATH)",
        )
    for need in ("containers", "fuse"):
        if not probed(need).ok:
            return no(probed(need).missing, probed(need).fix)
    return yes()


@probe(
    "skopeo", "skopeo", "a client we did not write pulls from and pushes to the embedded registry"
)
def _skopeo() -> Capability:
    return program("skopeo")


@probe("umoci", "umoci", "a tool we did not write unpacks the images that the lab builds")
def _umoci() -> Capability:
    return program("umoci")


@probe(
    "docker-registry",
    "docker-registry",
    "the reference registry, to check the embedded one against",
)
def _registry() -> Capability:
    return program("docker-registry", "registry")


@probe("rclone", "rclone", "an object-store client we did not write reads from the embedded store")
def _rclone() -> Capability:
    return program("rclone")


@probe("criu", "CRIU", "checkpoint and restore of the whole server process or container")
def _criu() -> Capability:
    if lacking("criu"):
        return no("no criu", f"{HOST_TOOLS}  (CRIU 4 or newer; see docs/host-tools.md)")
    match = re.search(r"Version:\s*v?(\d+)(?:\.(\d+))?", run(["criu", "--version"])[1])
    version = match[0].split(":")[1].strip() if match else "unknown"
    if not match or int(match[1]) < 4:
        return no(
            f"CRIU {version} is older than 4, and fails on new kernels",
            f"{HOST_TOOLS}  (see docs/host-tools.md)",
        )
    if not probed("root").ok:
        return no(f"CRIU {version} is here, root is not", "sudo -E labkit …")
    status, text = run(["criu", "check"], 20)
    if status or "looks good" not in text.lower():
        return no(
            f"criu check: {text.splitlines()[-1] if text else status}",
            "criu check --all, and see docs/host-tools.md",
        )
    if words := criu_cycle.trouble():
        return no(
            f"CRIU {version} is here and does not work: {words[:240]}",
            f"{HOST_TOOLS} brings the CRIU that the lab is tested with; see docs/host-tools.md",
        )
    return yes(f"{version}, a process dumped and restored")


@probe(
    "amx",
    "AMX",
    "bfloat16 products in tiles on the CPU; a snapshot carries the permission for them over, which"
    " CRIU does not",
)
def _amx() -> Capability:
    if "amx_tile" not in proc.read_text("/proc/cpuinfo"):
        return no(
            "this CPU has no AMX, or its hypervisor hides it",
            "an Intel Xeon from Sapphire Rapids on",
        )
    tile_data = 18
    if not host.grantable_cpu_state() >> tile_data & 1:
        return no("the kernel grants no AMX tile data", "Linux 5.16 or newer")
    return yes()

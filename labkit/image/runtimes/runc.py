"""The runtime `runc`: a container under root, which a snapshot can be taken of.

    Step("start", "labkit.image.runtimes.runc:start")

Limit: runc itself, 60–120 ms. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import json
import os
import shutil
import subprocess

from labkit.core import exits, secrets
from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.errors import TrialError
from labkit.image.rootfs import ContainerRoot
from labkit.image.runtimes import driver
from labkit.image.runtimes.container import Bind, prepare_container
from labkit.image.runtimes.server import container_command, drain, run_config
from labkit.image.takedown import DELETE_CONTAINER, delete_container

_CAPABILITIES = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
]


#: The container's own file systems, as Docker mounts them: destination, type, source, options.
_OWN_MOUNTS = [
    {"destination": "/proc", "type": "proc", "source": "proc"},
    {
        "destination": "/dev",
        "type": "tmpfs",
        "source": "tmpfs",
        "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
    },
    {
        "destination": "/dev/pts",
        "type": "devpts",
        "source": "devpts",
        "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
    },
    {
        "destination": "/dev/shm",
        "type": "tmpfs",
        "source": "shm",
        "options": ["nosuid", "noexec", "nodev", "mode=1777"],
    },
    {
        "destination": "/dev/mqueue",
        "type": "mqueue",
        "source": "mqueue",
        "options": ["nosuid", "noexec", "nodev"],
    },
    {
        "destination": "/sys",
        "type": "sysfs",
        "source": "sysfs",
        "options": ["nosuid", "noexec", "nodev", "ro"],
    },
]


def _bind(destination: str, source: str, *options: str) -> JsonObject:
    return {
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": list(options),
    }


def bundle_config(
    ctx: StepContext, root: ContainerRoot, binds: list[Bind], cgroup: str
) -> JsonObject:
    """The bundle's config.json: the host's network, everything else of its own; what Docker grants
    by default."""
    argv, environment = container_command(ctx)
    nodes = driver.device_nodes()
    mounts = [
        *_OWN_MOUNTS,
        *(_bind("/" + below, source, "rbind", mode) for source, below, mode in binds),
        *(_bind(node, node, "bind", "nosuid", "noexec") for node in nodes),
    ]
    resources = {"resources": {"devices": [{"allow": True, "access": "rwm"}]}} if nodes else {}
    return {
        "ociVersion": "1.0.2",
        "process": {
            "terminal": False,
            "user": {"uid": 0, "gid": 0},
            "args": argv,
            "env": [f"{k}={v}" for k, v in environment.items()],
            "cwd": run_config(ctx).get("WorkingDir") or "/",
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
            "noNewPrivileges": True,
        },
        "root": {"path": str(root.skeleton), "readonly": False},
        "hostname": "labkit",
        "mounts": mounts,
        "linux": {
            "namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount")],
            "cgroupsPath": cgroup,
            **resources,
        },
    }


def start(ctx: StepContext) -> JsonObject:
    """Start the image as a runc container; leaves state["container"] = {"id", "root", "bundle"} for
    snapshots."""
    root, binds = prepare_container(ctx)
    bundle, name = root.skeleton.parent, f"labkit-{os.getpid()}-{ctx.port}"
    state = bundle / "state"
    # the environment is in it
    secrets.write_private(
        bundle / "config.json", json.dumps(bundle_config(ctx, root, binds, f"/labkit/{name}"))
    )
    entry = ctx.ledger.note("action", DELETE_CONTAINER, container=name, root=str(state))

    def end() -> None:
        delete_container(state, name)
        exits.reap(ctx.state.server_pid)
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    out, pipe = os.pipe()
    try:
        drain(ctx, out)
        with exits.adopting():
            done = subprocess.run(
                [
                    shutil.which("runc") or "runc",
                    "--root",
                    str(state),
                    "--log",
                    str(bundle / "runc.log"),
                    "run",
                    "--detach",
                    "--pid-file",
                    str(bundle / "pid"),
                    "--bundle",
                    str(bundle),
                    name,
                ],
                stdin=subprocess.DEVNULL,
                stdout=pipe,
                stderr=pipe,
            )
    finally:
        os.close(pipe)
    if done.returncode:
        log = bundle / "runc.log"
        raise TrialError(
            f"runc did not start the container (exit {done.returncode})",
            why=log.read_text(errors="replace")[-800:] if log.exists() else "",
            fix="labkit doctor; or process=userns",
        )
    ctx.state.server_pid = int((bundle / "pid").read_text())
    ctx.state.container = {"id": name, "root": str(state), "bundle": str(bundle)}
    return {
        "runtime": "runc",
        "server_pid": ctx.state.server_pid,
        "container": name,
        "rootfs": ctx.state.rootfs,
        "binds": len(binds),
    }

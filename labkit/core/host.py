"""The host card: what this machine is, kept with every record.

    card()["id"]                               # names the kind of host: equal machines share it
    cpu_count(), memory_bytes()                # what this process may use of it

The card holds no host name, no user name and no secret: records are meant to be shown around. What
the host can do: `labkit.core.capabilities`. Lesson: notebooks/00_start_here."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import glob
import hashlib
import importlib.util
import json
import os
import platform
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.core import control_groups, proc
from labkit.core.disks import read_ahead_bytes
from labkit.core.json_types import JsonObject
from labkit.core.workspace import place


@functools.cache
def card() -> JsonObject:
    """The host card: JSON-able, no secrets, no names of people or machines. `disk.read_bytes_per_s`
    is None until measured (`rates.measure`)."""
    facts: JsonObject = {
        "cpu": _cpu(),
        "memory_bytes": memory_bytes(),
        "memory": _memory_kept(),
        "kernel": platform.release(),
        "machine": platform.machine(),
        "distribution": _distribution(),
        "virtualisation": _virtualisation(),
        "disk": _disk(),
        "python": platform.python_version(),
        "torch": package_version("torch"),
        "torch_cuda": torch_cuda(),
        "gpus": gpus(),
        "rootness": "root" if os.geteuid() == 0 else "user",
        "in_container": _in_container(),
    }
    facts["id"] = _identity(facts)
    facts["title"] = _title(facts)
    return facts


def _identity(card: JsonObject) -> str:
    """Hash of what decides speed. Kernel, Python and rootness may change on one host; two equal
    machines are one kind of host."""
    shape = {
        "cpu": card["cpu"],
        "memory_gib": round(card["memory_bytes"] / 2**30),
        "machine": card["machine"],
        "virtualisation": card["virtualisation"],
        "fs": card["disk"]["fs"],
        "disk": card["disk"]["model"],
        "gpus": [(g["name"], g["memory_bytes"]) for g in card["gpus"]],
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:12]


def _title(card: JsonObject) -> str:
    parts = [
        f"{card['cpu']['count']} × {card['cpu']['model']}",
        f"{card['memory_bytes'] / 2**30:.0f} GiB",
    ]
    parts += [g["name"] for g in card["gpus"]]
    return ", ".join(parts)


def package_version(name: str) -> str | None:
    """Version from metadata; the package itself is not imported."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def torch_cuda() -> str:
    """The CUDA version that the installed torch is built for ("13.0"); "" without one. Read from
    torch's version file: it is not imported."""
    with contextlib.suppress(ImportError, ValueError, AttributeError):
        spec = importlib.util.find_spec("torch")
        if spec and spec.origin:
            found = re.search(
                r"""^cuda\b[^=\n]*=\s*['"]([\d.]+)['"]""",
                proc.read_text(str(Path(spec.origin).with_name("version.py"))),
                re.MULTILINE,
            )
            return found[1] if found else ""
    return ""


def gpus() -> list[JsonObject]:
    """GPUs through NVML, which makes no CUDA context: name, memory_bytes, driver, compute
    capability, MIG mode, UUID left out."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # no package, no driver, or a driver that does not answer: no GPU for the lab
        return []
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return [
            _gpu(pynvml, pynvml.nvmlDeviceGetHandleByIndex(i), driver)
            for i in range(pynvml.nvmlDeviceGetCount())
        ]
    except pynvml.NVMLError:
        return []
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, handle: Any, driver: str) -> JsonObject:
    def ask(function: Callable[..., Any], otherwise: Any = None) -> Any:
        try:
            return function(handle)
        except nvml.NVMLError:
            return otherwise

    return {
        "name": _text(nvml.nvmlDeviceGetName(handle)),
        "memory_bytes": int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        "driver": driver,
        "compute_capability": ".".join(
            map(str, ask(nvml.nvmlDeviceGetCudaComputeCapability, ("?",)))
        ),
        "pcie_generation": ask(nvml.nvmlDeviceGetMaxPcieLinkGeneration),
        "pcie_width": ask(nvml.nvmlDeviceGetMaxPcieLinkWidth),
        "mig": bool((ask(nvml.nvmlDeviceGetMigMode) or (0, 0))[0]),
        "persistence": bool(ask(nvml.nvmlDeviceGetPersistenceMode, 0)),
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


VECTOR_FEATURES = {"avx2", "avx512f", "avx512_bf16", "amx_bf16", "sve", "bf16"}


def _cpu() -> JsonObject:
    info = proc.read_text("/proc/cpuinfo")
    fields = {
        k.strip(): v.strip() for k, _, v in (line.partition(":") for line in info.split("\n")[:40])
    }
    model = (
        fields.get("model name")
        or fields.get("Model")
        or platform.processor()
        or platform.machine()
    )
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    return {
        "model": " ".join(model.split()),
        "count": cpu_count(),
        "features": sorted(flags & VECTOR_FEATURES),
    }


def grantable_cpu_state() -> int:
    """Mask of the parts of CPU state that this kernel grants to a process that asks
    (arch_prctl(ARCH_GET_XCOMP_SUPP), asm/prctl.h); 0 where it knows none."""
    arch_prctl, supported, mask = 158, 0x1021, ctypes.c_uint64()
    return (
        mask.value
        if platform.machine() == "x86_64"
        and ctypes.CDLL(None).syscall(arch_prctl, supported, ctypes.byref(mask)) == 0
        else 0
    )


def cpu_features() -> list[str]:
    """What this CPU computes weights with, of the kernel's names for it."""
    return _cpu()["features"]


def cpu_count(root: str = "") -> int:
    """CPUs this process may use: affinity, and the smallest quota of its control groups."""
    count = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    quota = control_groups.cpu_quota(root)
    return min(count, max(1, int(quota))) if quota is not None else count


def memory_bytes(root: str = "") -> int:
    """Memory this process may use: the machine's, or the smallest limit of its control groups."""
    total, limit = proc.meminfo_bytes("MemTotal", root), control_groups.memory_limit_bytes(root)
    return min(total, limit) if limit is not None and total else total


def _distribution() -> str:
    fields = dict(
        line.split("=", 1) for line in proc.read_text("/etc/os-release").split("\n") if "=" in line
    )
    return fields.get("PRETTY_NAME", sys.platform).strip('"')


def _virtualisation() -> str:
    """What the firmware says this is ("KVM", "Amazon EC2", "Google Compute Engine"); "" on bare
    metal."""
    if "hypervisor" not in proc.read_text("/proc/cpuinfo").partition("\n\n")[0]:
        return ""
    product, vendor = (
        proc.read_text("/sys/class/dmi/id/product_name"),
        proc.read_text("/sys/class/dmi/id/sys_vendor"),
    )
    return " ".join(dict.fromkeys(f"{vendor} {product}".split())) or "virtual machine"


def _in_container() -> bool:
    return (
        os.path.exists("/.dockerenv")
        or os.path.exists("/run/.containerenv")
        or bool(os.environ.get("KUBERNETES_SERVICE_HOST"))
    )


def _memory_kept() -> JsonObject:
    """Who takes memory away behind a trial's back: `free_page_reporting` gives free pages to the
    hypervisor, which has to find them again; `evicts_idle`: DAMON schemes that page out what nobody
    touches, caches included."""
    balloons = glob.glob("/sys/bus/virtio/drivers/virtio_balloon/virtio*/features")
    schemes = {
        proc.read_text(path)
        for path in glob.glob("/sys/kernel/mm/damon/admin/kdamonds/*/contexts/*/schemes/*/action")
    }
    return {
        "free_page_reporting": any(proc.read_text(path)[5:6] == "1" for path in balloons),
        "evicts_idle": sorted(schemes & {"pageout", "cold"}),
    }


def _disk() -> JsonObject:
    """The disk under the workspace: fs, model, size, free. Rates are measured elsewhere and stay
    None here."""
    where = workspace_parent()
    fs = proc.filesystem_of(where)
    stat = os.statvfs(where)
    device = os.stat(where).st_dev
    block = os.path.realpath(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}")
    if os.path.exists(block + "/partition"):
        block = os.path.dirname(block)
    model = proc.read_text(block + "/device/model") or (
        os.path.basename(block).rstrip("0123456789") if os.path.exists(block) else ""
    )
    return {
        "fs": fs["fs"],
        "model": model,
        "total_bytes": stat.f_blocks * stat.f_frsize,
        "free_bytes": stat.f_bavail * stat.f_frsize,
        "read_ahead_bytes": read_ahead_bytes(device),
        "read_bytes_per_s": None,
        "write_bytes_per_s": None,
    }


def workspace_parent() -> Path:
    """The nearest directory on the way to the workspace that we may write: what is probed there
    holds for the workspace."""
    try:
        where = place()
    except RuntimeError:  # neither HOME nor an entry in the user database
        return Path(tempfile.gettempdir())
    while not where.exists():
        where = where.parent
    return where if os.access(where, os.W_OK) else Path(tempfile.gettempdir())

"""What a GPU host is, before anything is measured on it: driver, packages, tools, disk, memory,
buses.

    python -m labkit.device.gpu_facts          # JSON lines, each with everything found so far; the
        last one counts

Nothing is assumed: every question has a time limit of its own, and one that fails leaves its reason
in the place of its answer. Serial numbers and UUIDs of the card are left out. Limits: none of its
own; rates are measured by `labkit.core.rates`. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from labkit.core import capabilities, host, proc, rates, secrets, timeline
from labkit.core.json_types import JsonObject
from labkit.core.workspace import Workspace

SMI_FIELDS = (
    "driver_version",
    "persistence_mode",
    "compute_mode",
    "pstate",
    "memory.total",
    "memory.used",
    "pcie.link.gen.current",
    "pcie.link.gen.max",
    "pcie.link.width.current",
    "pcie.link.width.max",
    "clocks.sm",
    "clocks.max.sm",
    "clocks.mem",
    "power.limit",
    "mig.mode.current",
    "ecc.mode.current",
    "vbios_version",
)
PACKAGES = (
    "torch",
    "triton",
    "safetensors",
    "tokenizers",
    "numpy",
    "transformers",
    "huggingface-hub",
    "nvidia-ml-py",
    "cuda-bindings",
    "cuda-core",
    "cuda-toolkit",
    "nvidia-cudnn-cu13",
    "nvidia-cublas",
    "nvidia-nccl-cu13",
    "psutil",
    "gguf",
    "isal",
    "deflate",
    "zlib-ng",
    "zstandard",
    "fastsafetensors",
    "runai-model-streamer",
    "instanttensor",
    "matplotlib",
    "nbformat",
    "papermill",
)
_PRIVATE = re.compile(
    r"^\s*(GPU UUID|Serial Number|Board ID|Platform Info.*|Chassis Serial Number|Slot Number|Tray"
    r" Index|Host ID|Peer Type|Module Id|Bus Id|Bus|Process ID|GPU [0-9A-Fa-f:.]+)\s*(:|$)"
)


def facts() -> dict[str, Callable[[], Any]]:
    """Every question, the short ones first. A name is a key of the record."""
    space = Workspace.default()
    return {
        "host": host.card,
        "system": _system,
        "packages": lambda: {name: host.package_version(name) for name in PACKAGES},
        "torch": _torch,
        "nvidia_smi": _smi,
        "doctor": lambda: [
            {k: f.as_json()[k] for k in ("name", "state", "missing", "detail")}
            for f in capabilities.doctor()
        ],
        "tools": _tools,
        "criu_check": lambda: _output_of(["criu", "check"], 20),
        "criu_check_all": lambda: _output_of(["criu", "check", "--all"], 20),
        "devices": lambda: sorted(str(p) for p in Path("/dev").glob("nvidia*")),
        "memory_rate": lambda: rates.memory(256 << 20),
        "disk": lambda: {**_where(space.root), **rates.disk(space, 2 << 30, at_most_s=6.0)},
        "bus": rates.device,
        "shm": lambda: _where(Path("/dev/shm")),
        "nvidia_smi_q": lambda: _smi_q(),
    }


def main() -> int:
    found: JsonObject = {}
    seconds: dict[str, float] = {}
    for name, ask in facts().items():
        began = timeline.now_s()
        try:
            found[name] = ask()
        except Exception as error:  # whatever it is, the next question is asked
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:400]}
        seconds[name] = round(timeline.now_s() - began, 3)
        print(json.dumps(secrets.masked({**found, "seconds": seconds}), default=str), flush=True)
    return 0


def _output_of(command: list[str], limit_s: float = 10, most: int = 1500) -> JsonObject:
    if not shutil.which(command[0]):
        return {"missing": command[0]}
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=limit_s, stdin=subprocess.DEVNULL
    )
    return {"status": done.returncode, "said": (done.stdout + done.stderr).strip()[-most:]}


def _system() -> JsonObject:
    return {
        "uname": " ".join(platform.uname()[i] for i in (0, 2, 4)),
        "distribution": proc.read_text("/etc/os-release")[:400],
        "python": sys.version.split()[0],
        "cpu_flags": [
            f
            for f in ("amx_tile", "avx512f", "avx512_bf16", "avx2")
            if f in proc.read_text("/proc/cpuinfo")[:8000].split()
        ],
        "cpus": os.cpu_count(),
        "meminfo": {
            k: proc.meminfo_bytes(k)
            for k in ("MemTotal", "MemAvailable", "SwapTotal", "HugePages_Total")
        },
        "memlock": _limit(),
        "overcommit": proc.read_text("/proc/sys/vm/overcommit_memory"),
        "ptrace_scope": proc.read_text("/proc/sys/kernel/yama/ptrace_scope"),
        "module": proc.read_text("/proc/driver/nvidia/version"),
        "uid": os.geteuid(),
        "capabilities": re.findall(r"CapEff:\s+(\w+)", proc.read_text("/proc/self/status")),
    }


def _limit() -> list[int]:
    import resource

    return list(resource.getrlimit(resource.RLIMIT_MEMLOCK))


def _torch() -> JsonObject:
    code = """
import json, time
began = time.monotonic()
import torch
import_s = time.monotonic() - began
began = time.monotonic()
available = torch.cuda.is_available()
gpu = torch.cuda.get_device_properties(0) if available else None
print(json.dumps({
    "import_s": import_s,
    "available_s": time.monotonic() - began,
    "version": torch.__version__,
    "cuda": torch.version.cuda,
    "cudnn": torch.backends.cudnn.version(),
    "available": available,
    "device": gpu.name if gpu else "",
    "multiprocessors": gpu.multi_processor_count if gpu else 0,
    "file": torch.__file__,
}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=90,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        return {"failed": done.stderr[-600:]}
    measured: JsonObject = json.loads(done.stdout.splitlines()[-1])
    return measured


def _smi() -> JsonObject:
    values: JsonObject = {}
    # one at a time: a field that this driver does not know fails a whole query
    for name in SMI_FIELDS:
        reply = _output_of(["nvidia-smi", f"--query-gpu={name}", "--format=csv,noheader"])
        if "missing" in reply:
            return reply
        values[name] = reply["said"].split("\n")[0] if reply["status"] == 0 else reply
    return values


def _smi_q() -> JsonObject:
    reply = _output_of(["nvidia-smi", "-q"], most=60_000)
    if "said" in reply:
        public = [line.rstrip() for line in reply["said"].split("\n") if not _PRIVATE.match(line)]
        reply["said"] = "\n".join(public)[:16_000]
    return reply


def _tools() -> JsonObject:
    return {
        "criu": _output_of(["criu", "--version"]),
        "runc": _output_of(["runc", "--version"]),
        "fusermount3": _output_of(["fusermount3", "--version"]),
        "fuse_device": os.path.exists("/dev/fuse"),
        "g++": _output_of(["g++", "--version"], most=200),
        "ip": _output_of(["ip", "-V"]),
        "tc": _output_of(["tc", "-V"]),
        "cuda-checkpoint": _output_of(["cuda-checkpoint", "--help"], most=200),
        "user_namespaces": _output_of(["unshare", "-Ur", "true"]),
        "filesystems": [
            f
            for f in ("overlay", "fuse", "tmpfs", "ext4")
            if f in proc.read_text("/proc/filesystems").split()
        ],
        "ldconfig": [
            line.strip()
            for line in _output_of(["ldconfig", "-p"], most=200_000).get("said", "").split("\n")
            if "libcuda.so" in line or "libnvidia-ml" in line
        ],
    }


def _where(path: Path) -> JsonObject:
    stat = os.statvfs(path)
    return {
        "fs": proc.filesystem_of(path)["fs"],
        "total_bytes": stat.f_blocks * stat.f_frsize,
        "free_bytes": stat.f_bavail * stat.f_frsize,
    }


if __name__ == "__main__":
    sys.exit(main())

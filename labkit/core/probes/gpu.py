"""An NVIDIA GPU: its driver, NVML, CUDA checkpoints.

Lesson: notebooks/00_start_here."""

from __future__ import annotations

import ctypes
import importlib.util

from labkit.core import driver, host
from labkit.core.probes.probe import (
    Capability,
    no,
    probe,
    yes,
)


@probe(
    "gpu", "NVIDIA GPU", "the device layer: contexts, transfers, compile caches, CUDA checkpoints"
)
def _gpu() -> Capability:
    if importlib.util.find_spec("pynvml") is None:
        return no("no NVML binding", "pip install nvidia-ml-py")
    found = host.gpus()
    if not found:
        return no(
            "no NVIDIA driver, or no GPU visible", "run on a GPU host; in a container: --gpus all"
        )
    if not (host.package_version("torch") or "").endswith("+cpu"):
        return yes(", ".join(g["name"] for g in found) + f", driver {found[0]['driver']}")
    return no("a GPU is here, but torch is built for CPU only", "make gpu")


@probe(
    "gpu-driver",
    "NVIDIA driver",
    "what its version can do: CUDA checkpoints by a utility (550), by its API (570), onto another"
    " GPU (580), the CUDA that torch is built for",
)
def _gpu_driver() -> Capability:
    found = host.gpus()
    if not found:
        return no(
            "no NVIDIA driver, or no GPU visible", "run on a GPU host; in a container: --gpus all"
        )
    version, newest = str(found[0]["driver"]), f"install driver {driver.FEATURES[-1][0]} or newer"
    built_for = host.torch_cuda()
    if wrong := driver.too_old(version, built_for):
        return no(wrong, f"{newest}, or a torch built for an older CUDA")
    lacking = driver.lacks(version)
    if lacking:
        return yes(f"{version}; it lacks: {'; '.join(lacking)}", limit=True, fix=newest)
    return yes(f"{version}: {'; '.join(driver.has(version)) or 'of an unknown version'}")


@probe(
    "cuda-checkpoint",
    "CUDA checkpoint",
    "a process's GPU state is moved to host memory and back (driver 550 has it, 570 has its API)",
)
def _cuda_checkpoint() -> Capability:
    found = host.gpus()
    if not found:
        return no("no NVIDIA GPU", "run on a GPU host with driver 570 or newer")
    version = str(found[0]["driver"])
    if 0 < driver.major(version) < 550:
        return no(f"driver {version} is older than 550", "install driver 570 or newer")
    if found[0]["mig"]:
        return no(
            "the GPU is partitioned (MIG), which the driver does not checkpoint",
            "run on a GPU that is not partitioned",
        )
    try:
        # loading it makes no context
        exported = hasattr(ctypes.CDLL("libcuda.so.1"), "cuCheckpointProcessLock")
    except OSError as error:
        return no(
            f"libcuda does not load: {error}",
            "in a container: --gpus all with NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        )
    if not exported:
        return no(
            f"driver {version} has no checkpoint API (only the cuda-checkpoint program)",
            "install driver 570 or newer",
        )
    return yes(f"driver {version}, by the calls of its API")

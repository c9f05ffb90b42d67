"""What a GPU does before the first token, taken apart: each step timed once, in the order in which
a start meets them.

    python -m labkit.device.context --weights-bytes 2200000000      # JSON lines, the last one
        counts; the process is fresh, as steps happen once
    python -m labkit.device.context --without-nvml --without-copies

driver (cuInit) → nvml → import of torch → primary context → first allocation → first kernel (module
loading, lazily) → cuBLAS handle → cuDNN handle → copy of the weights and back, pageable and pinned.
A step that fails is recorded with its error and the next one is tried. `CUDA_MODULE_LOADING=EAGER`
in the environment shows what lazy loading puts off. Limits: PCIe rate for the copy; the rest is the
driver's and the library's own work. On a host without a GPU there is nothing to measure, and it
says so. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from collections.abc import Callable
from typing import Any

from labkit.core import timeline
from labkit.core.json_types import JsonObject

STEPS = (
    "driver",
    "nvml",
    "import",
    "context",
    "allocation",
    "kernel",
    "cublas",
    "cudnn",
    "copy_pageable",
    "copy_pinned",
)


def measure(
    weights_bytes: int = 256 << 20,
    *,
    with_nvml: bool = True,
    with_copies: bool = True,
    notify: Callable[[JsonObject], object] = lambda _: None,
) -> JsonObject:
    """{"steps": [{"name", "seconds", …}], "module_loading", "nvml", "device"}; must run in a
    process that has touched no GPU yet.

    Without NVML it is not known how many bytes the context takes. `notify`: called after each step,
    as a later one may end the process."""
    steps: list[JsonObject] = []
    found: JsonObject = {
        "steps": steps,
        "module_loading": os.environ.get("CUDA_MODULE_LOADING", "default (lazy)"),
        "nvml": with_nvml,
        "device": "",
    }
    seen: JsonObject = {}

    def one(name: str, work: Callable[[], Any]) -> None:
        began = timeline.now_s()
        try:
            detail = work() or {}
            steps.append({"name": name, "seconds": timeline.now_s() - began, **detail})
        except Exception as error:
            steps.append(
                {
                    "name": name,
                    "seconds": timeline.now_s() - began,
                    "failed": f"{type(error).__name__}: {error}"[:300],
                }
            )

    def driver() -> None:
        code = ctypes.CDLL("libcuda.so.1").cuInit(0)
        if code:
            raise OSError(f"cuInit returned {code}")

    def nvml() -> JsonObject:
        import pynvml

        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
        seen["nvml"] = handle
        return {"memory_used_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).used)}

    def imported() -> None:
        import torch

        seen["torch"] = torch

    def used() -> int:
        import pynvml

        return int(pynvml.nvmlDeviceGetMemoryInfo(seen["nvml"]).used) if "nvml" in seen else 0

    def context() -> JsonObject:
        before = used()
        seen["torch"].cuda.init()
        seen["torch"].cuda.synchronize()
        return {"context_bytes": used() - before} if "nvml" in seen else {}

    def allocation() -> None:
        seen["x"] = seen["torch"].empty(1024, 1024, device="cuda", dtype=seen["torch"].bfloat16)

    def kernel() -> None:
        seen["x"].fill_(1.0)
        seen["torch"].cuda.synchronize()

    def cublas() -> None:
        seen["x"].matmul(seen["x"])
        seen["torch"].cuda.synchronize()

    def cudnn() -> None:
        torch = seen["torch"]
        torch.nn.functional.conv2d(
            torch.ones(1, 8, 32, 32, device="cuda"), torch.ones(8, 8, 3, 3, device="cuda")
        )
        torch.cuda.synchronize()

    def copy(pinned: bool) -> JsonObject:
        torch = seen["torch"]
        from labkit.device.standby import Cuda

        # as a warm standby's: registered, and no byte more
        kept = Cuda().on_host(weights_bytes) if pinned else None
        host = kept.bytes if kept else torch.empty(weights_bytes, dtype=torch.uint8)
        target = torch.empty(weights_bytes, dtype=torch.uint8, device="cuda")
        host[::4096] = 1
        copied: JsonObject = {
            "bytes": weights_bytes,
            "host_memory": kept.how if kept else "pageable",
        }
        for way, (to, source) in {"to_device": (target, host), "to_host": (host, target)}.items():
            to.copy_(source, non_blocking=pinned)  # the first one pays for the driver's own buffers
            torch.cuda.synchronize()
            began = timeline.now_s()
            to.copy_(source, non_blocking=pinned)
            torch.cuda.synchronize()
            copied[f"{way}_bytes_per_s"] = weights_bytes / (timeline.now_s() - began)
        if kept:
            kept.release()
        return {
            "copy_s": weights_bytes / copied["to_device_bytes_per_s"],
            "rate_bytes_per_s": copied["to_device_bytes_per_s"],
            **copied,
        }

    works = (
        driver,
        nvml,
        imported,
        context,
        allocation,
        kernel,
        cublas,
        cudnn,
        lambda: copy(False),
        lambda: copy(True),
    )
    for name, work in zip(STEPS, works, strict=True):
        if (name != "nvml" or with_nvml) and (not name.startswith("copy") or with_copies):
            one(name, work)
            notify(found)
    there = "torch" in seen and seen["torch"].cuda.is_available()
    return {**found, "device": seen["torch"].cuda.get_device_name(0) if there else ""}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.context")
    parser.add_argument("--weights-bytes", type=int, default=256 << 20)
    parser.add_argument("--without-nvml", action="store_true")
    parser.add_argument("--without-copies", action="store_true")
    args = parser.parse_args()
    found = measure(
        args.weights_bytes,
        with_nvml=not args.without_nvml,
        with_copies=not args.without_copies,
        notify=lambda so_far: print(json.dumps(so_far), flush=True),
    )
    print(json.dumps(found), flush=True)
    return 0 if found["device"] else 1


if __name__ == "__main__":
    sys.exit(main())

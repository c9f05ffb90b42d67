"""The first call of a compiled block, with an empty cache and with one that was carried along. Real
on a CPU as on a GPU.

    first_call(Path("/…/cache"))        # a fresh process: {"first_call_s", "hits", "misses",
        "compiled_files", …}

`torch.compile` traces, lowers, writes C++ (or Triton), compiles it and loads the result, once a
process; inductor's FX graph cache keeps the last three on disk, under a key made of the graph, the
shapes, the versions and the settings. Tracing is never saved. Evidence: the cache's own counters,
and that no file was compiled anew. Limit: tracing and loading, ~1 s. Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from labkit.core import timeline
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.errors import TrialError

if TYPE_CHECKING:
    import torch


def cache_environment(folder: str) -> dict[str, str]:
    """What sends inductor and triton to their caches in `folder`."""
    return {
        "TORCHINDUCTOR_CACHE_DIR": folder,
        "TRITON_CACHE_DIR": f"{folder}/triton",
        "TORCHINDUCTOR_FX_GRAPH_CACHE": "1",
        "TORCHINDUCTOR_AUTOGRAD_CACHE": "1",
        # On a CPU the headers of torch would be compiled first, for longer than the code itself;
        # nothing here is compiled often enough for that.
        "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS": "0",
    }


def compiled_files(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Libraries and kernels in a cache directory: path below it -> modification time in ns."""
    root = Path(folder)
    return {
        str(p.relative_to(root)): p.stat().st_mtime_ns
        for p in root.rglob("*")
        if p.is_file() and p.suffix in (".so", ".cubin", ".main", ".o")
    }


def first_call(
    cache: Path,
    *,
    hidden: int = 256,
    environment: Mapping[str, str] | None = None,
    compiled: bool = True,
    limit_s: float = 240,
) -> JsonObject:
    """In a fresh process. Raises TrialError with its last words."""
    cache.mkdir(parents=True, exist_ok=True)
    before = compiled_files(cache)
    env = {**os.environ, **cache_environment(str(cache)), **(environment or {})}
    done = subprocess.run(
        [
            *module("labkit.device.compile_cache"),
            "--hidden",
            str(hidden),
            *([] if compiled else ["--eager"]),
        ],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=limit_s,
    )
    if done.returncode:
        raise TrialError(
            "the compiled block did not run",
            done.stderr[-800:],
            "labkit doctor; inductor needs g++ on a CPU",
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    after = compiled_files(cache)
    return {**measured, "compiled_files": len(set(after) - set(before)), "cache_files": len(after)}


def _block(hidden: int, device: str) -> tuple[torch.nn.Module, torch.Tensor]:
    import torch

    torch.manual_seed(0)
    layer = torch.nn.Sequential(
        torch.nn.RMSNorm(hidden), torch.nn.Linear(hidden, hidden), torch.nn.SiLU()
    )
    return torch.nn.Sequential(layer).to(device), torch.randn(4, hidden, device=device)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.compile_cache")
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--eager", action="store_true")
    args = parser.parse_args()
    began = timeline.now_s()
    import torch

    imported_s = timeline.now_s() - began
    block, x = _block(args.hidden, "cuda" if torch.cuda.is_available() else "cpu")
    with torch.no_grad():
        began = timeline.now_s()
        work = block if args.eager else torch.compile(block)
        y = work(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        first_s = timeline.now_s() - began
        began = timeline.now_s()
        work(x)
        if x.is_cuda:
            torch.cuda.synchronize()
        second_s = timeline.now_s() - began
        same = bool(torch.allclose(y, block(x), atol=1e-4))
    hits = misses = 0
    if not args.eager:
        from torch._dynamo.utils import counters

        inductor, autograd = counters["inductor"], counters["aot_autograd"]
        hits = inductor.get("fxgraph_cache_hit", 0) + autograd.get("autograd_cache_hit", 0)
        misses = inductor.get("fxgraph_cache_miss", 0)
    print(
        json.dumps(
            {
                "import_s": imported_s,
                "first_call_s": first_s,
                "second_call_s": second_s,
                "hits": hits,
                "misses": misses,
                "same_result": same,
            }
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

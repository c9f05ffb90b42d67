"""The single GPU trials, each a fresh process that prints one JSON line. Run by `labkit.device.gpu_trials`; need a GPU.

    python -m labkit.device.gpu_parts compile|graphs|wake|model|checkpoint

The one with CRIU is labkit.snapshot.cuda. Lesson: notebooks/06_gpu_init, notebooks/07_checkpoints.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from labkit.core import client, timeline
from labkit.core.interpreter import module
from labkit.errors import MissingCapability

PROMPT = {"prompt": "The first token of a cold start", "max_tokens": 8}


def compile_step() -> dict[str, Any]:
    """First call of a compiled block: with TORCHINDUCTOR_CACHE_DIR empty or filled. Counters say which it was."""
    import torch
    from torch._dynamo.utils import counters

    layer = torch.nn.Sequential(*(torch.nn.Sequential(torch.nn.Linear(2048, 2048), torch.nn.GELU()) for _ in range(4))).cuda().to(torch.bfloat16)
    x = torch.randn(1, 2048, device="cuda", dtype=torch.bfloat16)
    began = timeline.now_s()
    with torch.no_grad():
        torch.compile(layer)(x)
    torch.cuda.synchronize()
    found = counters["inductor"]
    return {"first_call_s": timeline.now_s() - began, "fx_graph_cache_hit": found.get("fxgraph_cache_hit", 0), "fx_graph_cache_miss": found.get("fxgraph_cache_miss", 0)}


def graphs(shapes: int) -> dict[str, Any]:
    import torch

    layer = torch.nn.Sequential(*(torch.nn.Linear(2048, 2048) for _ in range(24))).cuda().to(torch.bfloat16)
    took = []
    for i in range(shapes):
        x = torch.randn(2**i, 2048, device="cuda", dtype=torch.bfloat16)
        with torch.no_grad():
            layer(x)
            torch.cuda.synchronize()
            began = timeline.now_s()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                layer(x)
            torch.cuda.synchronize()
        took.append(timeline.now_s() - began)
    return {"capture_s": took, "shapes": shapes, "total_s": sum(took)}


def wake(weights_bytes: int) -> dict[str, Any]:
    """Weights asleep in pinned memory, the context alive: what a warm standby pays to serve again."""
    import torch

    asleep = torch.empty(weights_bytes, dtype=torch.uint8, pin_memory=True)
    asleep[::4096] = 7
    torch.cuda.synchronize()
    began = timeline.now_s()
    awake = torch.empty(weights_bytes, dtype=torch.uint8, device="cuda")
    awake.copy_(asleep, non_blocking=True)
    torch.cuda.synchronize()
    seconds = timeline.now_s() - began
    return {"wake_s": seconds, "bytes": weights_bytes, "rate_bytes_per_s": weights_bytes / seconds, "equal": bool(awake[4096].item() == 7)}


def model(preset: str) -> dict[str, Any]:
    """The checkpoint that later trials start, made once."""
    from labkit.core.workspace import Workspace
    from labkit.subject import checkpoint as checkpoints

    began = timeline.now_s()
    made = checkpoints.ensure(Workspace.default(), preset)
    return {"preset": preset, "make_s": timeline.now_s() - began, "bytes": sum(p.stat().st_size for p in made.iterdir() if p.is_file())}


@contextmanager
def server(preset: str) -> Iterator[tuple[subprocess.Popen[bytes], int, client.Answer]]:
    from labkit.core.trial import free_port
    from labkit.core.workspace import Workspace
    from labkit.subject import checkpoint

    port, model = free_port(), checkpoint.ensure(Workspace.default(), preset)
    process = subprocess.Popen([*module("labkit.subject.server"), "--model", str(model), "--device", "cuda", "--port", str(port)],
                               stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        until = timeline.now_s() + 100
        answer = client.ask("127.0.0.1", port, PROMPT, give_up=lambda: process.poll() is not None or timeline.now_s() > until)
        if answer.first_token_s is None:
            raise RuntimeError(f"the server on the GPU served no token: {answer.error}")
        yield process, port, answer
    finally:
        with contextlib.suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def again(port: int) -> client.Answer:
    until = timeline.now_s() + 30
    return client.ask("127.0.0.1", port, PROMPT, give_up=lambda: timeline.now_s() > until)


def checkpoint(preset: str) -> dict[str, Any]:
    """Park and wake a serving process; the same tokens before and after."""
    from labkit.device import cuda_checkpoint as cuda

    driver = cuda.CudaCore()
    with server(preset) as (process, port, answer):
        parked = cuda.park(driver, process.pid)
        woken = cuda.wake(driver, process.pid)
        after = again(port)
        return {"preset": preset, "start_s": answer.first_token_s - answer.t0_s, "seconds": {**parked.seconds, **woken.seconds},  # type: ignore[operator]
                "memory_bytes": {**parked.memory_bytes, **{f"woken_{k}": v for k, v in woken.memory_bytes.items()}}, "equal_tokens": after.tokens == answer.tokens}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m labkit.device.gpu_parts")
    parser.add_argument("part", choices=["compile", "graphs", "wake", "model", "checkpoint"])
    parser.add_argument("--shapes", type=int, default=1)
    parser.add_argument("--weights-bytes", type=int, default=2_200_000_000)
    parser.add_argument("--preset", default="1b")
    args = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {"compile": compile_step, "graphs": lambda: graphs(args.shapes), "wake": lambda: wake(args.weights_bytes),
                                                      "model": lambda: model(args.preset), "checkpoint": lambda: checkpoint(args.preset)}
    return say(parts[args.part])


def say(part: Callable[[], dict[str, Any]]) -> int:
    """One JSON line, exit status 0; 3 where something is missing on this host, with the reason."""
    try:
        print(json.dumps(part()), flush=True)
    except MissingCapability as missing:
        print(missing, file=sys.stderr, flush=True)
        return 3
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A warm standby: a server that is resident before t0, its weights asleep in pinned host memory;
waking it is one copy.

What stays is what a start would make again: the process, its imports, the GPU's context, modules
and handles, the built model. What it gives up while it sleeps is the device memory of weights and
KV cache, for somebody else to use. It costs as much pinned host memory as the model has bytes,
around the clock, and the context's own few hundred MB of the device. Limit: bytes ÷ the bus's rate
from pinned memory.

    sleeping = sleep(model, memory); wake(sleeping, memory)         # all of it, or asleep as before
    device=warm-standby                                             # in a stack:
        image=host-env,device=warm-standby

Without a GPU there is no device memory to give up. `LABKIT_FAKE_CUDA` takes a simulated one for
tests, and every record says so. Protocol of the process: arguments ANSWERS_FD and the server's own;
one JSON line {"env", "host", "port"} on standard input wakes it; on the descriptor {"ready", …},
then {"waking"}. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TextIO

from labkit.core import interpreter, timeline
from labkit.core.json_types import JsonObject
from labkit.core.observe import read_by_calls
from labkit.core.plan import StepContext
from labkit.device.arena import aligned, view
from labkit.device.host_memory import HostMemory, Memory
from labkit.errors import TrialError

if TYPE_CHECKING:
    import argparse

    import torch

    from labkit.subject.llama import Llama


class Cuda:
    label, device = "", "cuda"

    def on_host(self, size_bytes: int) -> HostMemory:
        """Anonymous memory of exactly this size, registered with the driver. torch's own pinned
        memory is rounded up to a power of two: 2.2 GB take 4.3."""
        import torch

        size = max(mmap.PAGESIZE, -(-size_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, AttributeError, ValueError):
            pages.madvise(mmap.MADV_HUGEPAGE)
        memory = torch.frombuffer(pages, dtype=torch.uint8)
        runtime = torch.cuda.cudart()
        try:
            torch.cuda.check_error(runtime.cudaHostRegister(memory.data_ptr(), size, 0))
        except Exception as error:
            # a limit on locked memory, for one; then the driver copies through a buffer of its own
            return HostMemory(
                memory[:size_bytes],
                f"pageable: cudaHostRegister refused it ({type(error).__name__}: {error})"[:300],
            )
        return HostMemory(
            memory[:size_bytes], REGISTERED, lambda: runtime.cudaHostUnregister(memory.data_ptr())
        )

    def on_device(self, size_bytes: int) -> torch.Tensor:
        import torch

        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    def settle(self) -> None:
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def used_bytes(self) -> int:
        import torch

        return int(torch.cuda.memory_allocated())


REGISTERED = "registered with the driver (pinned)"


def memory_here() -> Memory:
    """The GPU's; with LABKIT_FAKE_CUDA the simulated one, for machines and tests without a GPU."""
    if os.environ.get("LABKIT_FAKE_CUDA"):
        from labkit.device.fake_driver import FakeMemory

        return FakeMemory()
    return Cuda()


@dataclass
class Sleeping:
    """A model whose parameters are empty, and their bytes in one arena in host memory. `awake`:
    woken already."""

    parameters: list[torch.nn.Parameter] = field(default_factory=list)
    # dtype, shape, offset of each
    places: list[tuple[torch.dtype, torch.Size, int]] = field(default_factory=list)
    host: HostMemory | None = None
    size_bytes: int = 0
    awake: bool = False

    @property
    def arena_bytes(self) -> int:
        return self.host.bytes.numel() if self.host else 0

    @property
    def host_memory(self) -> str:
        return self.host.how if self.host else ""

    def release(self) -> None:
        if self.host:
            self.host.release()
            self.host = None


def sleep(model: torch.nn.Module, memory: Memory) -> Sleeping:
    """Copy every parameter into one arena in pinned memory, then let go of the device's. A copy
    that fails leaves the model as it was."""
    import torch

    # a tied head is one parameter with its embedding, and sleeps once
    parameters = list(model.parameters())
    places, end = [], 0
    for p in parameters:
        places.append((p.dtype, p.shape, end))
        end += aligned(p.nbytes)
    size_bytes = sum(p.nbytes for p in parameters)
    host = memory.on_host(end)
    try:
        for p, place in zip(parameters, places, strict=True):
            view(host.bytes, *place).copy_(p.data, non_blocking=True)
        memory.settle()
    except BaseException:
        host.release()
        raise
    for p in parameters:
        p.data = torch.empty(0, dtype=p.dtype, device=p.device)
    memory.settle()
    return Sleeping(parameters, places, host, size_bytes)


def wake(sleeping: Sleeping, memory: Memory) -> None:
    """One allocation, one copy, and every parameter is a part of it. Where it does not fit, all of
    it stays asleep."""
    if sleeping.awake or not sleeping.host:
        return
    arena: torch.Tensor | None = None
    try:
        arena = memory.on_device(sleeping.arena_bytes)
        arena.copy_(sleeping.host.bytes, non_blocking=True)
    except BaseException:
        arena = None
        memory.settle()
        raise
    memory.settle()
    assert arena is not None
    for parameter, place in zip(sleeping.parameters, sleeping.places, strict=True):
        parameter.data = view(arena, *place)
    sleeping.awake = True


def bus_seconds(sleeping: Sleeping, memory: Memory) -> float:
    """The bus alone: the same host bytes onto device memory that is there already; the faster of
    two copies."""
    assert sleeping.host
    target, took = memory.on_device(sleeping.arena_bytes), []
    for _ in range(2):
        memory.settle()
        began = timeline.now_s()
        target.copy_(sleeping.host.bytes, non_blocking=True)
        memory.settle()
        took.append(timeline.now_s() - began)
    del target
    memory.settle()
    return min(took)


# ---- the step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Standby:
    """The resident server, what it answers on, and what was seen of it asleep."""

    process: subprocess.Popen[bytes]
    answers: TextIO
    facts: JsonObject


def start(ctx: StepContext) -> JsonObject:
    """The step: tell the resident server to wake and to listen on the trial's port."""
    standby = ctx.state.handed(_Standby)
    process = standby.process
    assert process.stdin
    process.stdin.write(
        json.dumps({"env": dict(ctx.server_env), "host": "127.0.0.1", "port": ctx.port}).encode()
        + b"\n"
    )
    process.stdin.flush()
    if not json.loads(standby.answers.readline() or "{}").get("waking"):
        raise TrialError(
            "the standby did not wake",
            why=ctx.state.log_tail(),
            fix="device= (none), or labkit doctor",
        )
    ctx.state.server_pid = process.pid
    return {"runtime": "standby", "server_pid": process.pid, "rootfs": "", **standby.facts}


def start_standby(ctx: StepContext) -> None:
    """Start the server, let it serve nobody, and put it to sleep: what stands on this node while
    there is no replica."""
    from labkit.device.nvml import process_memory_bytes
    from labkit.image.runtimes.resident import start_resident

    environment = {
        **interpreter.environment("LABKIT_FAKE_CUDA"),
        "TMPDIR": ctx.temporary(),
        **{k: v for k, v in ctx.server_env.items() if k != timeline.ENV},
    }
    process, answers, ready = start_resident(
        ctx,
        lambda fd: [*interpreter.module("labkit.device.standby"), str(fd), *ctx.server_args],
        environment,
    )
    if not ready.pop("ready", False):
        raise TrialError(
            "the standby did not start",
            why=ctx.state.log_tail(),
            fix="labkit doctor",
        )
    seen = {
        "device_bytes_asleep": process_memory_bytes(process.pid),
        "read_before_t0_bytes": read_by_calls(process.pid),
    }
    ctx.state.hand_on(_Standby(process, answers, {**ready, **seen}))


# ---- the resident process ------------------------------------------------------------------------


def warm_engine(args: argparse.Namespace, name: str) -> tuple[Llama, Any]:
    """The model as a server makes it, loaded and warmed up, and its engine without a cache.
    `args`: of labkit.subject.server."""
    from labkit.subject import server

    server.make_context(args.device, args.threads)
    model, words = server.build(args)
    server.load(model, args)
    engine = server.make_engine(args, model, words, name)
    engine.warm_up(2 if args.warmup is None else args.warmup)
    engine.shrink()
    return model, engine


def main() -> int:
    # http now: what is imported after t0 would be paid for then
    from labkit.subject import http, server  # noqa: F401

    answers, memory = int(sys.argv[1]), memory_here()
    args = server.parser().parse_args(sys.argv[2:])
    state = server.State(args.name or os.path.basename(args.model.rstrip("/")))
    model, engine = warm_engine(args, state.name)
    awake_bytes = memory.used_bytes()
    sleeping = sleep(model, memory)
    os.write(
        answers,
        json.dumps(
            {
                "ready": True,
                "nonce": state.nonce,
                "asleep_bytes": sleeping.size_bytes,
                "driver": memory.label,
                "host_memory": sleeping.host_memory,
                "arena_bytes": sleeping.arena_bytes,
                "allocated_bytes": {"awake": awake_bytes, "asleep": memory.used_bytes()},
            }
        ).encode()
        + b"\n",
    )
    line = sys.stdin.buffer.readline()
    if not line:  # the node agent ended
        return 0
    wanted = json.loads(line)
    os.environ.update(wanted["env"])
    os.write(answers, b'{"waking": true}\n')
    with timeline.span(
        "load",
        loader="pinned host memory",
        bytes=sleeping.size_bytes,
        driver=memory.label,
        host_memory=sleeping.host_memory,
    ):
        wake(sleeping, memory)
    with timeline.span("ready"):
        state.engine = engine
        args.host, args.port = wanted["host"], wanted["port"]
        server.listen(args, state)
    engine.serve_forever()
    return 0


if __name__ == "__main__":
    sys.exit(main())

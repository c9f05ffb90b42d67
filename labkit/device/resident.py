"""Weights that stay on the device: a daemon loads a checkpoint once, and every server after it maps
that memory (CUDA IPC).

`vllm preload` does this (0.31: a daemon, `--load-format ipc_cache`). The daemon puts all tensors
into one arena, allocated with cudaMalloc by itself: a handle names a whole allocation, and torch's
allocator would hand out a part of one. Over a Unix socket in a private directory it gives whoever
connects the handle and the map of the tensors; a server opens the handle, and views of the mapped
memory become its parameters. Nothing is read and nothing is copied. Limit: the exchange and one
mapping, milliseconds whatever the model's size. What it costs: the device's memory is held around
the clock, by a process that the driver cannot park (memory shared over IPC is in no CUDA
checkpoint), and a server is worth no more than its daemon: it must not outlive it, as the memory
goes with the process that allocated it.

    python -m labkit.device.resident 1 FOLDER MODEL cuda         # {"ready": true, …}; until its
        standard input ends
    LABKIT_RESIDENT=FOLDER python -m labkit.subject.server --loader labkit.device.resident:load
        --device cuda --model MODEL
    weights=device-resident                                      # in a stack over no-image

A process cannot open a handle of its own, and both must see the same device. Without a GPU,
LABKIT_FAKE_CUDA puts a file without a name in the device's place (memfd, shared), and every record
says so. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from labkit.core import timeline
from labkit.core.json_types import JsonObject
from labkit.core.observe import read_by_calls
from labkit.core.plan import StepContext
from labkit.device.arena import Arena, Place, places, shell, view_of
from labkit.device.cuda_ipc import as_bytes, runtime_on
from labkit.errors import BadInput, LabError, TrialError

if TYPE_CHECKING:
    import torch

#: The daemon's folder, for the loader.
WHERE = "LABKIT_RESIDENT"
DAEMON_LOADER = "labkit.weights.streamer:load"
PATIENCE_S = 30.0


# ---- the daemon ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _address(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The socket's path, short enough for the kernel (108 bytes) wherever the folder is."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/weights"
    finally:
        os.close(fd)


def keep(source: str, device: str, loader: str = DAEMON_LOADER) -> tuple[Arena, JsonObject]:
    """Load the checkpoint into an arena of its own; (arena, what the daemon offers everybody).
    Raises LabError."""
    import torch

    tensors, size_bytes = places(source)
    began = timeline.now_s()
    arena = Arena(size_bytes, device)
    model = shell(arena.bytes, tensors)
    module, _, function = loader.partition(":")
    facts = dict(
        getattr(importlib.import_module(module), function or "load")(model, source, device) or {}
    )
    outside = [
        n
        for n, p in model.named_parameters()
        if not 0 <= p.data_ptr() - arena.bytes.data_ptr() < size_bytes
    ]
    if outside:
        raise BadInput(
            f"{loader} put {outside[0]} elsewhere",
            why="only what is in the arena can be shared",
            fix="a loader that fills initialised parameters in place",
        )
    del model
    gc.collect()
    if device.startswith("cuda"):
        torch.cuda.synchronize()  # what is handed out is written
        torch.cuda.empty_cache()
    return arena, {
        "pid": os.getpid(),
        "source": os.path.realpath(source),
        "handle": arena.handle.hex(),
        "size_bytes": size_bytes,
        "label": arena.label,
        "weights_bytes": int(facts.get("size_bytes", 0)),
        "load_s": timeline.now_s() - began,
        "loader": loader,
        "tensors": tensors,
    }


def serve(listening: socket.socket, arena: Arena, offered: JsonObject) -> None:
    """For ever: a line, with the memory's descriptor beside it where it has one, to whoever
    connects."""
    document = json.dumps(offered).encode() + b"\n"
    while True:
        client, _ = listening.accept()
        with client, contextlib.suppress(OSError):
            client.settimeout(PATIENCE_S)
            socket.send_fds(client, [b" "], [arena.fd] if arena.fd >= 0 else [])
            client.sendall(document)


def main() -> int:
    answers, folder, source, device, *rest = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    try:
        arena, offered = keep(source, device, *rest[:1])
        listening = socket.socket(socket.AF_UNIX)
        with _address(folder) as path:
            listening.bind(path)
        listening.listen(16)
    except Exception as error:  # whatever it was, who waits for the answer is told
        known = isinstance(error, LabError)
        failed = str(error) if known else f"{type(error).__name__}: {error}"[:2000]
        _answer(answers, {"failed": failed})
        return 2
    threading.Thread(target=serve, args=(listening, arena, offered), daemon=True).start()
    facts = {k: v for k, v in offered.items() if k not in ("handle", "tensors")}
    _answer(answers, {"ready": True, **facts, "tensors": len(offered["tensors"])})
    while sys.stdin.buffer.read(4096):  # until whoever started it is gone
        pass
    return 0


def _answer(descriptor: str, document: JsonObject) -> None:
    os.write(int(descriptor), json.dumps(document).encode() + b"\n")


# ---- the loader ----------------------------------------------------------------------------------

# for as long as the process lives: what is closed must not be looked at any more
_mapped: list[torch.Tensor] = []


def load(
    model: torch.nn.Module, source: str, device: str = "cuda", *, folder: str = "", **_: Any
) -> JsonObject:
    """Parameters become views of the daemon's memory (into initialised ones they are copied).
    Raises BadInput, MissingCapability.

    Facts: tensors, size_bytes, mapped_bytes, copied_bytes, read_in_load_bytes (what the kernel
    counted as read by this process meanwhile), daemon_pid, label."""
    from labkit.weights.loaders.placing import Placer, with_index

    folder = folder or os.environ.get(WHERE, "")
    if not folder:
        raise BadInput(
            "no daemon holds these weights",
            why=f"{WHERE} names the folder of its socket",
            fix="python -m labkit.device.resident 1 FOLDER MODEL cuda",
        )
    before = read_by_calls()
    with timeline.span("load.ask"):
        offered, fd = ask(folder)
    if os.path.realpath(source) != offered["source"]:
        if fd >= 0:
            os.close(fd)
        raise BadInput(
            f"the daemon holds {offered['source']}",
            why=f"asked for was {source}: it would answer with the weights of another model",
            fix="a daemon of this model's own",
        )
    with timeline.span("load.map"):
        arena = _open(offered, fd, with_index(device))
    _mapped.append(arena)
    begin, end = arena.data_ptr(), arena.data_ptr() + offered["size_bytes"]
    placer = Placer(model, device)
    with timeline.span("load.place"):
        for place in map(Place._make, offered["tensors"]):
            placer.put(place.name, view_of(arena, place))
    facts = placer.finish()
    shared = sum(p.nbytes for p in placer.placed.values() if begin <= p.data_ptr() < end)
    return facts | {
        "loader": "device-resident",
        "mapped_bytes": shared,
        "copied_bytes": facts["size_bytes"] - shared,
        "read_in_load_bytes": read_by_calls() - before,
        "daemon_pid": offered["pid"],
        "label": offered["label"],
    }


def ask(folder: str) -> tuple[JsonObject, int]:
    """(what the daemon offers, the descriptor of its memory or -1). Raises BadInput where none
    answers."""
    fds: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX) as server, _address(folder) as path:
            server.settimeout(PATIENCE_S)
            server.connect(path)
            _, fds, _, _ = socket.recv_fds(server, 1, 1)
            offered = json.loads(b"".join(iter(lambda: server.recv(1 << 20), b"")))
    except (OSError, ValueError) as error:
        for fd in fds:
            os.close(fd)
        raise BadInput(
            f"no daemon answers at {folder}: {error}",
            why="its weights are on the device only while it lives",
            fix="start it: python -m labkit.device.resident",
        ) from None
    return offered, fds[0] if fds else -1


def _open(offered: JsonObject, fd: int, device: str) -> torch.Tensor:
    """The daemon's memory, mapped here, as a tensor of bytes. Raises BadInput,
    MissingCapability."""
    import torch

    if offered["handle"]:
        if not device.startswith("cuda"):
            raise BadInput(
                f"the daemon's weights are on a GPU, asked for was {device}", fix="--device cuda"
            )
        pointer = runtime_on(device).open(bytes.fromhex(offered["handle"]))
        return as_bytes(pointer, offered["size_bytes"], device)
    if fd < 0 or device != "cpu":
        raise BadInput(
            f"the daemon's weights are in host memory ({offered['label']}), asked for was {device}",
            fix="--device cpu",
        )
    try:
        return torch.frombuffer(mmap.mmap(fd, offered["size_bytes"]), dtype=torch.uint8)
    finally:
        os.close(fd)


# ---- the step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Daemon:
    """What the daemon said when it was ready."""

    facts: JsonObject


def offer(ctx: StepContext, model: str, device: str) -> JsonObject:
    """The step: nothing is left to do but to tell the server where the daemon is; facts of the
    daemon, taken before t0."""
    return {"resident": ctx.state.handed(_Daemon).facts}


def start_daemon(ctx: StepContext, model: str, device: str) -> None:
    """Start the daemon and wait until the weights are on the device: what stands on this node while
    there is no replica."""
    from labkit.core import interpreter
    from labkit.core.ledger import marked
    from labkit.device.nvml import process_memory_bytes
    from labkit.image.runtimes.resident import start_resident

    folder = ctx.node / "resident"
    folder.mkdir(mode=0o700)
    environment = {**interpreter.environment("LABKIT_FAKE_CUDA"), "TMPDIR": ctx.temporary()}
    process, answers, ready = start_resident(
        ctx,
        lambda fd: [
            *interpreter.module("labkit.device.resident"),
            str(fd),
            str(folder),
            model,
            device,
        ],
        marked(environment),
    )
    answers.close()
    if not ready.pop("ready", False):
        raise TrialError(
            "no daemon holds the weights: "
            + (ready.get("failed") or "it ended before it was ready"),
            why=ctx.state.log_tail(1200),
            fix="labkit doctor",
        )
    ready["device_bytes_held"] = process_memory_bytes(process.pid)
    ctx.state.hand_on(_Daemon(ready))
    ctx.server_env[WHERE] = str(folder)


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)

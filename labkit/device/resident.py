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
import ctypes
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
from typing import Any

from labkit.core import timeline
from labkit.core.observe import read_by_calls
from labkit.core.plan import StepContext
from labkit.errors import BadInput, LabError, MissingCapability, TrialError

#: Where a tensor begins in the arena, as in torch's own allocations.
ALIGNED_BYTES = 512
#: The daemon's folder, for the loader.
WHERE = "LABKIT_RESIDENT"
SIMULATED = "simulated: shared host memory in the device's place"
DAEMON_LOADER = "labkit.weights.streamer:load"
PATIENCE_S = 30.0


# ---- the CUDA runtime, through the library that torch has loaded ---------------------------------


class Handle(ctypes.Structure):
    """cudaIpcMemHandle_t: 64 bytes, passed by value."""

    _fields_ = (("reserved", ctypes.c_char * 64),)


class Runtime:
    """The calls that torch does not expose. A context of the device must be current:
    torch.cuda.set_device, and something allocated."""

    LAZY_PEER_ACCESS = 1

    def __init__(self) -> None:
        self.library = _runtime_of_torch()
        self.library.cudaGetErrorString.restype = ctypes.c_char_p
        self.library.cudaGetErrorString.argtypes = [ctypes.c_int]
        self.library.cudaMalloc.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.c_size_t]
        self.library.cudaIpcGetMemHandle.argtypes = [ctypes.POINTER(Handle), ctypes.c_void_p]
        self.library.cudaIpcOpenMemHandle.argtypes = [
            ctypes.POINTER(ctypes.c_void_p),
            Handle,
            ctypes.c_uint,
        ]

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self.library, name)(*arguments)
        if status:
            # torch would take it for a failure of its own next call
            self.library.cudaGetLastError()
            raise MissingCapability(
                f"{name}: {self.library.cudaGetErrorString(status).decode()} ({status})",
                why="weights on the device cannot be shared without it",
                fix=(
                    "both processes on one device, in one container or none; room for the weights:"
                    " nvidia-smi"
                ),
            )

    def allocate(self, size_bytes: int) -> int:
        pointer = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(pointer), size_bytes)
        return int(pointer.value or 0)

    def handle_of(self, pointer: int) -> bytes:
        handle = Handle()
        self._call("cudaIpcGetMemHandle", ctypes.byref(handle), pointer)
        return ctypes.string_at(ctypes.byref(handle), ctypes.sizeof(handle))

    def open(self, raw: bytes) -> int:
        pointer = ctypes.c_void_p()
        self._call(
            "cudaIpcOpenMemHandle",
            ctypes.byref(pointer),
            Handle.from_buffer_copy(raw),
            self.LAZY_PEER_ACCESS,
        )
        return int(pointer.value or 0)


def _runtime_on(device: str) -> Runtime:
    """With a context of this device ("cuda", "cuda:1") on the calling thread: torch makes it when
    something is allocated first."""
    import torch

    torch.cuda.set_device(torch.device(device).index or 0)
    torch.zeros(1, device=device)
    return Runtime()


def _runtime_of_torch() -> Any:
    """The one copy of the runtime in this process: torch makes its symbols global; else it is
    looked for among what is mapped."""
    everything = ctypes.CDLL(None)
    if hasattr(everything, "cudaIpcOpenMemHandle"):
        return everything
    with open("/proc/self/maps") as maps:
        here = next((line.split(None, 5)[5].strip() for line in maps if "libcudart" in line), "")
    if not here:
        raise MissingCapability(
            "no CUDA runtime in this process",
            why="weights on the device are shared through it",
            fix="the CUDA build of torch: labkit doctor",
        )
    return ctypes.CDLL(here)


class _Foreign:
    """Device memory that torch did not allocate, told to it in the way that all libraries share."""

    def __init__(self, pointer: int, size_bytes: int):
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (pointer, False),
            "version": 2,
        }


def as_bytes(pointer: int, size_bytes: int, device: str) -> Any:
    """A tensor of bytes over that memory: not one of them is copied. It never frees them; they go
    with the process."""
    import torch

    made = torch.as_tensor(_Foreign(pointer, size_bytes), device=device)
    if made.data_ptr() != pointer:
        raise MissingCapability(
            "torch copied the memory that it was to look at",
            why="nothing would be shared",
            fix=f"one device: it is not on {device}",
        )
    return made


# ---- the arena, and where its tensors are --------------------------------------------------------


class Arena:
    """`bytes`: a tensor; `handle`, `fd`: how others find it (one of them). `label`: "" or how the
    device is simulated."""

    def __init__(self, size_bytes: int, device: str):
        import torch

        self.size_bytes, self.fd, self.handle, self.label = size_bytes, -1, b"", ""
        if device.startswith("cuda"):
            runtime = _runtime_on(device)
            pointer = runtime.allocate(size_bytes)
            self.handle, self.bytes = (
                runtime.handle_of(pointer),
                as_bytes(pointer, size_bytes, device),
            )
        else:
            self.fd, self.label = os.memfd_create("labkit-resident", os.MFD_CLOEXEC), SIMULATED
            os.truncate(self.fd, size_bytes)
            self.bytes = torch.frombuffer(mmap.mmap(self.fd, size_bytes), dtype=torch.uint8)


def places(source: str) -> tuple[list[tuple[str, str, list[int], int]], int]:
    """(name, torch's dtype, shape, offset) of every tensor of a safetensors checkpoint, and the
    arena's size in bytes. Raises BadInput."""
    from labkit.formats.safetensors_header import read
    from labkit.weights.loaders.views import TORCH, torch_dtype
    from labkit.weights.source import open_source

    opened = open_source(source)
    if opened.remote:
        raise BadInput(
            f"{source} is not on this host",
            why="the daemon loads from local files",
            fix="--scenario warm-node",
        )
    found, end = [], 0
    for shard in opened.shards("safetensors"):
        for entry in read(opened.path(shard)).tensors:
            torch_dtype(entry)  # refuses what torch has no word for
            found.append((entry.name, TORCH[entry.dtype], list(entry.shape), end))
            end += -(-entry.size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
    return found, max(end, ALIGNED_BYTES)


def view(arena: Any, dtype: str, shape: list[int], offset: int) -> Any:
    import math

    import torch

    kind = getattr(torch, dtype)
    return arena[offset : offset + math.prod(shape) * kind.itemsize].view(kind).view(shape)


def shell(arena: Any, tensors: list[tuple[str, str, list[int], int]]) -> Any:
    """A module with the checkpoint's names whose parameters are parts of the arena: any loader
    fills it in place."""
    import torch

    root = torch.nn.Module()
    for name, dtype, shape, offset in tensors:
        *path, leaf = name.split(".")
        module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]  # type: ignore[assignment]
        module.register_parameter(
            leaf, torch.nn.Parameter(view(arena, dtype, shape, offset), requires_grad=False)
        )
    return root


# ---- the daemon ----------------------------------------------------------------------------------


@contextlib.contextmanager
def _address(folder: str | os.PathLike[str]) -> Iterator[str]:
    """The socket's path, short enough for the kernel (108 bytes) wherever the folder is."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{fd}/weights"
    finally:
        os.close(fd)


def keep(source: str, device: str, loader: str = DAEMON_LOADER) -> tuple[Arena, dict[str, Any]]:
    """Load the checkpoint into an arena of its own; (arena, what the daemon tells everybody).
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


def serve(listening: socket.socket, arena: Arena, told: dict[str, Any]) -> None:
    """For ever: a line, with the memory's descriptor beside it where it has one, to whoever
    connects."""
    document = json.dumps(told).encode() + b"\n"
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
        arena, told = keep(source, device, *rest[:1])
        listening = socket.socket(socket.AF_UNIX)
        with _address(folder) as path:
            listening.bind(path)
        listening.listen(16)
    except Exception as error:  # whatever it was, who waits for the answer is told
        os.write(
            int(answers),
            json.dumps(
                {
                    "failed": (
                        str(error)
                        if isinstance(error, LabError)
                        else f"{type(error).__name__}: {error}"[:2000]
                    )
                }
            ).encode()
            + b"\n",
        )
        return 2
    threading.Thread(target=serve, args=(listening, arena, told), daemon=True).start()
    os.write(
        int(answers),
        json.dumps(
            {
                "ready": True,
                **{k: v for k, v in told.items() if k not in ("handle", "tensors")},
                "tensors": len(told["tensors"]),
            }
        ).encode()
        + b"\n",
    )
    while sys.stdin.buffer.read(4096):  # until whoever started it is gone
        pass
    return 0


# ---- the loader ----------------------------------------------------------------------------------

# for as long as the process lives: what is closed must not be looked at any more
_mapped: list[Any] = []


def load(
    model: Any, source: str, device: str = "cuda", *, folder: str = "", **_: Any
) -> dict[str, Any]:
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
        told, fd = ask(folder)
    if os.path.realpath(source) != told["source"]:
        if fd >= 0:
            os.close(fd)
        raise BadInput(
            f"the daemon holds {told['source']}",
            why=f"asked for was {source}: it would answer with the weights of another model",
            fix="a daemon of this model's own",
        )
    with timeline.span("load.map"):
        arena = _open(told, fd, with_index(device))
    _mapped.append(arena)
    begin, end = arena.data_ptr(), arena.data_ptr() + told["size_bytes"]
    placer = Placer(model, device)
    with timeline.span("load.place"):
        for name, dtype, shape, offset in told["tensors"]:
            placer.put(name, view(arena, dtype, shape, offset))
    facts = placer.finish()
    shared = sum(p.nbytes for p in placer.placed.values() if begin <= p.data_ptr() < end)
    return facts | {
        "loader": "device-resident",
        "mapped_bytes": shared,
        "copied_bytes": facts["size_bytes"] - shared,
        "read_in_load_bytes": read_by_calls() - before,
        "daemon_pid": told["pid"],
        "label": told["label"],
    }


def ask(folder: str) -> tuple[dict[str, Any], int]:
    """(what the daemon tells, the descriptor of its memory or -1). Raises BadInput where none
    answers."""
    fds: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX) as server, _address(folder) as path:
            server.settimeout(PATIENCE_S)
            server.connect(path)
            _, fds, _, _ = socket.recv_fds(server, 1, 1)
            told = json.loads(b"".join(iter(lambda: server.recv(1 << 20), b"")))
    except (OSError, ValueError) as error:
        for fd in fds:
            os.close(fd)
        raise BadInput(
            f"no daemon answers at {folder}: {error}",
            why="its weights are on the device only while it lives",
            fix="start it: python -m labkit.device.resident",
        ) from None
    return told, fds[0] if fds else -1


def _open(told: dict[str, Any], fd: int, device: str) -> Any:
    import torch

    if told["handle"]:
        if not device.startswith("cuda"):
            raise BadInput(
                f"the daemon's weights are on a GPU, asked for was {device}", fix="--device cuda"
            )
        return as_bytes(
            _runtime_on(device).open(bytes.fromhex(told["handle"])), told["size_bytes"], device
        )
    if fd < 0 or device != "cpu":
        raise BadInput(
            f"the daemon's weights are in host memory ({told['label']}), asked for was {device}",
            fix="--device cpu",
        )
    try:
        return torch.frombuffer(mmap.mmap(fd, told["size_bytes"]), dtype=torch.uint8)
    finally:
        os.close(fd)


# ---- the step ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Daemon:
    """What the daemon said when it was ready."""

    facts: dict[str, Any]


def offer(ctx: StepContext, model: str, device: str) -> dict[str, Any]:
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

"""One measurement of a loader: a fresh process that builds, loads, touches, answers and sums.

    python -m labkit.bench.load_child safetensors MODEL_DIR cpu "{}"

It says `ready` and waits, so that free memory is prefaulted before the clock starts, and waits
again at the end, so that the kernel can be asked about it while it lives. Limit: what a process
costs by itself is outside of the clock. Lesson: notebooks/05_streaming."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING

from labkit.bench import read_paths
from labkit.bench.engine import Measured
from labkit.core import free_memory, rates
from labkit.core.interpreter import module
from labkit.core.json_types import JsonMapping, JsonObject
from labkit.core.timeline import Span
from labkit.errors import LabError
from labkit.technique import Observation
from labkit.weights.catalog import LOADERS, Loader

if TYPE_CHECKING:
    from labkit.subject.llama import Llama

READY = "ready\n"


#: Of a traceback the line that names the error; libraries say more after it.
_RAISED = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Input|Capability)\b")


#: A loader that hangs is a failed measurement, not the end of the bench. On a GPU time is dear: so
#: long for a start, and this rate for the load.
PATIENCE_S, DEVICE_PATIENCE_S, SLOWEST_BYTES_PER_S = 300.0, 40.0, 400e6


#: A load to a GPU needs a shard and its staging buffers of the host's memory, not the model's size.
DEVICE_PREFAULT_BYTES = 4 << 30


#: Up to this size a device's parameters are summed by the host, which needs none of the device's
#: arithmetic; above it that takes seconds.
HOST_SUM_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class LoadSpec:
    """One load. `model`: the directory or URL that the loader and the model's configuration are
    read from; `about`: where the weights are, as `labkit.core.node_state.WeightsState` has it;
    `stores`: what the stores have counted, asked after the load."""

    loader: Loader
    model: str
    weights_bytes: int
    device: str = "cpu"
    env: Mapping[str, str] = field(default_factory=dict)
    about: JsonMapping = field(default_factory=dict)
    stores: Callable[[], dict[str, JsonObject]] = dict


def measure(spec: LoadSpec) -> JsonObject:
    """Run the child, prefault memory when it is ready, ask the kernel about it while it lives, let
    it go. Raises LabError with its own words."""
    loader, options = spec.loader, json.dumps(dict(spec.loader.options))
    argv = [*module("labkit.bench.load_child"), loader.name, spec.model, spec.device, options]
    patience_s = PATIENCE_S
    if spec.device != "cpu":
        patience_s = DEVICE_PATIENCE_S + spec.weights_bytes / SLOWEST_BYTES_PER_S
    with tempfile.TemporaryFile("w+") as stderr:
        child = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env={**os.environ, **dict(loader.environment), **spec.env},
            text=True,
        )
        late = threading.Timer(patience_s, child.kill)
        late.start()
        try:
            return _measured_in(child, stderr, spec)
        finally:
            late.cancel()
            child.kill()
            child.wait()


def _measured_in(child: subprocess.Popen[str], stderr: IO[str], spec: LoadSpec) -> JsonObject:
    assert child.stdout and child.stdin
    line = child.stdout.readline()
    if line == READY:
        prefault_bytes = read_paths.needed_bytes(spec.weights_bytes)
        if spec.device != "cpu":
            prefault_bytes = min(prefault_bytes, DEVICE_PREFAULT_BYTES)
        free_memory.prefault(prefault_bytes)
        child.stdin.write("go\n")
        child.stdin.flush()
        line = child.stdout.readline()
    if not line.startswith("{"):
        child.kill()
        status = child.wait()
        stderr.seek(0)
        words = stderr.read()[-20_000:].strip()
        lines = [w for w in words.splitlines() if w.strip()]
        reason = next(
            (w for w in reversed(lines) if _RAISED.match(w)),
            lines[-1] if lines else "it printed nothing",
        )
        raise LabError(
            f"{spec.loader.name} did not load: {reason[:300]} (exit {status})", why=words[-1500:]
        )
    doc = json.loads(line)
    from labkit.core.node_state import PlanState, WeightsState
    from labkit.core.observe import process_facts
    from labkit.core.plan import LaunchPlan
    from labkit.weights.techniques import verify_loader

    observation = Observation(
        plan=LaunchPlan(
            stack={"weights": spec.loader.name},
            device=spec.device,
            state=PlanState(weights=WeightsState(bytes=spec.weights_bytes, **spec.about)),
        ),
        spans=(Span("load", 0.0, doc["seconds"], "child", doc["placement"]),),
        proc=process_facts(child.pid),
        stores=spec.stores(),
    )
    evidence = verify_loader(spec.loader, observation)
    return doc | {"evidence": evidence.how, "engaged": evidence.engaged}


def child(loader_name: str, model_source: str, device: str, options: str) -> None:
    """In the fresh process: build, load, touch, answer, sum – and wait to be looked at."""
    import gc
    import importlib
    import time

    import torch

    from labkit.core.observe import resident_bytes
    from labkit.subject.config import LlamaConfig
    from labkit.subject.decode import generate
    from labkit.subject.llama import Llama

    if loader_name not in LOADERS:  # another package's: it joins the catalog there
        importlib.import_module("labkit.weights.techniques")
    loader = LOADERS[loader_name]
    config = LlamaConfig.from_dir(model_source)
    with torch.device(loader.init if loader.init == "meta" else device):
        model = Llama(config, dtype=getattr(torch, config.dtype))
    if device != "cpu":
        torch.zeros(1, device=device)  # the context is another phase
    # over what torch left it takes 0.2 s, and would fall on whichever loader makes the object that
    # brings it on
    gc.collect()
    print(READY, end="", flush=True)
    sys.stdin.readline()
    before_bytes = resident_bytes()[0]
    start = time.monotonic()
    module, _, function = loader.call.partition(":")
    facts = getattr(importlib.import_module(module), function)(
        model, model_source, device, **json.loads(options)
    )
    loaded = time.monotonic()
    _touch(model, device)
    placed = time.monotonic()
    peak_bytes = resident_bytes()[1]
    placement = model.placement()  # before the token: a cache and its workspaces are no loader's
    if device != "cpu":
        free, whole = torch.cuda.mem_get_info()
        # also what torch's allocator knows nothing of: the context, a library's own buffers
        placement["device_used_bytes"] = whole - free
    try:
        answer: JsonObject = {
            "token": next(iter(generate(model.finish(), [1, 2, 3, 4], 1)))[0],
            "first_token_s": time.monotonic() - start,
        }
    except RuntimeError as error:  # of the device's kernels: the load was measured all the same
        answer = {"token_failed": f"no token came: {error}"[:300]}
    print(
        json.dumps(
            {
                "load_s": loaded - start,
                "touch_s": placed - loaded,
                "seconds": placed - start,
                **answer,
                "peak_bytes": peak_bytes,
                "peak_extra_bytes": peak_bytes - before_bytes - _parameter_bytes(model, device),
                "sum": _sum(model),
                "placement": placement,
                "facts": facts,
            },
            default=str,
        ),
        flush=True,
    )
    sys.stdin.read()


def _touch(model: Llama, device: str) -> None:
    """As a floor ends: the bench's own cost is alike in both."""
    import ctypes

    if device != "cpu":
        import torch

        torch.cuda.synchronize()
        return
    for p in model.parameters():
        if p.numel():
            rates.look_at(
                memoryview(
                    (ctypes.c_ubyte * (p.numel() * p.element_size())).from_address(p.data_ptr())
                )
            )


def _parameter_bytes(model: Llama, device: str) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters()) if device == "cpu" else 0


def _sum(model: Llama) -> int:
    """Of all parameters' bits, each weighted by its place: outside the clock."""
    import torch

    total, mine = 0, sorted(model.named_parameters())
    near = sum(p.nbytes for _, p in mine) <= HOST_SUM_BYTES
    for i, (_, p) in enumerate(mine, 1):
        raw = (p.detach().cpu() if near else p.detach()).reshape(-1)
        raw = raw.view(torch.int16) if raw.element_size() == 2 else raw.view(torch.uint8)
        total = (total + i * int(raw.sum(dtype=torch.int64))) % (1 << 61)
    return total


DEVICE_FACTS = ("device_bytes", "allocated_bytes", "peak_allocated_bytes", "device_used_bytes")


def measured(
    doc: JsonObject, cache: str, size_bytes: int, floor_s: float | None, link: str = "loopback"
) -> Measured:
    seconds = doc["seconds"]
    extra: JsonObject = {
        k: doc[k]
        for k in (
            "load_s",
            "touch_s",
            "first_token_s",
            "peak_bytes",
            "peak_extra_bytes",
            "sum",
            "token",
            "token_failed",
        )
        if k in doc
    }
    extra |= {k: doc["placement"][k] for k in DEVICE_FACTS if k in doc.get("placement", {})}
    extra |= {
        "gb_per_s": size_bytes / seconds / 1e9,
        "weights_bytes": size_bytes,
        **({"share_of_floor": floor_s / seconds} if floor_s else {}),
    }
    return Measured(
        seconds,
        cache,
        link,
        floor_s,
        doc["evidence"],
        "" if doc["engaged"] else f"no evidence: {doc['evidence']}",
        extra,
    )


if __name__ == "__main__":
    child(*sys.argv[1:5])

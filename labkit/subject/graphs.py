"""CUDA graphs of the decode step: a batch size each, recorded before the server is ready. More of
them, later readiness.

Launching the few hundred kernels of one decode step costs the CPU longer than a small model's
kernels take; a recorded graph is one launch. It holds fixed shapes and addresses, so an engine
records one for every batch size that it may meet (vLLM: up to 67 of them), although the first
request needs the one of its own batch. Limit: one eager step and one recording a size, which is CPU
time.

    step = Graphs(model, cache, sizes=(1, 2, 4), record=recorder("cuda"))     # an Engine's decode
        step
    logits = step(ids, position, cache, None)

Without a GPU nothing can be recorded. `LABKIT_FAKE_CUDA` takes a stand-in that runs the step anew
in place of a replay, for tests: it shows which sizes are prepared and that the tokens are right,
and no time of it means anything. Lesson: notebooks/06_gpu_init."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from labkit.core import timeline
from labkit.errors import BadInput, MissingCapability
from labkit.subject.llama import KVCache, Llama

SIMULATED = "simulated: no GPU records anything"
Replay = Callable[[], Any]


class Recorder(Protocol):
    """`record(work)` gives the replay, and the tensor into which every replay writes."""

    label: str

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]: ...


class Cuda:
    """torch.cuda.CUDAGraph; all sizes share one memory pool, as they never run at the same time."""

    label = "CUDA graph"

    def __init__(self) -> None:
        self.pool: Any = None

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        # Once eagerly on another stream: libraries allocate their workspaces, which is not allowed
        # while recording.
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            work()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool):
            out = work()
        self.pool = self.pool or graph.pool()
        return graph.replay, out


class Simulated:
    label = SIMULATED

    def __call__(self, work: Callable[[], torch.Tensor]) -> tuple[Replay, torch.Tensor]:
        out = work().clone()
        return lambda: out.copy_(work()), out


def recorder(device: str) -> Recorder:
    """Raises MissingCapability where there is nothing to record with."""
    if device.startswith("cuda"):
        return Cuda()
    if os.environ.get("LABKIT_FAKE_CUDA"):
        return Simulated()
    raise MissingCapability(
        "CUDA graphs need a GPU",
        why=f"the server runs on {device}",
        fix="--device cuda on a GPU host",
    )


def parse_sizes(text: str) -> tuple[int, ...]:
    """ "1,2,4" → (1, 2, 4). Raises BadInput."""
    try:
        sizes = tuple(sorted({int(part) for part in text.split(",") if part.strip()}))
    except ValueError:
        sizes = ()
    if not sizes or sizes[0] < 1:
        raise BadInput(
            f"--graphs {text!r:.100}",
            why="batch sizes are whole numbers from 1 on",
            fix="--graphs 1 or --graphs 1,2,4,8",
        )
    return sizes


@dataclass
class _Slot:
    ids: torch.Tensor
    position: torch.Tensor
    replay: Replay
    logits: torch.Tensor
    cache: KVCache  # kept: a graph holds addresses, not references


class Graphs:
    """A decode step for the engine: replayed where its batch was recorded over this very cache,
    eager everywhere else."""

    def __init__(self, model: Llama, cache: KVCache, sizes: Sequence[int], record: Recorder):
        self.model, self.cache = model, cache
        self.slots: dict[int, _Slot] = {}
        self.replayed = 0
        # the largest first: the smaller ones fit into its memory
        for size in sorted(sizes, reverse=True):
            with timeline.span("warmup.graph", batch=size, recorder=record.label):
                self.slots[size] = self._recorded(size, record)

    @torch.inference_mode()
    def _recorded(self, size: int, record: Recorder) -> _Slot:
        device = self.model.device
        ids = torch.zeros((size, 1), dtype=torch.int64, device=device)
        position = torch.zeros(1, dtype=torch.int64, device=device)
        cache = self.cache if size == 1 else self._wide(size)
        replay, logits = record(lambda: self.model(ids, position, cache, None))
        return _Slot(ids, position, replay, logits, cache)

    def _wide(self, size: int) -> KVCache:
        """A cache for `size` requests: the first (the largest) is allocated, every smaller one is
        its beginning."""
        for slot in self.slots.values():
            return slot.cache.beginning(size)
        return self.model.new_cache(self.cache.context, size)

    def __call__(
        self, ids: torch.Tensor, position: torch.Tensor, cache: KVCache, reach: int | None
    ) -> torch.Tensor:
        slot = self.slots.get(ids.shape[0])
        # a cache that was given back: its addresses are somebody else's now
        if slot is None or cache is not self.cache:
            return self.model(ids, position, cache, reach)
        slot.ids.copy_(ids)
        slot.position.copy_(position)
        slot.replay()
        self.replayed += 1
        return slot.logits

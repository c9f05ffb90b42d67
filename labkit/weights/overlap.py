"""`overlap`: the weights start to arrive at t0, while the image comes, the interpreter starts and
torch is imported.

A start is a chain – image, interpreter, imports, weights – in which network and disk are idle most
of the time. Nothing in the weights depends on the interpreter, so the node agent starts moving them
at once, beside the chain, and the loader finds them in the page cache. Limit: the longer of the two
paths, not their sum; on one link both share its rate.

    fresh-node   small files first (the server's build needs them), then the shards in parallel
        ranges, to the node's disk;
                 while a lazy mount fetches what the start is known to touch, the shards wait: that
                     is needed first
    warm-node    the shards are read ahead into the page cache until the loader comes: from then on
        it reads what is missing itself,
                 as two readers of the same bytes would halve the disk for each other

Lesson: notebooks/08_stacking.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from labkit.core import timeline
from labkit.core.json_types import JsonObject
from labkit.core.plan import LaunchPlan, Step, StepContext
from labkit.core.units import show_bytes
from labkit.errors import TransferError
from labkit.formats.weight_files import LAYOUT, parse_index
from labkit.technique import Artifact, Evidence, Observation, Option, register
from labkit.weights.catalog import LOADERS, Loader
from labkit.weights.loaders.placing import Model
from labkit.weights.source import CheckpointSource, open_source
from labkit.weights.techniques import WeightsTechnique, verify_loader

MODEL = "model"  # the directory on the node
SPAN = "load.ahead"
PARTIAL = ".partial"
PATIENCE_S = 600.0
READ_BYTES = 4 << 20
PART_BYTES = 2 << 20  # what is under way cannot be called back
SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
    "model.safetensors.index.json",
)
PARTS_BESIDE = 2  # none would leave the link idle between the mount's requests
YIELD_S = 20.0  # a mount that is stuck holds nobody up for longer


#: The file by which the loader says that it is there (its path; in the environment of the server).
TAKEN_OVER = "LABKIT_TAKEN_OVER"


def expect_loader(ctx: StepContext) -> JsonObject:
    """warm-node, first: the server is told by which file it takes over; it lies where every runtime
    lets it write."""
    ctx.server_env[TAKEN_OVER] = f"{ctx.timeline_path}.taken-over"
    return {}


def read_ahead(ctx: StepContext, files: list[str]) -> JsonObject:
    """warm-node, in the background: these files through the page cache, two readers, in this
    order, until the loader has come."""
    began, taken = timeline.now_s(), ctx.server_env.get(TAKEN_OVER, "")
    with ThreadPoolExecutor(2) as readers:
        read = sum(readers.map(lambda file: _through_cache(Path(file), taken), files))
    _write_span(ctx, began, bytes=read, taken_over=bool(taken) and os.path.exists(taken))
    return {"bytes_read": read}


def _write_span(ctx: StepContext, began_s: float, **facts: Any) -> None:
    """What ran in the background and succeeded."""
    path = str(ctx.timeline_path)
    timeline.write(SPAN, began_s, timeline.now_s(), source="agent", path=path, **facts)


def _through_cache(file: Path, taken: str = "") -> int:
    buffer, total = bytearray(READ_BYTES), 0
    with open(file, "rb", buffering=0) as handle:
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while not (taken and os.path.exists(taken)) and (got := handle.readinto(buffer)):
            total += got
    return total


@dataclass(frozen=True)
class Target:
    """Where on the node the checkpoint is being put."""

    directory: Path


def fetch_small(ctx: StepContext, model: str, environment: dict[str, str]) -> JsonObject:
    """fresh-node, before anything else: config, tokenizer and index to the node, where the server
    looks."""
    source = _source(model, environment)
    target = ctx.node / MODEL
    target.mkdir()

    single, index = LAYOUT["safetensors"]

    def fetch(name: str) -> int:
        data = source.read(name)
        return 0 if data is None else (target / name).write_bytes(data)

    with ThreadPoolExecutor(len(SMALL) + 1) as many:  # a round trip each
        alone = many.submit(source.exists, single)
        total = sum(many.map(fetch, SMALL))
        if alone.result():  # preferred to shards: those of a stale index would be waited for
            (target / index).unlink(missing_ok=True)
    ctx.state.hand_on(Target(target))
    ctx.server_binds.append((str(target), str(target)))
    return {"bytes_fetched": total}


class ImageFirst:
    """Leaves the link to a lazy mount while it fetches what a recorded start touched: few parts of
    the weights at a time."""

    def __init__(self, ctx: StepContext, parts: int = PARTS_BESIDE):
        self.ctx, self.parts = ctx, parts
        self.yielded_s = 0.0
        self._since_s, self._over, self._under_way = 0.0, False, 0
        self._lock = threading.Lock()

    def may_go(self) -> bool:
        """Asked before each part; yes counts it as under way."""
        with self._lock:
            if self._under_way >= self.parts and not self._free():
                return False
            self._under_way += 1
            return True

    def done(self, _part: object) -> None:
        with self._lock:
            self._under_way -= 1

    def _free(self) -> bool:
        sign = self.ctx.state.link_free_when
        if not sign or self._over:
            return True
        self._since_s = self._since_s or time.monotonic()
        self.yielded_s = time.monotonic() - self._since_s
        self._over = os.path.exists(sign) or self.yielded_s > YIELD_S
        return self._over


def fetch_shards(
    ctx: StepContext, model: str, environment: dict[str, str], connections: int = 8
) -> JsonObject:
    """fresh-node, in the background: the shards in parallel ranges. A shard has its name only once
    it is whole."""
    from labkit.net.fetch import fetch_ranges
    from labkit.net.parts import Into
    from labkit.net.ranges import RangeOptions

    began = timeline.now_s()
    source, image_first = _source(model, environment), ImageFirst(ctx)
    target = ctx.state.handed(Target).directory
    total = 0
    try:
        with source.client() as client:
            for name in source.shards("safetensors"):
                size = client.ask("HEAD", source.url(name)).size_bytes
                if size is None:
                    raise TransferError(
                        f"{source.url(name)}: the store does not say how large it is",
                        why="its parts are planned from its size",
                    )
                with open(target / (name + PARTIAL), "wb") as file:
                    os.posix_fallocate(file.fileno(), 0, size)
                    fetch_ranges(
                        client,
                        source.url(name),
                        size,
                        Into.file(file.fileno()),
                        part_bytes=PART_BYTES,
                        options=RangeOptions(
                            connections=connections,
                            may_go=image_first.may_go,
                            on_done=image_first.done,
                        ),
                    )
                os.rename(target / (name + PARTIAL), target / name)
                total += size
    except BaseException as error:
        (target / ".failed").write_text(f"{type(error).__name__}: {error}")
        raise
    _write_span(ctx, began, bytes=total, yielded_s=image_first.yielded_s)
    return {"bytes_fetched": total, "yielded_s": image_first.yielded_s}


def know_http(ctx: StepContext, **_: Any) -> None:
    """Before t0, as a node agent would: how to ask a bucket. Nothing is asked for."""
    import labkit.net.fetch
    import labkit.objects.prefix  # noqa: F401


def _source(model: str, environment: dict[str, str]) -> CheckpointSource:
    """The bucket as the server would see it: this process need not have the server's
    environment."""
    return open_source(model, {**os.environ, **{k: v for k, v in environment.items() if v}})


def load(model: Model, source: str, device: str = "cpu", **options: Any) -> JsonObject:
    """The lab's streamer, after the shards have their names. Raises TransferError when the fetch
    beside it failed."""
    from labkit.weights.streamer import load as stream

    if taken := os.environ.get(TAKEN_OVER):
        with contextlib.suppress(OSError):  # then both read: slower, and right
            Path(taken).touch()
    directory = Path(source)
    with timeline.span("load.wait"):
        wait_for(directory, _expected(directory))
    return stream(model, source, device, **options)


def _expected(directory: Path) -> list[str]:
    """The shards' names, before they are there: from the index, which came first."""
    single, index = LAYOUT["safetensors"]
    if not (directory / index).exists():
        return [single]
    placed = parse_index((directory / index).read_bytes(), str(directory / index))
    return sorted(set(placed.values()))


def wait_for(
    directory: Path,
    names: Iterable[str],
    patience_s: float = PATIENCE_S,
    pause: Callable[[float], object] = time.sleep,
) -> None:
    until = time.monotonic() + patience_s
    for name in names:
        while not (directory / name).exists():
            if (directory / ".failed").exists():
                raise TransferError(
                    f"the weights did not arrive: {(directory / '.failed').read_text()}",
                    fix="see the store's log; run again",
                )
            if time.monotonic() > until:
                raise TransferError(
                    f"{name} did not arrive within {patience_s:.0f} s",
                    why="the fetch beside the start is stuck",
                    fix="--timeout, or another link",
                )
            pause(0.005)


@register
class Overlap(WeightsTechnique):
    name = "overlap"
    rung, step = 5, "overlap"
    advice = Option(
        "overlap",
        "fetch weights while the image arrives and torch imports",
        ("load",),
        2,
        "start the fetch before the interpreter needs it",
        "competes for the same link",
        "08_stacking",
        fewer_bytes=True,
    )
    title = "the weights start to arrive at t0, beside image, interpreter and imports"
    lesson = "notebooks/08_stacking"

    @property
    def loader(self) -> Loader:
        return replace(
            LOADERS["labkit-streamer"], name="overlap", call="labkit.weights.overlap:load"
        )

    def model_argument(self, model: str, remote: bool) -> str:
        return f"{{node}}/{MODEL}" if remote else model

    def apply(self, plan: LaunchPlan, artifact: Artifact) -> LaunchPlan:
        plan = super().apply(plan, artifact)
        about = plan.state.weights
        here = "labkit.weights.overlap:"
        if about.remote:
            arguments = {
                "model": about.model,
                "environment": {"AWS_ENDPOINT_URL": plan.server_env.get("AWS_ENDPOINT_URL", "")},
            }
            first = (
                Step("load.small", here + "fetch_small", arguments, pre_start=here + "know_http"),
                Step("load.fetch", here + "fetch_shards", arguments, background=True),
            )
        else:
            first = (
                Step("load.expect", here + "expect_loader"),
                Step(
                    "load.fetch",
                    here + "read_ahead",
                    {"files": artifact.facts["files"]},
                    background=True,
                ),
            )
        floors = dict(plan.floors_bytes)
        if "load" in floors and plan.scenario != "hot-node":
            fed_by = "link" if about.remote else "disk_read"
            floors[f"load@{fed_by}@t0"] = floors.pop("load")
        return replace(plan, steps=first + plan.steps, floors_bytes=floors)

    def verify(self, seen: Observation) -> Evidence:
        """The loader's own evidence, and that the move began before the server was started."""
        ahead = next((s for s in seen.spans if s.name == SPAN), None)
        started = next((s for s in seen.spans if s.name in ("start", "import")), None)
        if ahead is None or started is None:
            return Evidence(self.name, False, "no span of a move beside the start")
        if ahead.start_s >= started.end_s:
            return Evidence(self.name, False, "the move began only after the server had started")
        moved = int(ahead.detail.get("bytes", 0))
        want = seen.plan.state.weights.bytes
        how = (
            f"{show_bytes(moved)} of {show_bytes(want)} moved from {ahead.start_s:.2f} to"
            f" {ahead.end_s:.2f} s after t0, beside the start"
        )
        taken_over = bool(ahead.detail.get("taken_over"))
        if not moved or (moved < want and not taken_over):
            return Evidence(self.name, False, how)
        if moved >= want and not seen.plan.state.weights.remote:
            return Evidence(self.name, True, how, {"bytes": moved})
        outside = verify_loader(self.loader, seen)
        return Evidence(self.name, outside.engaged, f"{how}; {outside.how}", outside.facts)

"""A launch plan: what the node does between "zero replicas" and "a server is running", as data.

A plan is a list of steps that the **node agent** (`labkit.core.agent`, resident like a kubelet:
started and its modules imported before t0) executes in order once the request has found nothing. A
step names a function, so that the plan is JSON, and the function is the mechanism itself, without a
harness around it:

    Step("pull", "labkit.image.pull:full_pull", {"reference":
        "http://127.0.0.1:5000/lab/subject:latest"})

    def full_pull(ctx: StepContext, reference: str) -> dict:     # what it returns is the step's
        facts in the record
        ctx.state.rootfs = fetch(reference, into=ctx.node)
        return {"bytes_fetched": ...}

Techniques build plans (`Technique.apply`); they never run them. Lesson: notebooks/01_anatomy.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from labkit.core import timeline
from labkit.core.json_types import JsonObject
from labkit.core.node_state import NodeState, PlanState

SCENARIOS = {
    "fresh-node": "nothing of the stack is on this host",
    "warm-node": "every artifact is on local disk, caches cold",
    "hot-node": "every artifact is on local disk and in the page cache",
}


@dataclass(frozen=True)
class Step:
    """One step of the node agent. `phase`: a word of `timeline.PHASES`; `call`: "module:function";
    `args`: JSON.

    `background=True` starts the step in a thread and goes on (overlap); the agent waits for it
    after the last step. `pre_start`: "module:function", called with the same arguments before t0:
    what stands on a node while there is no replica (a zygote, a snapshotter's daemon)."""

    phase: str
    call: str
    args: JsonObject = field(default_factory=dict)
    background: bool = False
    pre_start: str = ""


def device_arguments(device: str) -> tuple[str, ...]:
    """What puts a server on a device; nothing for the CPU, which is its own default."""
    return () if device == "cpu" else ("--device", device)


@dataclass(frozen=True)
class LaunchPlan:
    """Everything the trial needs to know. Built by `Stack.plan`, widened by each technique's
    `apply`, stored in the record."""

    stack: dict[str, str]  # layer -> technique name
    scenario: str = "fresh-node"
    link: str = "loopback"
    steps: tuple[Step, ...] = ()
    # arguments of `python -m labkit.subject.server` (loader, weights, port …), without its device;
    # {port} and {node} stand for what is known when the trial begins
    server_args: tuple[str, ...] = ()
    device: str = "cpu"  # of the server: cpu, cuda or cuda:N
    server_env: dict[str, str] = field(default_factory=dict)
    # names that the server gets from the harness's own environment; their values are never written
    # down
    pass_env: tuple[str, ...] = ()
    server_binds: tuple[tuple[str, str], ...] = ()  # host path -> path in the rootfs, read-only
    state: PlanState = field(default_factory=PlanState)
    # files and trees the stack will read here: evicted and proven (hot-node: warmed)
    cold_paths: tuple[str, ...] = ()
    # servers of bytes -> their /_labkit/stats
    stat_urls: dict[str, str] = field(default_factory=dict)
    # phase -> bytes that must move in it (for its floor)
    floors_bytes: dict[str, int] = field(default_factory=dict)
    replaces: tuple[str, ...] = ()  # layers made moot (a snapshot makes the loader moot)
    request: JsonObject = field(
        default_factory=lambda: {"prompt": "The first token", "max_tokens": 8}
    )
    expected_tokens: tuple[int, ...] | None = None
    timeout_s: float = 300.0

    def with_steps(self, *steps: Step) -> LaunchPlan:
        return replace(self, steps=self.steps + steps)

    def with_server(
        self,
        *args: str,
        binds: tuple[tuple[str, str], ...] = (),
        env: Mapping[str, str] | None = None,
    ) -> LaunchPlan:
        return replace(
            self,
            server_args=self.server_args + args,
            server_binds=self.server_binds + binds,
            server_env={**self.server_env, **(env or {})},
        )

    @property
    def on_gpu(self) -> bool:
        return self.device.startswith("cuda")

    def command_line(self, port: int, node: str) -> list[str]:
        """The server's arguments on this node (its directory, as the server sees it)."""
        known = {"{port}": str(port), "{node}": node}
        return [
            *(re.sub(r"\{port\}|\{node\}", lambda m: known[m[0]], a) for a in self.server_args),
            *device_arguments(self.device),
        ]

    def with_cold(self, *paths: str | Path) -> LaunchPlan:
        return replace(self, cold_paths=self.cold_paths + tuple(str(p) for p in paths))

    def as_json(self) -> JsonObject:
        return asdict(self)

    @staticmethod
    def from_json(doc: JsonObject) -> LaunchPlan:
        doc = dict(doc)
        doc["steps"] = tuple(Step(**s) for s in doc.get("steps", ()))
        doc["state"] = PlanState.from_json(doc.get("state", {}))
        doc["server_binds"] = tuple(tuple(b) for b in doc.get("server_binds", ()))
        for key in ("server_args", "pass_env", "cold_paths", "replaces"):
            doc[key] = tuple(doc.get(key, ()))
        if doc.get("expected_tokens") is not None:
            doc["expected_tokens"] = tuple(doc["expected_tokens"])
        return LaunchPlan(**doc)


@dataclass
class StepContext:
    """What a step is given. `node`: a directory that was empty at t0 (the node's disk); `state`:
    what earlier steps left."""

    node: Path
    port: int
    timeline_path: Path
    # labkit.core.ledger.Ledger: everything with an end is noted there before it is started
    ledger: Any
    server_args: list[str]
    server_env: dict[str, str]
    server_binds: list[tuple[str, str]]
    state: NodeState = field(default_factory=NodeState)
    _ends: list[Callable[[], Any]] = field(default_factory=list)

    def on_stop(self, end: Callable[[], Any]) -> None:
        """Run at take-down, last registered first; also after a failed step."""
        self._ends.append(end)

    def temporary(self) -> str:
        """TMPDIR of a server outside of a container: the node's own, so that what it leaves goes
        with the node."""
        (self.node / "tmp").mkdir(exist_ok=True)
        return str(self.node / "tmp")

    @contextmanager
    def span(self, name: str, **detail: Any) -> Iterator[JsonObject]:
        with timeline.span(name, source="agent", path=str(self.timeline_path), **detail) as facts:
            yield facts

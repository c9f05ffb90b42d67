"""Restoring by hand, and restoring again and again: the same step as in a trial, without a trial
around it.

    with restored(snapshot, workspace) as back: print(back.port, back.answer.tokens)
    soak(workspace, cycles=50)["ok"]       # dump, restore, dump …; a client asks all the time;
        nothing may be lost or left

Lesson: notebooks/07_checkpoints.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from labkit.core import client, timeline
from labkit.core.json_types import JsonObject
from labkit.core.ledger import Ledger, remove_tree
from labkit.core.node_state import NodeState
from labkit.core.plan import StepContext
from labkit.core.proc import children, mounts, open_files, start_time
from labkit.core.trial import free_port
from labkit.core.workspace import Workspace
from labkit.snapshot import create, process, store, subject_server


@dataclass(frozen=True)
class Back:
    pid: int
    port: int
    answer: client.Answer
    first_token_s: float
    facts: JsonObject = field(default_factory=dict)


@contextmanager
def restored(
    snapshot: store.Snapshot,
    workspace: Workspace,
    *,
    port: int = 0,
    lazy: bool = False,
) -> Iterator[Back]:
    """The snapshot serving, and taken down at the end. Raises SnapshotError; then nothing runs."""
    with Ledger.open(workspace) as ledger:
        node = workspace.nodes / f"restore-{os.getpid()}-{time.monotonic_ns()}"
        entry = ledger.note("dir", node)
        node.mkdir(mode=0o700)
        ctx = StepContext(
            node=node,
            port=port or free_port(),
            timeline_path=node / "timeline.jsonl",
            ledger=ledger,
            server_args=[],
            server_env={},
            server_binds=[],
            state=NodeState(rootfs=snapshot.manifest.container.get("rootfs", "")),
        )
        try:
            began = timeline.now_s()
            if snapshot.manifest.technique == "criu-container":
                from labkit.snapshot import container

                facts = container.restore(ctx, str(snapshot.path))
            else:
                facts = process.restore(ctx, str(snapshot.path), lazy=lazy)
            pid = ctx.state.server_pid
            answer = subject_server.first_tokens(
                ctx.port, snapshot.manifest.request, lambda: start_time(pid) != 0, 120
            )
            if answer.first_token_s is None and not start_time(pid):
                raise subject_server.refusal_of_dead(
                    pid, snapshot.manifest, "".join(ctx.state.log_lines())
                )
            yield Back(pid, ctx.port, answer, (answer.first_token_s or float("nan")) - began, facts)
        finally:
            for end in reversed(ctx._ends):
                end()
            remove_tree(node)
            ledger.done(entry)


def _left(workspace: Workspace) -> dict[str, int]:
    return {
        "descriptors": len(open_files()),
        "mounts": len(mounts()),
        "children": len(children()),
        "threads": threading.active_count(),
        "nodes": len(list(workspace.nodes.iterdir())),
        "ledgers": len(list(workspace.ledger.iterdir())),
    }


def soak(
    workspace: Workspace,
    *,
    preset: str = "tiny",
    cycles: int = 50,
    say: Callable[[str], Any] = lambda _: None,
) -> JsonObject:
    """`cycles` times: restore, serve, dump again. A client asks all the time; every answer after
    ready must be whole and right."""
    with Ledger.open(workspace) as ledger:
        target = workspace.artifacts / f"soak-{os.getpid()}"
        ledger.note("dir", target)
        return _soak(workspace, target, preset, cycles, say)


def _soak(
    workspace: Workspace, target: Path, preset: str, cycles: int, say: Callable[[str], Any]
) -> JsonObject:
    from labkit.snapshot.techniques import MAPPED
    from labkit.subject import checkpoint

    began = timeline.now_s()
    snapshot = create.make_process(
        Path(checkpoint.ensure(workspace, preset)), target, loader=MAPPED
    )
    want, port = snapshot.manifest.tokens, free_port()
    before, seen = _left(workspace), {"answers": 0, "wrong": 0, "lost": 0}
    disk: list[int] = []
    try:
        for cycle in range(cycles):
            with restored(snapshot, workspace, port=port) as back:
                _count(seen, back.answer, want)
                stop = threading.Event()
                asking = threading.Thread(target=_ask_on, args=(port, snapshot, want, seen, stop))
                asking.start()
                try:
                    # Some answers while it serves; then the client pauses between two requests, as
                    # a drained endpoint would.
                    until = seen["answers"] + 3
                    while seen["answers"] < until and not seen["lost"] and asking.is_alive():
                        stop.wait(0.005)
                finally:
                    stop.set()
                    asking.join()
                snapshot = create.dump_again(back.pid, port, target, snapshot)
            disk.append(sum(f.stat().st_size for f in target.rglob("*") if f.is_file()))
            say(
                f"cycle {cycle + 1}/{cycles}: {seen['answers']} answers, {seen['wrong']} wrong,"
                f" {seen['lost']} lost"
            )
    finally:
        remove_tree(target)
    after = _left(workspace)
    grown = {k: after[k] - before[k] for k in after if after[k] > before[k]}
    return {
        "cycles": cycles,
        **seen,
        "grown": grown,
        "image_bytes_first": disk[0],
        "image_bytes_last": disk[-1],
        "seconds": timeline.now_s() - began,
        "ok": not seen["wrong"] and not seen["lost"] and not grown and len(disk) == cycles,
    }


def _count(seen: dict[str, int], answer: client.Answer, want: tuple[int, ...]) -> None:
    seen["answers"] += 1
    seen["lost"] += answer.first_token_s is None
    seen["wrong"] += answer.first_token_s is not None and tuple(answer.tokens) != want


def _ask_on(
    port: int,
    snapshot: store.Snapshot,
    want: tuple[int, ...],
    seen: dict[str, int],
    stop: threading.Event,
) -> None:
    while not stop.is_set():
        _count(
            seen,
            subject_server.first_tokens(port, snapshot.manifest.request, lambda: True, 30),
            want,
        )

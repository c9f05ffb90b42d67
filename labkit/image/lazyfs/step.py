"""The node agent's step: mount an image lazily on this node, in a process of its own, noted for
take-down.

    reference = "http://127.0.0.1:5000/lab/subject:esgz"
    Step("mount", "labkit.image.lazyfs.step:mount_image", {"reference": reference})

ctx.state gets rootfs, image_config and link_free_when; the mount's log lines are in
server_log, between the server's own.

Limit: two round trips and the TOC (12 µs an entry). Lesson: notebooks/03_lazy_pull.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass

from labkit.core import shipped
from labkit.core.interpreter import module
from labkit.core.json_types import JsonObject
from labkit.core.ledger import unmount
from labkit.core.plan import StepContext
from labkit.errors import BadInput, MissingCapability, TransferError, TrialError
from labkit.image.lazyfs import stats
from labkit.image.runtimes.server import drain

_KINDS = {kind.__name__: kind for kind in (BadInput, MissingCapability, TransferError)}


@dataclass(frozen=True)
class _Mounter:
    """The process that mounts, without an image as yet."""

    process: subprocess.Popen[bytes]


def resident(ctx: StepContext, **_args: object) -> None:
    """Before t0: the mount's process, started and imported, without an image. A node's snapshotter
    is resident, too."""
    process = subprocess.Popen(
        [*module("labkit.image.lazyfs"), "--resident"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": shipped.import_path()},
        cwd="/",
    )
    entry = ctx.ledger.note("process", process.pid)

    def end() -> None:
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    assert process.stdout and process.stderr
    # a server that dies of EIO knows only its own half of why
    drain(ctx, os.dup(process.stderr.fileno()))
    process.stderr.close()
    process.stdout.readline()
    ctx.state.hand_on(_Mounter(process))


def mount_image(
    ctx: StepContext, reference: str = "", options: list[str] | None = None
) -> JsonObject:
    """Step `mount`. `reference` defaults to the plan's own; `options`: of `python -m
    labkit.image.lazyfs`."""
    if not ctx.state.has(_Mounter):
        resident(ctx)
    process = ctx.state.handed(_Mounter).process
    assert process.stdin and process.stdout
    reference = reference or f"{ctx.state.registry}/{ctx.state.image_reference}"
    target, counters = ctx.node / "rootfs", ctx.node / "lazyfs.json"
    target.mkdir(parents=True, exist_ok=True)
    entry = ctx.ledger.note("mount", target)

    def end() -> None:
        with contextlib.suppress(OSError):
            os.kill(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)
        unmount(target)
        ctx.ledger.done(entry)

    ctx.on_stop(end)
    argv = [
        reference,
        str(target),
        "--cache",
        str(ctx.node / "blobs"),
        "--stats",
        str(counters),
        *(options or []),
    ]
    line = b""
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(json.dumps(argv).encode() + b"\n")
        process.stdin.flush()
        line = process.stdout.readline()
    try:
        reply = json.loads(line)
    except ValueError:
        raise TrialError(
            f"the lazy mount of {reference} ended without a word (exit {process.wait()})",
            why=ctx.state.log_tail(),
        ) from None
    if "error" in reply:
        doc = reply["error"]
        raise _KINDS.get(doc["kind"], TrialError)(doc["what"], doc["why"], doc["fix"])
    ctx.state.rootfs, ctx.state.image_config = str(target), reply.pop("config")
    ctx.state.link_free_when = str(stats.prefetched(counters))
    return {"stats": str(counters), **reply}

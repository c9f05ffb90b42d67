"""The runtime `userns`: a container without root, in user, mount and pid namespaces.

    Step("start", "labkit.image.runtimes.userns:start")

`enter.py` is its launcher and passes on the exit status. Limit: an interpreter without site
packages, ~15 ms, and a mount for each bind. Lesson: notebooks/02_image_pull."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path

from labkit.core.json_types import JsonObject
from labkit.core.ledger import marked
from labkit.core.plan import StepContext
from labkit.errors import TrialError
from labkit.image.runtimes.container import prepare_container
from labkit.image.runtimes.server import container_command, run_config, spawn

_LAUNCHER = str(Path(__file__).with_name("enter.py"))


def start(ctx: StepContext) -> JsonObject:
    """Start the image in its own user, mount and pid namespaces, without root."""
    root, binds = prepare_container(ctx)
    argv, environment = container_command(ctx)
    spec = {
        "skeleton": str(root.skeleton),
        "binds": binds,
        "argv": argv,
        "env": environment,
        "cwd": run_config(ctx).get("WorkingDir") or "/",
    }
    spec_in, spec_out = os.pipe()
    status_in, status_out = os.pipe()
    try:
        spawn(
            ctx,
            [sys.executable, "-I", "-S", _LAUNCHER, str(spec_in), str(status_out)],
            marked({"PATH": os.environ.get("PATH", "")}),
            pass_fds=(spec_in, status_out),
        )
    finally:
        os.close(spec_in)
        os.close(status_out)
    with open(spec_out, "wb") as pipe, contextlib.suppress(BrokenPipeError):
        pipe.write(json.dumps(spec).encode("utf-8", "surrogateescape"))
    status: JsonObject = {}
    with open(status_in, encoding="utf-8") as lines:
        for line in lines:  # ends when the exec has closed the pipe
            status |= json.loads(line)
    if "failed" in status or "pid" not in status:
        raise TrialError(
            f"the container did not start: {status.get('failed', 'its launcher ended')}",
            why="user namespaces, or a mount inside them, are not allowed here",
            fix="process=process, or labkit doctor",
        )
    ctx.state.server_pid = status["pid"]
    return {
        "runtime": "userns",
        "server_pid": status["pid"],
        "rootfs": ctx.state.rootfs,
        "binds": len(binds),
    }

"""A zygote: a process that has imported everything and forks for each start. The cheap rival of a
snapshot: no root, no CRIU.

It is resident before t0 and stays when the last replica has gone, so it costs its memory (some 300
MB) around the clock, and the libraries it has mapped are warm by definition; evidence says both.
What it saves is exec, dynamic linking and imports; the weights are loaded as ever. A fork shares
random state with its parent, so the child seeds itself anew. Limit: the rest of the start. A GPU's
context does not survive a fork, so this is for what comes before it.

    process=zygote            # in a stack: image=host-env,process=zygote,weights=safetensors

Protocol on its standard input: one JSON line {"args", "env"}; on descriptor 3: {"ready",
"rss_bytes"}, then {"pid"}. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from labkit.core.json_types import JsonObject
from labkit.core.observe import resident_bytes
from labkit.core.plan import StepContext
from labkit.core.proc import start_time
from labkit.errors import TrialError


@dataclass(frozen=True)
class _Zygote:
    """The resident process, what it answers on, and its memory."""

    process: subprocess.Popen[bytes]
    answers: TextIO
    rss_bytes: int


def start(ctx: StepContext) -> JsonObject:
    """The step: ask the resident zygote for a fork that becomes the server."""
    zygote = ctx.state.handed(_Zygote)
    process = zygote.process
    assert process.stdin
    process.stdin.write(
        json.dumps({"args": list(ctx.server_args), "env": dict(ctx.server_env)}).encode() + b"\n"
    )
    process.stdin.flush()
    reply = json.loads(zygote.answers.readline() or "{}")
    if "pid" not in reply:
        raise TrialError(
            "the zygote did not fork",
            why=ctx.state.log_tail(),
            fix="process=process",
        )
    ctx.state.server_pid = reply["pid"]
    return {
        "runtime": "zygote",
        "server_pid": reply["pid"],
        "rootfs": "",
        "zygote_pid": process.pid,
        "zygote_rss_bytes": zygote.rss_bytes,
        "resident_before_t0": True,
    }


def start_zygote(ctx: StepContext) -> None:
    from labkit.image.runtimes.process import host_command
    from labkit.image.runtimes.resident import start_resident

    argv, environment = host_command(ctx)
    process, answers, ready = start_resident(
        ctx, lambda fd: [argv[0], "-m", "labkit.snapshot.zygote", str(fd)], environment
    )
    if not ready.get("ready"):
        raise TrialError(
            "the zygote did not start",
            why=ctx.state.log_tail(),
            fix="labkit doctor",
        )
    ctx.state.hand_on(_Zygote(process, answers, ready["rss_bytes"]))


def main() -> int:
    answers = int(sys.argv[1])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import torch  # noqa: F401

    from labkit.subject import engine, http, llama, server, tokenizer  # noqa: F401

    rss_bytes, _ = resident_bytes()
    os.write(answers, json.dumps({"ready": True, "rss_bytes": rss_bytes}).encode() + b"\n")
    for line in sys.stdin.buffer:
        wanted = json.loads(line)
        child = os.fork()
        if child == 0:
            os.close(answers)
            os._exit(_serve(wanted))
        os.write(answers, json.dumps({"pid": child, "started": start_time(child)}).encode() + b"\n")
    return 0


def _serve(wanted: JsonObject) -> int:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    devnull = os.open(os.devnull, os.O_RDONLY)
    os.dup2(devnull, 0)
    return become(wanted["args"], wanted["env"])


def become(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Go through a start in a process that has imported everything already; it ends with the
    server."""
    import random

    import torch

    from labkit.core import timeline
    from labkit.subject import server

    os.environ.update(environment)
    # this start begins here; what was imported before belongs to no trial
    server._FIRST_LINE_S = timeline.now_s()
    torch.manual_seed(int.from_bytes(os.urandom(8), "little") >> 1)
    random.seed(os.urandom(16))
    code = server.main(list(arguments))
    sys.stdout.flush()
    return code


if __name__ == "__main__":
    sys.exit(main())

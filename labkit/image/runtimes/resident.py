"""A process that is on the node before t0 and waits for orders: a zygote, a server on standby.

    process, answers, ready = start_resident(ctx, lambda fd: [*argv, str(fd)], environment)

Limit: none on the clock; that is what it is for. Lesson: notebooks/07_checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from typing import TextIO

from labkit.core.json_types import JsonObject
from labkit.core.plan import StepContext
from labkit.image.runtimes.server import drain_output, end_with_trial


def start_resident(
    ctx: StepContext, command: Callable[[int], list[str]], environment: dict[str, str]
) -> tuple[subprocess.Popen[bytes], TextIO, JsonObject]:
    """Start a process that takes orders on its standard input: (process, its answers, the first of
    them).

    `command(fd)`: its command line, for answers on that descriptor, a JSON line each; {} is the
    answer of one that ended. It is on the ledger, ends with the trial, and its output is kept as a
    server's."""
    read_end, write_end = os.pipe()
    try:
        process = subprocess.Popen(
            command(write_end),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd="/",
            start_new_session=True,
            pass_fds=(write_end,),
        )
    finally:
        os.close(write_end)
    end_with_trial(ctx, process)
    drain_output(ctx, process)
    answers = os.fdopen(read_end, "r", encoding="utf-8")
    return process, answers, json.loads(answers.readline() or "{}")

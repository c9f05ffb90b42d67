"""A server for one token, outside of a trial: to fill a compile cache, or to see one step by
itself.

    one_token(model_dir, extra=("--compile",), environment={"TORCHINDUCTOR_CACHE_DIR": "/…"})

Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence

from labkit.core import client, exits, interpreter, timeline
from labkit.core.ledger import marked
from labkit.core.trial import free_port
from labkit.errors import TrialError


def one_token(
    model_dir: str | os.PathLike[str],
    *,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    timeout_s: float = 300.0,
) -> client.Answer:
    """Start, ask for eight greedy tokens, end. Raises TrialError with the server's last words."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "labkit.subject.server",
        "--model",
        str(model_dir),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--init",
        "meta",
        *extra,
    ]
    env = marked({**interpreter.environment("TMPDIR"), **(environment or {})})
    until = timeline.now_s() + timeout_s
    # not a pipe: nobody reads it before the end, and inductor says much
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            command,
            env=env,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )
        try:
            answer = client.ask(
                "127.0.0.1",
                port,
                {"prompt": "The first token of a cold start", "max_tokens": 8},
                give_up=lambda: process.poll() is not None or timeline.now_s() > until,
            )
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            code = process.wait() if process.returncode is None else process.returncode
        if answer.first_token_s is None:
            said.seek(0)
            raise TrialError(
                f"the server did not serve a token: it {exits.describe(code)}",
                said.read().decode(errors="replace")[-800:],
                "labkit doctor",
            )
        return answer

"""A server for one token, outside of a trial: to fill a compile cache, or to see one step by itself.

    one_token(model_dir, extra=("--compile",), environment={"TORCHINDUCTOR_CACHE_DIR": "/…"})

Lesson: notebooks/06_gpu_init.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from labkit.core import client, timeline
from labkit.core.ledger import marked
from labkit.core.trial import free_port
from labkit.errors import TrialError

KEEP = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_MODULE_LOADING")


def one_token(model_dir: str | os.PathLike[str], *, extra: Sequence[str] = (), environment: Mapping[str, str] | None = None, timeout_s: float = 300.0) -> client.Answer:
    """Start, ask for eight greedy tokens, end. Raises TrialError with the server's last words."""
    port, here = free_port(), str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-m", "labkit.subject.server", "--model", str(model_dir), "--host", "127.0.0.1", "--port", str(port), "--init", "meta", *extra]
    env = marked({**{k: v for k, v in os.environ.items() if k in KEEP}, "PYTHONPATH": here, "PYTHONDONTWRITEBYTECODE": "1", **(environment or {})})
    process = subprocess.Popen(command, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
    until = timeline.now_s() + timeout_s
    try:
        answer = client.ask("127.0.0.1", port, {"prompt": "The first token of a cold start", "max_tokens": 8},
                            give_up=lambda: process.poll() is not None or timeline.now_s() > until)
        if answer.first_token_s is None:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            raise TrialError("the server did not serve a token", (process.stderr.read() if process.stderr else b"").decode(errors="replace")[-800:], "labkit doctor")
        return answer
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stderr:
            process.stderr.close()
